import fc from 'fast-check'
import type { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { closeRedis, connectRedis, whenReady, type Connection } from '../../src/redis/connect.js'
import { createKeys, type Keys } from '../../src/store/keys.js'
import { createRedisLimiter } from '../../src/store/redis-limiter.js'
import type { Limiter } from '../../src/store/store.js'
import { createMemoryLimiter } from '../../src/store/memory-limiter.js'
import { privateRedis, silent, testRedis } from '../support/redis.js'

/** Longer than any test takes: a wait, rounded up to whole windows, says which window the place is in, whatever time passes meanwhile. */
const PER = 10_000_000

/** What every limiter promises. `limiters` share their places, each as a process of its own has it. */
function limiterConformance (t: Test, limiters: Limiter[]): void {
  const [limiter] = limiters as [Limiter]
  const window = (wait: number): number => Math.ceil(wait / PER)

  t.test('the first max places are free, each further one waits for the place that many before it', async (t) => {
    const windows: number[] = []
    for (let i = 0; i < 10; i++) windows.push(window(await limiter.reserve('in turn', 3, PER)))
    t.strictSame(windows, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3])
  })

  t.test('a wait is a whole number of milliseconds, and no longer than needed', async (t) => {
    const started = Date.now()
    const first = await limiter.reserve('exact', 1, PER)
    const second = await limiter.reserve('exact', 1, PER)
    const took = Date.now() - started + 1
    t.equal(first, 0)
    t.ok(Number.isInteger(second) && second <= PER && second >= PER - took, `${second} of ${PER} after ${took} ms`)
  })

  t.test('E15: many at once from several connections get exactly max places of each window', async (t) => {
    for (const max of [1, 7]) {
      const waits = await Promise.all(Array.from({ length: 210 }, (_, i) => limiters[i % limiters.length]!.reserve(`rush ${max}`, max, PER)))
      const taken = new Map<number, number>()
      for (const wait of waits) taken.set(window(wait), (taken.get(window(wait)) ?? 0) + 1)
      t.strictSame([...taken].sort(([a], [b]) => a - b), Array.from({ length: 210 / max }, (_, i) => [i, max]), `${max} in each`)
    }
  })

  t.test('who has a place keeps it however late it comes, and no more than max begin within any window all the same', async (t) => {
    for (let i = 0; i < 6; i++) await limiter.reserve('late', 2, PER)
    t.ok(await limiter.reserve('late', 2, PER, true) > 0, 'two have begun: nobody else does, whatever its clock says')
    // 200 ms long, so that six places are gone when all six come at once.
    const waits = await Promise.all(Array.from({ length: 6 }, () => limiter.reserve('burst', 2, 200)))
    t.strictSame(waits.map((wait) => Math.ceil(wait / 200)), [0, 0, 1, 1, 2, 2])
    await new Promise((resolve) => { setTimeout(resolve, 650) })
    const held = await Promise.all(waits.map((_, i) => limiters[i % limiters.length]!.reserve('burst', 2, 200, true)))
    t.equal(held.filter((wait) => wait === 0).length, 2, 'the first two begin')
    t.ok(held.filter((wait) => wait > 0).every((wait) => wait <= 200), 'the others soon after')
  })

  t.test('first come first served: who asks later begins later, on the same connection and after an answer on another', async (t) => {
    const order: number[] = []
    for (let i = 0; i < 20; i++) {
      const asked = limiters[i % limiters.length]!
      order.push(...await Promise.all(Array.from({ length: 5 }, () => asked.reserve('queue', 1, PER))))
    }
    t.strictSame(order.map(window), Array.from({ length: 100 }, (_, i) => i))
  })

  t.test('names have nothing to do with each other, whatever characters they hold', async (t) => {
    for (const plain of ['a', 'b', 'a:b', '{a}', '}', '', ' \u{1f600}\n', 'x'.repeat(500)]) {
      t.equal(await limiter.reserve(`own ${plain}`, 1, PER), 0, JSON.stringify(plain.slice(0, 9)))
      t.equal(window(await limiter.reserve(`own ${plain}`, 1, PER)), 1)
    }
  })

  t.test('a changed limit is kept from the next place on', async (t) => {
    for (let i = 0; i < 3; i++) t.equal(await limiter.reserve('changed', 3, PER), 0)
    t.equal(window(await limiter.reserve('changed', 1, 2 * PER)), 2, 'a stricter one counts what has begun')
    t.equal(window(await limiter.reserve('changed', 2, PER)), 2, 'a looser one does not overtake who waits')
    t.equal(window(await limiter.reserve('changed', 2, PER)), 3)
  })

  t.test('10,000 places are kept', async (t) => {
    const thousand = async (): Promise<number> => Math.max(...await Promise.all(Array.from({ length: 1000 }, () => limiter.reserve('wide', 10_000, PER))))
    for (let i = 0; i < 10; i++) t.equal(await thousand(), 0)
    t.equal(window(await thousand()), 1)
  })
}

