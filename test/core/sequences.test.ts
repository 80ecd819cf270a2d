import fc from 'fast-check'
import t from 'tap'
import { anything, comeToRest, createWorld, type Core } from '../support/core-world.js'

/** `FC_SEED` plays a run again that failed. */
const seed = Number(process.env.FC_SEED ?? Date.now() % 2 ** 31)

t.test('whatever callers, workers and time do, in any order, twice or too late: the ledger has nothing to object to', async (t) => {
  t.comment(`seed ${seed}: FC_SEED=${seed} plays this again`)
  let decided = 0
  fc.assert(fc.property(fc.commands([anything], { maxCommands: 100, size: 'max' }), (commands) => {
    const core: Core = { state: null }
    const world = createWorld()
    fc.modelRun(() => ({ model: world, real: core }), commands)
    comeToRest(world, core)
    decided += world.decided
  }), { seed, numRuns: 1000 })
  t.ok(decided >= 20_000, `${decided} commands were decided`)
})
