import assert from 'node:assert/strict'
import fc from 'fast-check'
import t from 'tap'
import { ask, by, call, failure, given, result, start, work } from '../support/core-scene.js'
import { anything, comeToRest, createWorld, type Core } from '../support/core-world.js'

/** `FC_SEED` plays a run again that failed. */
const seed = Number(process.env.FC_SEED ?? Date.now() % 2 ** 31)

t.test('B1, D2, I3, M5: whatever callers, workers and time do, in any order, twice or too late: the ledger has nothing to object to', async (t) => {
  t.comment(`seed ${seed}: FC_SEED=${seed} plays this again`)
  let decided = 0
  fc.assert(fc.property(fc.commands([anything], { maxCommands: 100, size: 'max' }), (commands) => {
    const core: Core = { state: null }
    const world = createWorld()
    fc.modelRun(() => ({ model: world, real: core }), commands)
    comeToRest(world, core)
    decided += world.decided
  }), { seed, numRuns: 1100 })
  t.ok(decided >= 20_000, `${decided} commands were decided`)
})

const anyBatch = fc.record({
  calls: fc.array(fc.constantFrom<('answers' | 'fails' | 'faulty')[]>('answers', 'answers', 'fails', 'faulty'), { minLength: 1, maxLength: 8 }),
  room: fc.integer({ min: 1, max: 8 }),
  order: fc.array(fc.nat(99), { minLength: 8, maxLength: 8 })
})

t.test('G1, D10: results in any order end in the same ledger, and the next turn sees the same', async (t) => {
  t.comment(`seed ${seed}`)
  fc.assert(fc.property(anyBatch, ({ calls, room, order }) => {
    /** Plays the batch; of the calls that run, `which` says the one that is next to answer. */
    const play = (which: (running: number, answered: number) => number) => {
      const fault = { code: 'unknown_tool', message: 'there is no such tool' }
      const asked = calls.map((kind, i) => call(`n${i}`, { fault: kind === 'faulty' ? fault : null }))
      const scene = given(start({ limits: { max_tool_concurrency: room } }), work('w1'), by('w1', ask(...asked)))
      for (let answered = 0; scene.state().run?.phase.type === 'batch'; answered++) {
        const settled = new Set(scene.log.filter((event) => /^tool\.(completed|failed)$/.test(event.type)).map((event) => event.call_id))
        const running = scene.log.filter((event) => event.type === 'tool.started' && !settled.has(event.call_id)).map((event) => event.call_id?.slice(5) as string)
        const next = running[which(running.length, answered)] as string
        scene.given(by('w1', calls[Number(next.slice(1))] === 'fails' ? failure(next) : result(next)))
      }
      return scene
    }
    const [first, other] = [play(() => 0), play((running, answered) => (order[answered] as number) % running)]
    assert.deepEqual(other.ledger, first.ledger)
    assert.deepEqual([...other.docs.keys()].sort(), [...first.docs.keys()].sort())
    assert.equal(other.log.length, first.log.length)
    assert.deepEqual(other.state().run?.usage, first.state().run?.usage)
    assert.equal(other.log.at(-1)?.message_count, first.log.at(-1)?.message_count)
  }), { seed, numRuns: 300 })
})
