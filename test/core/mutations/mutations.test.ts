import t from 'tap'
import { hunt, MUTATIONS } from '../../support/schedule-mutations.js'

for (const mutation of MUTATIONS) {
  t.test(`the judge of schedules objects when ${mutation.fault}`, async (t) => {
    t.ok(await hunt(mutation), 'an unnoticed fault')
  })
}

t.test('a fault that finds no place is no fault that was not noticed', async (t) => {
  await t.rejects(hunt({ fault: 'none', edits: [['this text is nowhere', '']] }), /stands 0 times/)
})
