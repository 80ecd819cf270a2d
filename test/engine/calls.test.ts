import t from 'tap'
import { createBench } from '../support/engine-bench.js'
import { settled } from '../support/fake-clock.js'

t.test('I21: a call whose conversation was deleted before its arguments were read does not run at all, least of all without them', async (t) => {
  for (const deleted of [false, true]) {
    const bench = createBench()
    const worker = await bench.worker('w1')
    await bench.start(worker)
    await settled()
    await bench.asked[0]?.answer({
      tool_calls: [
        { id: 'a', name: 'look', arguments: '{}' },
        // What refers to another call is read from beside the row when its turn comes.
        { id: 'b', name: 'write', arguments: '{"of":"{{stepOutputs.1}}"}' }
      ]
    })
    bench.faults.docs = ['before']
    await bench.ran[0]?.done('seen')
    t.equal(bench.ran.length, 1, 'the store is away')
    if (deleted) await bench.store.remove('c')
    await bench.clock.pass(2000)
    t.strictSame(bench.ran.map(({ args }) => args), deleted ? [{}] : [{}, { of: 'seen' }])
  }
})
