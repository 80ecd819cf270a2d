import t from 'tap'
import { calls, createBench, LEASE_MS } from '../support/engine-bench.js'
import { settled } from '../support/fake-clock.js'

// A claim that is gone before its owner has begun: the commit that claims it is stored, and others have spoken before its owner comes to act upon it.

/** A worker whose model has just asked for a call that writes; `hold`: what becomes of the answer to the commit that claims it. */
async function claiming (hold: 'lost' | 'late') {
  const bench = createBench()
  const worker = await bench.worker('w1')
  await bench.start(worker)
  await settled()
  let answer = () => { /* nothing is held */ }
  if (hold === 'lost') {
    bench.faults.commit = ['after']
    // The notes went the same way.
    bench.feed.tell = async () => {}
  } else {
    bench.afterCommit = () => new Promise<void>((resolve) => { answer = resolve })
  }
  await bench.asked[0]?.answer({ tool_calls: calls('write') })
  bench.afterCommit = null
  t.equal((await bench.said()).at(-1), 'tool.started')
  return { bench, answer: () => answer() }
}

for (const hold of ['lost', 'late'] as const) {
  t.test(`I12: a call that is cancelled while the answer to its claim is ${hold} does not begin`, async (t) => {
    for (const cancelled of [false, true]) {
      const { bench, answer } = await claiming(hold)
      if (cancelled) await bench.api().executed.execute('c', { type: 'CancelRun', at: bench.clock.now(), run_id: 'run_1', reason: 'cancelled' })
      answer()
      await bench.clock.pass(200)
      t.equal(bench.ran.length, cancelled ? 0 : 1)
    }
  })
}

t.test('B7: a claim that was given up while the answer to it was lost belongs to whoever has it now', async (t) => {
  const { bench } = await claiming('lost')
  const [call] = (await bench.events()).filter(({ type }) => type === 'tool.started')
  await bench.api().executed.execute('c', { type: 'Lapse', at: bench.clock.now(), fence: null, calls: [{ call_id: call?.call_id as string, attempt: 1, arguments: {} }] })
  await bench.clock.pass(200)
  t.equal(bench.ran.length, 0)
  t.ok((await bench.said()).includes('tool.failed'), 'what became of it nobody knows')
})

t.test('I12: a turn that waited a third of a lease for the lock does not begin if it was cancelled meanwhile, also when no note came', async (t) => {
  for (const cancelled of [false, true]) {
    const bench = createBench()
    const worker = await bench.worker('w1')
    bench.feed.tell = async () => {}
    bench.locks.set('c', 'somebody')
    await bench.start(worker)
    await bench.clock.pass(100)
    if (cancelled) await bench.api().executed.execute('c', { type: 'CancelRun', at: bench.clock.now(), run_id: 'run_1', reason: 'cancelled' })
    await bench.clock.pass(LEASE_MS / 3)
    t.equal(bench.asked.length, 0)
    bench.locks.delete('c')
    await bench.clock.pass(1000)
    t.equal(bench.asked.length, cancelled ? 0 : 1)
  }
})

t.test('B7: who was cut off while it read what it needs begins nothing before it knows what is still its own', async (t) => {
  for (const work of ['call', 'turn'] as const) {
    for (const taken of [false, true]) {
      const bench = createBench()
      const [own, other] = [await bench.worker('w1'), await bench.worker('w2')]
      const { beat } = bench.presence
      if (work === 'call') {
        await bench.start(own)
        await settled()
        // What refers to another call is read from beside the row.
        await bench.asked[0]?.answer({ tool_calls: [...calls('look'), { id: 'b', name: 'write', arguments: '{"of":"{{stepOutputs.1}}"}' }] })
      } else {
        await bench.start(bench.api())
      }
      // Neither the queue nor a note reaches it.
      bench.feed.tell = async () => {}
      bench.presence.beat = async (worker, ttl) => {
        if (worker === 'w1') throw new Error('cut off')
        await beat(worker, ttl)
      }
      bench.faults.docs = Array.from({ length: 1000 }, () => 'before' as const)
      if (work === 'call') await bench.ran[0]?.done('seen')
      else void own.engine.advance('c')
      await bench.clock.pass(LEASE_MS + 1)
      bench.faults.docs = []
      if (taken) await other.engine.sweep()
      await bench.clock.pass(1000)
      const begun = () => work === 'call' ? bench.ran.length - 1 : bench.asked.length
      t.equal(begun(), 0, 'its sign of life has run out')
      bench.presence.beat = beat
      await bench.clock.pass(LEASE_MS / 30)
      t.equal(begun(), taken ? 0 : 1, `${work} ${taken ? 'that is another\'s' : 'that is still its own'}`)
    }
  }
})

t.test('B7: a call that was given up and claimed once more by the same worker is not run for its first claim as well', async (t) => {
  const bench = createBench()
  const [own, other] = [await bench.worker('w1'), await bench.worker('w2')]
  await bench.start(own)
  await settled()
  await bench.asked[0]?.answer({ tool_calls: [...calls('look'), { id: 'b', name: 'look', arguments: '{"of":"{{stepOutputs.1}}"}' }] })
  bench.feed.tell = async () => {}
  const { beat } = bench.presence
  bench.presence.beat = async (worker, ttl) => { if (worker !== 'w1') await beat(worker, ttl) }
  bench.faults.docs = Array.from({ length: 1000 }, () => 'before' as const)
  await bench.ran[0]?.done('seen')
  await bench.clock.pass(LEASE_MS + 1)
  // The other one reads what it needs to give it up.
  bench.faults.docs = []
  const sweeping = other.engine.sweep()
  await settled()
  bench.faults.docs = Array.from({ length: 1000 }, () => 'before' as const)
  await sweeping
  bench.presence.beat = beat
  void own.engine.advance('c')
  await bench.clock.pass(100)
  bench.faults.docs = []
  await bench.clock.pass(1000)
  t.same(bench.ran.slice(1).map(({ context }) => context.attempt), [2])
})
