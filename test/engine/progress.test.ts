import t from 'tap'
import { paceProgress } from '../../src/engine/progress.js'
import { createFakeClock } from '../support/fake-clock.js'

t.test('progress is told at once, then five times a second at most, the newest of it, and the last of it when the call is over', async (t) => {
  const clock = createFakeClock()
  const told: unknown[] = []
  const progress = paceProgress(clock, (data) => { told.push(data) })
  for (let n = 1; n <= 1000; n++) {
    progress.tell(n)
    await clock.pass(1)
  }
  t.strictSame(told, [1, 200, 400, 600, 800, 1000])
  progress.tell(1001)
  progress.tell(1002)
  progress.end(true)
  t.equal(told.at(-1), 1002)
  progress.tell(1003)
  await clock.pass(1000)
  t.equal(told.length, 7, 'nothing is told of a call that is over')
  t.equal(clock.timers(), 0)
})

t.test('what comes rarely is told as it comes, and of a call that was stopped nothing more', async (t) => {
  const clock = createFakeClock()
  const told: unknown[] = []
  const progress = paceProgress(clock, (data) => { told.push(data) })
  for (const n of [1, 2, 3]) {
    progress.tell(n)
    t.equal(told.at(-1), n)
    await clock.pass(250)
  }
  progress.tell(4)
  progress.tell(5)
  progress.end(false)
  await clock.pass(1000)
  t.strictSame(told, [1, 2, 3, 4])
})
