/**
 * `npx tsx test/core/mutations/mutations.ts`: plants faults in copies of the core, one at a time, and prints after how many schedules
 * the judge found each, and what it said. Ends with an error when one was not found.
 */
import { hunt, MUTATIONS } from '../../support/schedule-mutations.js'

let missed = 0
for (const mutation of MUTATIONS) {
  const caught = await hunt(mutation)
  if (caught === null) missed++
  process.stdout.write(`${caught === null ? 'MISSED' : `after ${String(caught.schedules).padStart(3)}`}  ${mutation.fault}\n${caught === null ? '' : `           ${caught.says.split('\n')[0]?.slice(0, 140)}\n`}`)
}
process.stdout.write(`${MUTATIONS.length - missed} of ${MUTATIONS.length} faults were found\n`)
process.exitCode = missed > 0 ? 1 : 0
