import t from 'tap'
import { calls, createBench } from '../support/engine-bench.js'
import { settled } from '../support/fake-clock.js'

t.test('D6, D8: what a call still gives after its worker has lost it says so, also when the conversation has gone on since', async (t) => {
  const bench = createBench()
  const worker = await bench.worker('w1')
  await bench.start(worker)
  await settled()
  await bench.asked[0]?.answer({ tool_calls: calls('write', 'look') })
  const lost = (await bench.events()).filter(({ type }) => type === 'tool.started').map((event) => ({ call_id: event.call_id as string, attempt: 1, arguments: {} }))
  await bench.api().executed.execute('c', { type: 'Lapse', at: bench.clock.now(), fence: null, calls: lost })
  const advanced = worker.engine.advance('c')
  await settled()
  const [write, look, again] = bench.ran
  t.strictSame(bench.ran.map(({ tool, context }) => [tool.name, context.attempt]), [['write', 1], ['look', 1], ['look', 2]])
  await again?.done('seen')
  t.equal(bench.asked.length, 2, 'the next turn has begun')
  write?.context.late?.('written after all')
  look?.context.late?.('seen before')
  await settled()
  t.strictSame((await bench.events()).filter(({ type }) => type === 'tool.orphaned').map(({ reason, output }) => [reason, output]), [['stale', 'written after all'], ['stale', 'seen before']])
  await bench.asked[1]?.answer({ text: 'done' })
  await advanced
})
