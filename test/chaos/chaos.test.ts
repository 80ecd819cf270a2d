import { rmSync } from 'node:fs'
import t from 'tap'
import { chaos, type Chaos } from './run.js'

/** A minute on an idle machine; one that does other things as well may take longer over each round. */
t.setTimeout(400_000)

/** One round is enough to have been killed, frozen and cut off some ten times. */
async function oneRound (seed: number): Promise<Chaos> {
  return await chaos(t, { seed, minutes: 0.01, conversations: 8, say: (line) => t.comment(line) })
}

for (const seed of [1]) {
  void t.test(`F90: seed ${seed}: whatever is killed, frozen or cut off, every invariant holds and everything comes to rest`, async (t) => {
    const { figures, violations, folder } = await oneRound(seed)
    t.same(violations, [], `again: npm run chaos -- --seed ${seed}; what was done: ${folder}`)
    if (violations.length === 0 && folder !== null) rmSync(folder, { recursive: true })
    t.ok(Object.keys(figures.faults).length >= 3, 'things were done')
    t.ok((figures.runs.completed ?? 0) >= 3, 'and runs came to their end all the same')
  })
}
