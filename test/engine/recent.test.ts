import t from 'tap'
import { createRecent } from '../../src/engine/recent.js'

const MINUTE = 60_000

function shelf (options: Partial<Parameters<typeof createRecent<string>>[1]> = {}) {
  const clock = { time: 1000, now: () => clock.time }
  return { clock, recent: createRecent<string>(clock, { most: 3, ...options }) }
}

t.test('I19: what nobody has used for a minute goes, however little is kept', async (t) => {
  const { clock, recent } = shelf()
  recent.set('a', 'A')
  recent.set('b', 'B')
  clock.time += MINUTE / 2
  t.equal(recent.get('a'), 'A', 'which counts as use')
  clock.time += MINUTE / 2
  recent.set('c', 'C')
  t.same(['a', 'b', 'c'].map(recent.get), ['A', undefined, 'C'])
})

t.test('beyond the most that is kept, the one that was not used for longest goes', async (t) => {
  const { recent } = shelf()
  for (const name of ['a', 'b', 'c']) recent.set(name, name)
  recent.get('a')
  recent.set('d', 'd')
  t.same(['a', 'b', 'c', 'd'].map(recent.get), ['a', undefined, 'c', 'd'])
})

t.test('things weigh what they weighed when they were set; one alone may be heavier than all that is kept', async (t) => {
  const { recent } = shelf({ weigh: (thing) => thing.length })
  recent.set('a', 'x')
  recent.set('a', 'xx')
  recent.set('b', 'x')
  t.same(['a', 'b'].map(recent.get), ['xx', 'x'])
  recent.set('c', 'xxxx')
  t.same(['a', 'b', 'c'].map(recent.get), [undefined, undefined, 'xxxx'])
  recent.forget('c')
  recent.set('d', 'xxx')
  t.equal(recent.get('d'), 'xxx', 'what was forgotten weighs nothing')
})

t.test('what is busy stays, whatever its age and weight', async (t) => {
  const { clock, recent } = shelf({ isBusy: (thing) => thing === 'busy' })
  for (const name of ['a', 'b', 'c']) recent.set(name, 'busy')
  recent.set('d', 'idle')
  clock.time += 2 * MINUTE
  recent.set('e', 'idle')
  t.same(['a', 'b', 'c', 'd', 'e'].map(recent.get), ['busy', 'busy', 'busy', undefined, 'idle'])
})
