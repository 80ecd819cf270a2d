import t from 'tap'
import type { Base, Signal } from '../../src/store/store.js'
import { redisBench } from '../support/redis-bench.js'
import { redisProxy } from '../support/redis-proxy.js'
import { privateRedis, testRedis } from '../support/redis.js'
import { commitOf, eventOf, stateOf, stored, storeConformance } from '../support/store-conformance.js'

const { url, prefix } = await testRedis(t)
const bench = await redisBench(t, url, prefix, [url])
const { store, keys, nodes: [redis] } = bench

storeConformance(t, bench)

t.test('F67: scripts that the server has forgotten are sent again', async (t) => {
  t.teardown(() => store.remove('flushed'))
  await redis?.script('FLUSH')
  t.match(await store.commit(commitOf('flushed', null, { token: 'a'.repeat(26), state: stateOf('flushed', { fence: 1 }), due: 1 })), { status: 'committed', born: 'a'.repeat(26), version: 1 })
  await redis?.script('FLUSH')
  t.equal(await store.append('flushed', 1, { run_id: 'r', turn: 1, attempt: 1, lane: 'main', offset: 0, byte: 0, text: 'x' }), true)
  await redis?.script('FLUSH')
  await store.postpone('flushed', { born: 'a'.repeat(26), token: 'a'.repeat(26) }, 2)
  t.same(await store.takeDue(2, 3, 16), ['flushed'])
  await redis?.script('FLUSH')
  t.equal(await store.remove('flushed'), true)
})

t.test('I20: an idle conversation has four keys, however much has happened in it', async (t) => {
  t.teardown(() => store.remove('tidy'))
  let base: Base | null = null
  for (let i = 0; i < 40; i++) {
    const state = stateOf('tidy', i % 2 === 0 ? { fence: i + 1 } : {})
    base = await stored(store, commitOf('tidy', base, {
      state, messages: [['1']], events: [eventOf('tidy', i + 1)], docs: [{ name: `${i}`, value: '1' }], due: i
    }))
    if (i % 2 === 0) await store.append('tidy', i + 1, { run_id: 'r', turn: 1, attempt: 1, lane: 'main', offset: 0, byte: 0, text: 'x' })
  }
  await store.commit(commitOf('tidy', base))
  t.same((await bench.leftovers('tidy')).sort(), [keys.row('tidy'), keys.docs('tidy'), keys.events('tidy'), keys.messages('tidy')].sort())
  t.equal((await redis?.hget(keys.row('tidy'), 'tokens') ?? '').split(' ').length, 32, 'and its tokens are bounded')
})

t.test('F66: over a narrow line what is large takes the time it takes, and keeps nothing else waiting', async (t) => {
  const proxy = await redisProxy(t, url)
  const { store } = await redisBench(t, proxy.url, `${prefix}:narrow`, [url])
  t.teardown(() => store.remove('large'))
  const base = await stored(store, commitOf('large', null, { state: stateOf('large', { fence: 1 }) }))
  proxy.narrow(1_000)
  const order: string[] = []
  await Promise.all([
    store.commit(commitOf('large', base, { docs: [{ name: 'd', value: 'x'.repeat(1_200_000) }] })).then(({ status }) => order.push(status)),
    store.load('large').then((row) => order.push(`version ${row?.version}`))
  ])
  t.same(order, ['version 1', 'committed'])
})

t.test('P10: a reader whose connection was gone is told of the gap, and hears what comes after it', async (t) => {
  // A server of its own: every reader's connection will be cut.
  const { url } = await privateRedis(t)
  const { store, feed, nodes: [redis] } = await redisBench(t, url, 'il', [url])
  const heard: Signal[] = []
  let wake = () => { /* nobody waits */ }
  t.teardown(await feed.subscribe('gap', (signal) => {
    heard.push(signal)
    wake()
  }))
  const next = () => new Promise<void>((resolve) => { wake = resolve })
  const gap = next()
  await redis?.call('CLIENT', 'KILL', 'TYPE', 'pubsub')
  await store.commit(commitOf('gap', null, { token: 'b'.repeat(26), events: [eventOf('gap', 1)] }))
  await gap
  t.same(heard, [{ kind: 'gap' }])
  const events = next()
  await store.commit(commitOf('gap', { born: 'b'.repeat(26), version: 1, token: 'b'.repeat(26) }, { events: [eventOf('gap', 2)] }))
  await events
  t.match(heard, [{ kind: 'gap' }, { kind: 'events', events: [{ seq: 2 }] }])
})

t.test('FAULTS F71: that everything is gone is seen by whoever had seen it, also when another process writes first', async (t) => {
  const { url } = await privateRedis(t)
  const [first, second] = await Promise.all([redisBench(t, url, 'il', [url]), redisBench(t, url, 'il', [url])])
  await stored(first.store, commitOf('mine', null, { events: [eventOf('mine', 1)] }))
  await first.command.flushall()
  const base = await stored(second.store, commitOf('mine', null, { events: [eventOf('mine', 1)] }))
  t.equal((await second.store.load('mine'))?.epoch, 1, 'who has seen nothing of it cannot know')
  const epoch = (await first.store.load('mine'))?.epoch ?? 0
  t.ok(epoch > 1)
  t.match(await second.store.commit(commitOf('mine', base, { events: [eventOf('mine', 2)] })), { status: 'committed', epoch }, 'and so does the other one, once')
  t.equal((await first.store.load('mine'))?.epoch, epoch)
})
