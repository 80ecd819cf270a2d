import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { closeRedis, connectRedis, whenReady } from '../../src/redis/connect.js'
import { createKeys } from '../../src/store/keys.js'
import { createRedisStore } from '../../src/store/redis-store.js'
import { redisProxy, type RedisAct, type RedisProxy } from '../support/redis-proxy.js'
import { silent, testRedis } from '../support/redis.js'
import { commandOf } from '../support/resp.js'

/** A client behind a proxy, one that sees Redis as it is, and a key. */
async function bench (t: Test): Promise<{ proxy: RedisProxy, client: Redis, direct: Redis, key: string, prefix: string }> {
  const { url, prefix } = await testRedis(t)
  const proxy = await redisProxy(t, url)
  const [client, direct] = [new Redis(proxy.url, { maxRetriesPerRequest: null, retryStrategy: () => 10 }), new Redis(url)]
  client.on('error', () => {})
  t.teardown(() => { for (const one of [client, direct]) one.disconnect() })
  await Promise.all([client.ping(), direct.ping()])
  return { proxy, client, direct, key: `${prefix}:n`, prefix }
}

/** What has been decided before all that could change it has been heard. */
const state = async (promise: Promise<unknown>): Promise<'open' | 'settled'> => {
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve))
  return await Promise.race([promise.then(() => 'settled' as const, () => 'settled' as const), Promise.resolve('open' as const)])
}

void t.test('without rules the proxy is not there: pipelines, transactions, large and odd values, scripts, subscriptions', async (t) => {
  const { proxy, client, direct, key } = await bench(t)
  const large = 'x'.repeat(5_000_000)
  const odd = 'a\r\n*1\r\n$3\r\n\u0000ß😀'
  t.same(await client.pipeline().set(key, large).get(key).set(key, odd).get(key).hset(`${key}h`, 'f', '').hgetall(`${key}h`).exec(), [[null, 'OK'], [null, large], [null, 'OK'], [null, odd], [null, 1], [null, { f: '' }]])
  t.same(await client.multi().incr(`${key}i`).llen(`${key}none`).get(`${key}none`).exec(), [[null, 1], [null, 0], [null, null]])
  t.same(await client.eval('return { 1, { "a", false }, KEYS[1] }', 1, key), [1, ['a', null], key])
  await t.rejects(client.call('NOSUCH'), /unknown command/)
  const subscriber = client.duplicate()
  const heard: string[] = []
  subscriber.on('message', (channel, message) => heard.push(`${channel} ${message}`))
  await subscriber.subscribe(`${key}a`, `${key}b`)
  for (const channel of ['a', 'b', 'a']) await direct.publish(`${key}${channel}`, channel)
  await subscriber.unsubscribe(`${key}a`)
  await direct.publish(`${key}a`, 'nobody')
  await subscriber.ping()
  t.same(heard, [`${key}a a`, `${key}b b`, `${key}a a`])
  subscriber.disconnect()
  t.match(proxy.seen(), { SET: 2, EVAL: 1, SUBSCRIBE: 1 })
})

const acts: [RedisAct, { done: boolean, then: string }][] = [
  ['unsent', { done: false, then: 'is sent' }], ['unanswered', { done: true, then: 'is answered' }], ['refused', { done: false, then: 'is sent again' }], ['lost', { done: true, then: 'is sent again' }],
  ['late', { done: false, then: 'is sent' }], ['answered-late', { done: true, then: 'is answered' }]
]
for (const [act, { done, then }] of acts) {
  void t.test(`${act}: the second command that fits is ${done ? '' : 'not '}carried out, and ${then} in the end`, async (t) => {
    const { proxy, client, direct, key } = await bench(t)
    const rule = proxy.on({ match: { command: 'INCR', key }, nth: 2, act })
    t.equal(await client.incr(key), 1)
    await client.incr('other'.padEnd(20, key))
    const second = client.incr(key)
    second.catch(() => {})
    t.match(await rule.fired, { name: 'INCR', keys: [key] })
    // A command that was lost may be sent again at once.
    if (act !== 'lost' && act !== 'refused') {
      t.equal(await direct.get(key), done ? '2' : '1')
      t.equal(await state(second), 'open')
    }
    rule.release()
    t.equal(await second, act === 'lost' ? 3 : 2, then)
    t.equal(await client.incr(key), act === 'lost' ? 4 : 3, 'a rule fires once')
  })
}

