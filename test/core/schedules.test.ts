import fc from 'fast-check'
import t from 'tap'
import { CORE, OPS, play, type Move } from '../support/schedule-stage.js'

t.test('I', async (t) => {
  const move = fc.tuple(fc.nat(OPS - 1), fc.nat(2 ** 31 - 1))
  let commands = 0
  const tally = new Map<string, number>()
  const t0 = Date.now()
  fc.assert(fc.property(fc.array(move, { maxLength: 120, size: 'max' }), (moves) => {
    const played = play(CORE, moves as Move[])
    commands += played.commands
    for (const [what, n] of played.tally) tally.set(what, (tally.get(what) ?? 0) + n)
  }), { numRuns: Number(process.env.N ?? 300), seed: Number(process.env.SEED ?? 1) })
  t.comment(commands, Date.now() - t0, Object.fromEntries([...tally].sort()))
})
