import fc from 'fast-check'
import t from 'tap'
import { schedules } from '../support/schedule-moves.js'
import { CORE, play } from '../support/schedule-stage.js'

/** What one schedule after the other must have met, or the generator has gone blind. */
const MET = [
  'message interrupted', 'message queued', 'message scheduled', 'message edited', 'message.delivered', 'message.superseded', 'message.withdrawn',
  'run.cancelled cancelled', 'run.cancelled interrupted_by', 'run.cancelled rolled_back', 'run.completed', 'run.failed', 'run.incomplete',
  'turn.cancelled', 'turn.retrying', 'batch.completed', 'tool.cancelled', 'tool.failed', 'tool.progress',
  'refused stale', 'refused duplicate', 'refused queue_full', 'refused run_ended', 'refused run_active', 'refused not_found'
]

let commands = 0
const tally = new Map<string, number>()

for (const seed of [1, 2, 3, 4, 5, 6]) {
  t.test(`I14, I27: every schedule leaves each accepted message in the ledger once, or says what became of it (seed ${seed})`, async (t) => {
    const before = commands
    fc.assert(fc.property(schedules, (moves) => {
      const played = play(CORE, moves)
      commands += played.commands
      for (const [what, times] of played.tally) tally.set(what, (tally.get(what) ?? 0) + times)
    }), { numRuns: 550, seed })
    t.ok(commands > before, `${commands - before} commands`)
  })
}

t.test('I14: the schedules were many, and everything there is happened in them', async (t) => {
  t.ok(commands >= 200_000, `${commands} commands were decided`)
  t.same(MET.filter((what) => (tally.get(what) ?? 0) < 300), [], 'everything was met 300 times')
})
