import t from 'tap'
import { createBench } from '../support/engine-bench.js'
import { settled } from '../support/fake-clock.js'

t.test('I24: a worker that stops waits for what it is just claiming: nobody may take that for the work of a dead one', async (t) => {
  const bench = createBench()
  const worker = await bench.worker('w1')
  await bench.start(bench.api())
  let arrive = () => { /* set below */ }
  const held = new Promise<void>((resolve) => { arrive = resolve })
  bench.beforeCommit = () => held
  const job = worker.engine.advance('c')
  await settled()
  let stopped = false
  const stopping = worker.engine.stop(60_000).then(() => { stopped = true })
  await settled()
  t.equal(stopped, false, 'the commit that claims the turn is on its way')
  t.strictSame(await bench.presence.left(['w1']).then(([ms = 0]) => ms > 0), true)
  bench.beforeCommit = null
  arrive()
  await settled()
  t.strictSame([bench.asked.length, stopped], [1, false], 'what it has claimed is done')
  await bench.asked[0]?.answer({ text: 'done' })
  await Promise.all([job, stopping])
  t.strictSame(await bench.said(), ['run.created', 'run.started', 'turn.started', 'turn.completed', 'run.completed'])
  t.strictSame(await bench.presence.left(['w1']), [0])
})

t.test('I24: a worker that stops waits for what a request is just claiming as well', async (t) => {
  const bench = createBench()
  const worker = await bench.worker('w1')
  let arrive = () => { /* set below */ }
  const held = new Promise<void>((resolve) => { arrive = resolve })
  bench.afterCommit = () => held
  const asking = bench.start(worker)
  await settled()
  let stopped = false
  const stopping = worker.engine.stop(60_000).then(() => { stopped = true })
  await settled()
  t.equal(stopped, false, 'the answer to the commit that claims the turn is on its way')
  bench.afterCommit = null
  arrive()
  await settled()
  t.strictSame([bench.asked.length, stopped], [1, false], 'what it has claimed is done')
  await bench.asked[0]?.answer({ text: 'done' })
  await Promise.all([asking, stopping])
  t.equal((await bench.said()).at(-1), 'run.completed')
})

t.test('I24: what cannot be finished in the grace time is handed over at once, for all conversations together', async (t) => {
  const bench = createBench()
  const worker = await bench.worker('w1')
  for (const id of ['a', 'b', 'c']) {
    await bench.start(worker, { conversation_id: id, run_id: `run_${id}` })
    await settled()
  }
  t.equal(bench.asked.length, 3)
  // The store answers no more: nothing may wait for it in turn.
  bench.faults.load = ['never', 'never', 'never']
  const stopping = worker.engine.stop(500)
  await bench.clock.pass(500)
  t.strictSame(bench.asked.map(({ signal }) => signal.aborted), [true, true, true])
  await bench.clock.pass(2000)
  await stopping
})