void t.test('whoever is killed at a command that is held has not sent it, nor anything behind it; what came before is done', async (t) => {
  const { proxy, client, direct, key } = await bench(t)
  for (const [act, expected] of [['unsent', '1'], ['unanswered', '2']] as const) {
    await direct.del(key)
    let killed = 0
    proxy.victim(() => {
      killed++
      client.disconnect(true) // as the death of its process, but it lives again
    })
    const rule = proxy.on({ match: { command: 'INCR' }, nth: 2, act, kill: true })
    const pipeline = client.pipeline().incr(key).incr(key).incr(key).exec()
    pipeline.catch(() => {})
    const open = proxy.connections()
    t.equal(open, 1)
    await rule.fired
    t.equal(killed, 1)
    t.equal(await direct.get(key), expected)
    rule.release()
    await client.ping()
    await pipeline
  }
})

void t.test('a black hole holds what is sent, both ways or one, until it is healed', async (t) => {
  const { proxy, client, direct, key } = await bench(t)
  for (const [way, seen] of [['both', null], ['requests', null], ['replies', '1']] as const) {
    await direct.del(key)
    proxy.blackhole(way)
    const answer = client.incr(key)
    // Redis has it before whatever is asked after a connection of its own was answered.
    if (seen !== null) while (await direct.get(key) !== seen) await new Promise((resolve) => setImmediate(resolve))
    t.equal(await direct.get(key), seen, way)
    t.equal(await state(answer), 'open')
    proxy.heal()
    t.equal(await answer, 1)
  }
})

void t.test('what was sent into a black hole arrives also when its sender has gone', async (t) => {
  const { proxy, client, direct, key } = await bench(t)
  proxy.blackhole()
  client.incr(key).catch(() => {})
  while (proxy.seen().INCR !== 1) await new Promise((resolve) => setImmediate(resolve))
  client.disconnect()
  t.equal(await direct.get(key), null)
  proxy.heal()
  while (await direct.get(key) !== '1') await new Promise((resolve) => setImmediate(resolve))
  t.pass('late')
})

void t.test('connections are reset, and their commands sent again', async (t) => {
  const { proxy, client, key } = await bench(t)
  proxy.blackhole('replies')
  const answer = client.incr(key)
  while (proxy.seen().INCR !== 1) await new Promise((resolve) => setImmediate(resolve))
  proxy.reset()
  proxy.heal()
  t.ok([1, 2].includes(await answer), 'by then it may have been carried out once already')
  t.equal(proxy.connections(), 1)
})

void t.test('scripts are known by name, also when Redis does not know them yet', async (t) => {
  const { proxy, direct, prefix } = await bench(t)
  const connection = connectRedis(proxy.url, 'command', silent)
  t.teardown(() => closeRedis(connection))
  await whenReady(connection)
  const keys = createKeys(prefix, 1)
  const store = createRedisStore(connection, connection, keys)
  await direct.script('FLUSH')
  const rule = proxy.on({ match: { script: 'take-due', key: keys.due(0) }, act: 'lost' })
  await direct.zadd(keys.due(0), 1, 'a')
  t.same(await store.takeDue(2, 3, 10), [], 'taken by the first time it was sent')
  t.match(await rule.fired, { name: 'EVAL', script: 'take-due' })
  t.equal(await direct.zscore(keys.due(0), 'a'), '3')
})

void t.test('a script is known by its name, also by one who has never seen its source, and whatever stands in front of it', async (t) => {
  const { proxy, direct, prefix } = await bench(t)
  const lua = join(import.meta.dirname, '../../src/store/lua')
  const [epoch, commit, load] = ['epoch', 'commit', 'load'].map((name) => readFileSync(join(lua, `${name}.lua`), 'utf8')) as [string, string, string]
  const connection = connectRedis(proxy.url, 'command', silent)
  t.teardown(() => closeRedis(connection))
  await whenReady(connection)
  // Redis has it from somebody else.
  await direct.script('LOAD', epoch + load)
  await createRedisStore(connection, connection, createKeys(prefix, 1)).load('c')
  t.match(proxy.seen(), { load: 1 })
  t.equal(commandOf(Buffer.from(request('EVAL', `-- changed\n${epoch}${commit}`, '0'))).script, 'commit')
})

const request = (...args: string[]): string => `*${args.length}\r\n${args.map((arg) => `$${Buffer.byteLength(arg)}\r\n${arg}\r\n`).join('')}`
