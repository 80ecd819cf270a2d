import t from 'tap'
import type { Row } from '../../src/store/store.js'
import { createBench } from '../support/engine-bench.js'
import { settled } from '../support/fake-clock.js'

// Signs of life when Redis was away for longer than they hold: nobody could show any, so that they say nothing for a while.

const lease = 10_000

/** Two workers, the first of which is at an LLM call; and how signs of life are shown. */
async function pair () {
  const bench = createBench()
  const [own, other] = [await bench.worker('w1'), await bench.worker('w2')]
  await bench.start(own)
  await settled()
  return { bench, own, other, beat: bench.presence.beat }
}

/** The same, when no sign of life could be shown for `ms`. */
async function outage (ms: number) {
  const { bench, own, other, beat } = await pair()
  bench.presence.beat = async () => { throw new Error('Redis is away') }
  await bench.clock.pass(ms)
  bench.presence.beat = beat
  return { bench, own, other }
}

t.test('I24: whoever is alive when Redis comes back keeps its claims, whoever looks first', async (t) => {
  for (const ms of [1.01 * lease, 1.3 * lease, 5 * lease]) {
    for (const first of ['own', 'other'] as const) {
      const { bench, ...workers } = await outage(ms)
      await workers[first].engine.sweep()
      await workers.own.engine.sweep()
      await workers.other.engine.sweep()
      await settled()
      t.strictSame(bench.asked.map(({ signal }) => signal.aborted), [false], `${ms} ms, ${first} first`)
      await bench.asked[0]?.answer({ text: 'done' })
      t.strictSame((await bench.said()).slice(-2), ['turn.completed', 'run.completed'])
    }
  }
})

t.test('F72: when all signs are gone at once, whoever is alive shows another before anybody is judged', async (t) => {
  for (const alive of [true, false]) {
    const { bench, other, beat } = await pair()
    await bench.clock.pass(lease / 2)
    // As when the clock of Redis goes ahead: the workers' own clocks have not moved.
    for (const worker of ['w1', 'w2']) await bench.presence.leave(worker)
    if (!alive) bench.presence.beat = async (worker, ttl) => { if (worker !== 'w1') await beat(worker, ttl) }
    await bench.store.postpone('c', await bench.store.load('c') as Row, bench.clock.now())
    await other.engine.sweep()
    t.notOk((await bench.said()).includes('turn.retrying 2'))
    await bench.clock.pass(lease)
    await other.engine.sweep()
    t.equal((await bench.said()).includes('turn.retrying 2'), !alive)
  }
})

t.test('F60: whoever does not come back with the others is given up one renewal later', async (t) => {
  const { bench, other, beat } = await pair()
  bench.presence.beat = async () => { throw new Error('Redis is away') }
  await bench.clock.pass(3 * lease)
  bench.presence.beat = async (worker, ttl) => { if (worker !== 'w1') await beat(worker, ttl) }
  await other.engine.sweep()
  t.notOk((await bench.said()).includes('turn.retrying 2'))
  await bench.clock.pass(lease / 3)
  await other.engine.sweep()
  t.ok((await bench.said()).includes('turn.retrying 2'))
})

t.test('B7: one sweep gives up all that a dead worker had, however many conversations that are', async (t) => {
  const bench = createBench()
  const [own, other] = [await bench.worker('w1', { turns: 1000 }), await bench.worker('w2')]
  const ids = Array.from({ length: 600 }, (_, i) => `c${i}`)
  for (const id of ids) await bench.start(own, { conversation_id: id, run_id: `run_${id}` })
  await settled()
  const { beat } = bench.presence
  bench.presence.beat = async (worker, ttl) => { if (worker !== 'w1') await beat(worker, ttl) }
  await bench.clock.pass(lease + 1)
  await other.engine.sweep()
  for (const id of ids) t.equal((await bench.said(id)).at(-1), 'turn.retrying 2')
})

t.test('B7: while Redis is there a dead worker is given up as soon as its sign has run out', async (t) => {
  const { bench, other, beat } = await pair()
  bench.presence.beat = async (worker, ttl) => { if (worker !== 'w1') await beat(worker, ttl) }
  await bench.clock.pass(lease - 1)
  await other.engine.sweep()
  t.notOk((await bench.said()).includes('turn.retrying 2'))
  await bench.clock.pass(2)
  await other.engine.sweep()
  t.ok((await bench.said()).includes('turn.retrying 2'))
})