t.test('memory', async (t) => {
  const limiter = createMemoryLimiter()
  limiterConformance(t, [limiter, limiter])

  t.test('never more than max begin within any perMs, in order, and no place is given away, however the clock goes', async () => {
    const steps = fc.array(fc.integer({ min: -3, max: 20 }), { minLength: 1, maxLength: 200 })
    await fc.assert(fc.asyncProperty(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 1, max: 30 }), steps, async (max, perMs, waits) => {
      let now = 1000
      const limiter = createMemoryLimiter({ now: () => now })
      const places: number[] = []
      for (const step of waits) {
        now += step
        const place = now + await limiter.reserve('x', max, perMs)
        const [before, freed] = [places.at(-1) ?? now, (places.at(-max) ?? -Infinity) + perMs]
        if (place !== Math.max(now, before, freed)) return false
        places.push(place)
      }
      return true
    }))
  })
})

t.test('Redis', async (t) => {
  const { url, prefix } = await testRedis(t)
  const { limiters, keys, command } = await onRedis(t, url, prefix)
  limiterConformance(t, limiters)

  t.test('never more than max begin within any perMs to the microsecond of its clock, while time goes on', async (t) => {
    const [limiter] = limiters as [Limiter]
    for (const [max, perMs] of [[1, 1], [5, 3], [7, 20]] as const) {
      const name = `exact ${max}`
      let places: number[] = []
      let seen = 0
      for (let i = 0; i < 300; i++) {
        const [seconds, micros] = await command.time()
        const wait = await limiter.reserve(name, max, perMs)
        const stored = await command.lindex(keys.limit(name), -1)
        if (stored === null) {
          // The machine stood still for so long that the window has passed: nothing binds the next place.
          places = []
          continue
        }
        const place = Number(stored)
        const [freed, before] = [(places.at(-max) ?? -Infinity) + perMs * 1000, places.at(-1) ?? -Infinity]
        if (place < freed || place < before) t.fail(`place ${i} of ${max} in ${perMs} ms`, { place, freed, before })
        if (place < Number(seconds) * 1e6 + Number(micros) + wait * 1000) t.fail(`place ${i} is remembered as earlier than it is`, { wait, place })
        if (wait > 0 && place - Math.max(freed, before) >= 1000) t.fail(`place ${i} waits longer than needed`, { wait, place, freed, before })
        places.push(place)
        seen++
        // Lets the queue run empty now and then, so that free places, waits and expired lists take turns.
        if (i % 60 === 59) while (await command.exists(keys.limit(name)) === 1) await command.ping()
      }
      t.ok(seen > 0, `${seen} places of ${max} in ${perMs} ms`)
    }
  })

  t.test('what a name leaves is one list of at most max places, gone when its last window has passed', async (t) => {
    const [limiter] = limiters as [Limiter]
    for (let i = 0; i < 10; i++) await limiter.reserve('tidy', 4, 60_000)
    t.equal(await command.llen(keys.limit('tidy')), 4)
    const left = await command.pttl(keys.limit('tidy'))
    t.ok(left > 2 * 60_000 && left <= 3 * 60_000 + 1, `${left} ms: two windows of waiting and one of remembering`)
    await limiter.reserve('brief', 1, 1)
    while (await command.exists(keys.limit('brief')) === 1) await command.ping()
    t.equal(await limiter.reserve('brief', 1, 1), 0)
  })

  t.test('a place far in the future is kept as exactly as one now', async (t) => {
    const day = 86_400_000
    const [limiter] = limiters as [Limiter]
    const waits = await Promise.all(Array.from({ length: 1000 }, () => limiter.reserve('far', 1, day)))
    t.strictSame(waits.map((wait) => Math.ceil(wait / day)), waits.map((_, i) => i))
    for (const place of await command.lrange(keys.limit('far'), 0, -1)) t.match(place, /^\d{16,17}$/)
  })

  t.test('F67: a script that the server has forgotten is sent again', async (t) => {
    await (command as Redis).script('FLUSH')
    t.equal(await limiters[0]!.reserve('flushed', 1, PER), 0)
  })
})

t.test('Redis Cluster', async (t) => {
  const { url } = await privateRedis(t, { cluster: true })
  const { limiters } = await onRedis(t, url, 'il')
  limiterConformance(t, limiters)
})

/** Three limiters, each on a connection of its own, as three processes have them. */
async function onRedis (t: Test, url: string, prefix: string): Promise<{ limiters: Limiter[], keys: Keys, command: Connection }> {
  const keys = createKeys(prefix, 16)
  const connections = Array.from({ length: 3 }, () => connectRedis(url, 'command', silent))
  t.teardown(() => Promise.all(connections.map(closeRedis)))
  await Promise.all(connections.map(whenReady))
  return { limiters: connections.map((connection) => createRedisLimiter(connection, keys)), keys, command: connections[0]! }
}
