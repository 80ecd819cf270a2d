import t from 'tap'
import { createBench } from '../support/engine-bench.js'
import { settled } from '../support/fake-clock.js'

/** A worker with one place, which a conversation has, and others that want it. */
async function full (others: string[]) {
  const bench = createBench()
  const worker = await bench.worker('w1', { turns: 1 })
  await bench.start(worker, { conversation_id: 'a', run_id: 'run_a' })
  // It knows their rows, and so looks again before it finds that there is nothing for it.
  for (const id of others) await bench.start(worker, { conversation_id: id, run_id: `run_${id}` })
  await settled()
  return { bench, worker, asked: () => bench.asked.length }
}

t.test('N4: jobs that find no place wait in line: first come, first served, one at a time', async (t) => {
  const { bench, worker, asked } = await full(['b', 'c'])
  const done: string[] = []
  for (const id of ['b', 'c']) void worker.engine.advance(id).then(() => done.push(id))
  await settled()
  t.strictSame([asked(), done], [1, []])
  await bench.asked[0]?.answer({ text: 'done' })
  await settled()
  t.strictSame([asked(), done], [2, ['b']], 'its job is done once its turn has begun')
  await bench.asked[1]?.answer({ text: 'done' })
  await settled()
  t.strictSame([asked(), done], [3, ['b', 'c']])
  await bench.asked[2]?.answer({ text: 'done' })
})

t.test('N4: a place that becomes free while a job comes in vain is not missed', async (t) => {
  const { bench, worker, asked } = await full(['b'])
  const { load } = worker.store
  let look = () => { /* set below */ }
  const held = new Promise<void>((resolve) => { look = resolve })
  worker.store.load = async (id) => {
    await held
    return await load(id)
  }
  const job = worker.engine.advance('b')
  await settled()
  await bench.asked[0]?.answer({ text: 'done' })
  await settled()
  t.equal(asked(), 1)
  look()
  await job
  await settled()
  t.equal(asked(), 2)
  await bench.asked[1]?.answer({ text: 'done' })
})

t.test('N4: a job in line is let go when its worker stops, and another may have the turn', async (t) => {
  const { bench, worker, asked } = await full(['b'])
  const job = worker.engine.advance('b')
  await settled()
  const stopping = worker.engine.stop(60_000)
  await job
  t.equal(asked(), 1)
  const other = await bench.worker('w2')
  await other.engine.advance('b')
  await settled()
  t.equal(asked(), 2)
  for (const one of bench.asked) await one.answer({ text: 'done' })
  await stopping
})
