import t from 'tap'
import { createWatchdog, LOOKS, type Look, type Verdict } from '../../src/queue/watchdog.js'

const stands: Look = { head: 'job', room: true, answers: true, hung: false }
const look = (watchdog: (one: Look) => Verdict, times: number, over: Partial<Look> = {}): Verdict[] => Array.from({ length: times }, () => watchdog({ ...stands, ...over }))
/** The first look has nothing to compare with. */
const begun = () => {
  const watchdog = createWatchdog()
  watchdog(stands)
  return watchdog
}
const quiet = (times: number): Verdict[] => Array.from({ length: times }, () => 'fine')

t.test('B7, B8: a job that nobody takes although there is room: new connections after some looks, the end after as many again', async (t) => {
  t.strictSame(look(begun(), 2 * LOOKS), [...quiet(LOOKS - 1), 'renew', ...quiet(LOOKS - 1), 'end'])
})

const harmless: [why: string, over: (i: number) => Partial<Look>][] = [
  ['nothing waits', () => ({ head: null })],
  ['others take the jobs', (i) => ({ head: `job ${i}` })],
  ['this worker is full', () => ({ room: false })],
  ['Redis is away', () => ({ answers: false, head: undefined })],
  ['Redis is away, and a sweep waits for it', () => ({ answers: false, head: undefined, hung: true })]
]
for (const [why, over] of harmless) {
  t.test(`nothing is done while ${why}, however long`, async (t) => {
    const watchdog = begun()
    for (let i = 0; i < 10 * LOOKS; i++) t.equal(watchdog({ ...stands, ...over(i) }), 'fine')
  })

  t.test(`a standstill that is interrupted because ${why} counts anew`, async (t) => {
    const watchdog = begun()
    look(watchdog, LOOKS - 1)
    watchdog({ ...stands, ...over(1) })
    watchdog(stands)
    t.strictSame(look(watchdog, LOOKS - 2), quiet(LOOKS - 2))
  })
}

t.test('new connections that helped are no reason to end later', async (t) => {
  const watchdog = begun()
  t.equal(look(watchdog, LOOKS).at(-1), 'renew')
  watchdog({ ...stands, head: null })
  watchdog(stands)
  t.strictSame(look(watchdog, LOOKS), [...quiet(LOOKS - 1), 'renew'])
})

t.test('a queue that cannot be read while Redis answers, and a sweep without end, are a standstill as well', async (t) => {
  t.equal(look(begun(), LOOKS, { head: undefined }).at(-1), 'renew')
  t.equal(look(begun(), LOOKS, { head: null, room: false, hung: true }).at(-1), 'renew')
})
