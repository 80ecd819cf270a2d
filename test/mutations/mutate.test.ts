import t from 'tap'
import { GUARDS } from './guards.js'
import { hunt } from './hunts.js'

// Some of `npm run mutate`, one for each kind of judge: that those who judge can fail is seen in every run of the tests.

t.setTimeout(600_000)

for (const name of ['no fence check', 'the barrier is vacuous', 'the sweep is off', 'no version check in Redis', '`$` instead of a cursor in the event reader']) {
  t.test(`a planted bug is noticed: ${name}`, async (t) => {
    const bug = GUARDS.find((one) => one.bug === name)
    if (bug === undefined) throw new Error('there is no such bug')
    const said = await hunt(bug)
    t.ok(said, `${bug.by}: ${said}`)
  })
}
