import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { createLeases } from '../../src/engine/lease.js'
import { closeRedis, connectRedis, whenReady } from '../../src/redis/connect.js'
import { createKeys } from '../../src/store/keys.js'
import { privateRedis } from '../support/redis.js'

const keys = createKeys('il', 16)
const key = keys.lock('c')
const TTL = 3000

async function lease (t: Test) {
  const server = await privateRedis(t)
  const said: string[] = []
  const log = { debug: () => {}, info: () => {}, error: () => {}, warn: (_: unknown, text: string) => { said.push(text) } }
  const [connection, direct] = [connectRedis(server.url, 'lock', log as never), new Redis(server.url)]
  t.teardown(() => Promise.all([closeRedis(connection), direct.quit()]))
  await whenReady(connection)
  const leases = createLeases(connection, keys, TTL, log as never)
  const held = await leases.acquire('c')
  if (held === null) throw new Error('it is free')
  const begun = performance.now()
  const lost = new Promise<number>((resolve) => held.signal.addEventListener('abort', () => resolve(performance.now() - begun)))
  return { server, direct, leases, held, lost, said, value: await direct.get(key) }
}

t.test('B6: a Redis that is frozen over a renewal takes nothing away: it is held on, under the same value, and renewed', async (t) => {
  const { server, direct, held, leases, value } = await lease(t)
  await sleep(800)
  server.pause()
  // The renewal at 1 s is given up after 0.7 s, and so are those that follow it.
  await sleep(1500)
  server.resume()
  await sleep(TTL)
  t.equal(held.signal.aborted, false)
  t.equal(await direct.get(key), value)
  t.ok(await direct.pttl(key) > TTL / 2, 'it is renewed')
  t.equal(await leases.acquire('c'), null)
  held.release()
  while (await direct.exists(key) === 1) await sleep(10)
})

t.test('B6: who may have lost it is told: at once when it is another\'s, at its end when nobody answers', async (t) => {
  const taken = await lease(t)
  await taken.direct.set(key, 'another')
  t.ok(await taken.lost < TTL, 'at the next renewal')
  taken.held.release()
  t.equal(await taken.direct.get(key), 'another', 'and leaves the other one alone')

  const away = await lease(t)
  away.server.pause()
  const ms = await away.lost
  t.ok(ms >= TTL * 0.9 && ms < TTL + 500, `${Math.round(ms)} ms`)
  away.server.resume()
  away.held.release()
  t.ok(taken.said.includes('lease lost') && away.said.includes('lease lost'))
})
