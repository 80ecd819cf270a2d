/*
 * The fault matrix (docs/fault-matrix.md), F64 to F72 without what a lost or rolled back Redis does: Redis cut off, slow, frozen, full, without
 * its scripts or its queue, and clocks that are wrong.
 */
import { execFile } from 'node:child_process'
import { mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { promisify } from 'node:util'
import { Queue } from 'bullmq'
import { Redis } from 'ioredis'
import root, { type Test } from 'tap'
import type { CreateRun } from '../../src/schemas/run.js'
import { QUEUE } from '../../src/queue/queue.js'
import { createClient, problemIn, type Client } from '../support/client.js'
import { API, SHORT, WORKER } from '../support/death.js'
import { call, delayed, latch, say } from '../support/model-reply.js'
import { redisProxy } from '../support/redis-proxy.js'
import { many } from '../support/tool-calls.js'
import { story, type World } from '../support/world.js'

root.setTimeout(600_000)

const range = (n: number) => Array.from({ length: n }, (_, i) => i)

/** A connection for what a test does to Redis itself. */
function admin (t: Test, { redis }: World): Redis {
  const connection = new Redis(redis.url, { maxRetriesPerRequest: null })
  connection.on('error', () => { /* it is what is tested */ })
  t.teardown(() => connection.disconnect())
  return connection
}

/** Runs of three turns with two calls each that may not be repeated. */
const TURNS = 3
function load ({ model, tool }: World): (i: number) => CreateRun {
  model.otherwise(({ n }) => n < TURNS ? call(...many(2, 'sleep', (i) => ({ ms: 20 * i, value: i }), `${n}c`)) : say('done'))
  return (i) => ({ input: `conv:${i}`, tools: [tool('sleep')] })
}

/** Nothing was paid for or carried out twice. */
async function whole (t: Test, { model, tools }: World, client: Client, ids: string[]): Promise<void> {
  // `usage.llm_calls` also counts a turn that was claimed and came to no request, because its lock could not be had.
  for (const id of ids) t.match(await client.ended(id), { status: 'completed', output: 'done', usage: { tool_calls: 2 * (TURNS - 1) } })
  t.equal(model.requests().length, TURNS * ids.length, 'each LLM call once')
  t.equal(tools.count(), 2 * (TURNS - 1) * ids.length, 'each tool call once')
}

for (const way of ['both', 'requests', 'replies'] as const) {
  story(`F65: a worker cut off from Redis (${way}) in an LLM call: it gives the call up, another goes on, and what it says when it is back changes nothing`, async (t, { model, service, process, redis }) => {
    const proxy = await redisProxy(t, redis.url)
    const [lost, { client }] = await Promise.all([process('worker', { REDIS_URL: proxy.url }), service(API)])
    const gate = latch()
    model.script('conv:a', ({ n }) => n === 1 ? delayed(say('never'), latch()) : delayed(say('kept'), gate))
    const run = await client.start({ input: 'conv:a' })
    const stream = await client.follow(run)
    const first = await model.waitForRequest(() => true)
    await service(WORKER)
    proxy.blackhole(way)
    t.equal((await first.ended).aborted, true, 'closed by us: who cannot renew its lock has lost it')
    await model.waitForRequest(({ n }) => n === 2, 30_000)
    proxy.heal()
    proxy.reset()
    // It is back when it is ready, and has said what it had to say.
    while ((await lost.client.request('GET', '/health/ready')).status !== 200) await sleep(20)
    gate.open()
    await stream.ended
    t.match(await client.run(run.id), { status: 'completed', output: 'kept' })
    // Where its words still arrive, it has put the turn back and taken it again, without hearing that it has.
    const types = stream.types().filter((type, i, all) => type !== 'turn.retrying' || all[i - 1] !== type)
    t.same(types, ['run.created', 'run.started', 'turn.started', 'turn.retrying', 'turn.completed', 'run.completed'])
    t.equal(model.requests().length, 2)
  }, { env: SHORT, long: way !== 'both' })
}

for (const [what, stop] of [
  ['frozen', async ({ server }: World) => {
    server?.pause()
    await sleep(3000)
    server?.resume()
  }],
  ['paused by CLIENT PAUSE', async (_: World, redis: Redis) => {
    await redis.call('CLIENT', 'PAUSE', '3000', 'ALL')
    await redis.ping()
  }]
] as const) {
  story(`F66: Redis ${what} for three seconds under load: 503 meanwhile, then all goes on, and nothing is done twice`, async (t, world) => {
    const body = load(world)
    const [api] = await Promise.all([world.process('api'), world.process('worker')])
    const redis = admin(t, world)
    const runs = await Promise.all(range(8).map((i) => api.client.start(body(i))))
    await world.tools.waitFor((attempts) => attempts.length >= 4)
    const stopped = stop(world, redis)
    await sleep(50)
    const asked = performance.now()
    const answer = await api.client.request('POST', '/runs', { body: body(99), headers: { 'idempotency-key': 'meanwhile' } })
    t.ok(performance.now() - asked < 2000, 'in a second, and one more for a busy machine')
    t.match(problemIn(answer), { status: 503, code: 'unavailable', retryable: true })
    await stopped
    // What was answered 503 has been done, or is done now: its key makes it one.
    const { text } = await world.watch(createClient(api.url, { patient: true })).request('POST', '/runs', { body: body(99), headers: { 'idempotency-key': 'meanwhile' } })
    await whole(t, world, api.client, [...runs.map(({ id }) => id), (JSON.parse(text) as { id: string }).id])
  }, { ownRedis: true, except: ['deltas'], long: what !== 'frozen' })
}

story('F66: each command to Redis takes 200 ms more: all is slower, and nothing is done twice', async (t, world) => {
  const body = load(world)
  const proxy = await redisProxy(t, world.redis.url)
  const [{ client }] = await Promise.all([world.service(API), world.process('worker', { REDIS_URL: proxy.url })])
  proxy.slow(200)
  const runs = await Promise.all(range(4).map((i) => client.start(body(i))))
  await whole(t, world, client, runs.map(({ id }) => id))
}, { long: true })

story('F66: what is large takes longer over a narrow line to Redis than a command may: it arrives, once, and so does what readers ask for', async (t, world) => {
  const { model, process, service, tool, tools, redis } = world
  const proxies = await Promise.all([redisProxy(t, redis.url), redisProxy(t, redis.url)])
  const [near, far] = await Promise.all([service(API), process('api', { REDIS_URL: proxies[0].url }), process('worker', { REDIS_URL: proxies[1].url })])
  for (const proxy of proxies) proxy.narrow(3_000)
  const value = 'x'.repeat(900_000)
  model.script('conv:large', [call(...many(2, 'echo', (i) => ({ value: `${i}${value}` }))), say('done')])
  model.script('conv:small', [call({ id: 'c', name: 'echo', arguments: { value: 1 } }), say('done')])
  const large = await near.client.start({ input: 'conv:large', tools: [tool('echo')], limits: { max_result_chars: 1_000_000 } })
  await tools.waitFor((attempts) => attempts.length === 2)
  const small = await near.client.start({ input: 'conv:small', tools: [tool('echo')] })
  for (const run of [small, large]) t.match(await near.client.ended(run), { status: 'completed', output: 'done', usage: { tool_calls: run === large ? 2 : 1 } })
  t.same([model.requests().length, tools.count()], [4, 3], 'nothing was repeated')
  const stream = await far.client.follow(large)
  await stream.ended
  t.same(stream.types().at(-1), 'run.completed')
})

story('F67: scripts flushed and all clients killed every 100 ms under load: it takes longer, and nothing is lost or carried out twice', async (t, world) => {
  const body = load(world)
  const [api] = await Promise.all([world.process('api'), world.process('worker')])
  const client = world.watch(createClient(api.url, { patient: true }))
  const redis = admin(t, world)
  let over = false
  const storm = (async () => {
    for (let n = 0; !over; n++) {
      await redis.script('FLUSH')
      await redis.call('CLIENT', 'KILL', 'TYPE', n % 2 === 0 ? 'normal' : 'pubsub', 'SKIPME', 'yes')
      await sleep(100)
    }
    return true
  })()
  const ids: string[] = []
  for (const i of range(15)) ids.push((await client.start(body(i))).id)
  for (const id of ids) t.match(await client.ended(id), { status: 'completed', output: 'done' })
  over = true
  await storm
  t.equal(world.tools.count(), 2 * (TURNS - 1) * ids.length, 'each tool call once')
}, { ownRedis: true, except: ['deltas'], long: true })

/** Makes Redis refuse writes, and takes it back. */
const refusals: Record<string, (redis: Redis) => Promise<() => Promise<unknown>>> = {
  'maxmemory reached': async (redis) => {
    await redis.config('SET', 'maxmemory', '1')
    return () => redis.config('SET', 'maxmemory', '0')
  },
  'too few replicas (NOREPLICAS)': async (redis) => {
    await redis.config('SET', 'min-replicas-to-write', '1')
    return () => redis.config('SET', 'min-replicas-to-write', '0')
  },
  'a disk that is full (MISCONF)': async (redis) => {
    // As on a full disk, not a byte more can be written to any of its files.
    const limit = async (bytes: string) => promisify(execFile)('prlimit', ['--pid', /process_id:(\d+)/.exec(await redis.info('server'))?.[1] ?? '', `--fsize=${bytes}:`])
    await limit('1')
    while (!/aof_last_write_status:err/.test(await redis.info('persistence'))) await redis.incr('{filler}').catch(() => {})
    return async () => {
      await limit('unlimited')
      while (!/aof_last_write_status:ok/.test(await redis.info('persistence'))) await sleep(20)
      await redis.del('{filler}')
    }
  },
  'a snapshot that cannot be written (MISCONF)': async (redis) => {
    // A folder stands where the snapshot is to be written.
    const [, dir] = await redis.config('GET', 'dir') as [string, string]
    const block = join(dir, 'dump.rdb')
    mkdirSync(join(block, 'in-the-way'), { recursive: true })
    await redis.config('SET', 'save', '86400 1')
    await redis.bgsave()
    while (!/rdb_last_bgsave_status:err/.test(await redis.info('persistence'))) await sleep(20)
    return async () => {
      rmSync(block, { recursive: true })
      await redis.bgsave()
      while (!/rdb_last_bgsave_status:ok/.test(await redis.info('persistence'))) await sleep(20)
    }
  }
}

for (const [what, refuse] of Object.entries(refusals)) {
  story(`F68: ${what}: writes are answered 503 and leave nothing behind, reads go on, and work under way is stored when it can be`, async (t, world) => {
    const { model, tools, process, tool } = world
    const { client, url } = await process('all')
    const redis = admin(t, world)
    const gate = latch()
    model.script('conv:a', [delayed(call({ id: 'c', name: 'echo', arguments: { value: 1 } }), gate), say('done')])
    model.script('conv:b', [say('later')])
    const run = await client.start({ input: 'conv:a', tools: [tool('echo')] })
    const request = await model.waitForRequest(() => true)
    const heal = await refuse(redis)
    const post = { body: { input: 'conv:b' }, headers: { 'idempotency-key': 'key' } }
    t.match(problemIn(await client.request('POST', '/runs', post)), { status: 503, code: 'unavailable', retryable: true })
    t.same((await client.get<{ data: { id: string }[] }>('/runs')).data.map(({ id }) => id), [run.id], 'reads go on')
    gate.open()
    await request.ended
    t.equal(tools.count(), 0, 'what is not stored is not done')
    await heal()
    t.match(await client.ended(run), { output: 'done' })
    const { text } = await world.watch(createClient(url, { patient: true })).request('POST', '/runs', post)
    t.equal((await client.ended((JSON.parse(text) as { id: string }).id)).output, 'later')
    t.equal((await client.get<{ data: object[] }>('/runs')).data.length, 2)
    t.equal(model.requests().length, 3)
    t.equal((await client.request('GET', '/health/ready')).status, 200)
  }, { ownRedis: true, except: ['deltas'] })
}

story('F70: all keys of the queue deleted under load, and foreign jobs put into it: all runs complete, the foreign jobs do nothing', async (t, world) => {
  const body = load(world)
  const { client } = await world.service(API)
  const redis = admin(t, world)
  const prefix = `{${world.redis.prefix}-queue}`
  const drop = async () => {
    const keys = await redis.keys(`${prefix}*`)
    if (keys.length > 0) await redis.unlink(keys)
    return keys.length
  }
  // First with nobody to take the jobs, so that they are certainly lost.
  const runs = await Promise.all(range(4).map((i) => client.start(body(i))))
  while (await drop() === 0) await sleep(5)
  const worker = await world.process('worker')
  for (const { id } of runs) t.equal((await client.ended(id)).status, 'completed')
  // Then in the midst of the work.
  const more = await Promise.all(range(8).map((i) => client.start(body(10 + i))))
  for (let n = 0; n < 5; n++) {
    await drop()
    await sleep(30)
  }
  const queue = new Queue(QUEUE, { connection: redis, prefix })
  const before = (await client.get<{ data: object[] }>('/runs')).data.length
  await queue.addBulk([null, {}, { conversation: 7 }, { conversation: 'conv_01ARZ3NDEKTSV4RRFFQ69G5FAV' }, { conversation: '../etc' }].map((data) => ({ name: 'foreign', data, opts: { attempts: 1 } })))
  await whole(t, world, client, [...runs, ...more].map(({ id }) => id))
  for (let left = 1; left > 0;) {
    const counts = await queue.getJobCounts('waiting', 'active')
    left = (counts.waiting ?? 0) + (counts.active ?? 0)
    await sleep(20)
  }
  await queue.close()
  t.equal((await client.get<{ data: object[] }>('/runs')).data.length, before)
  t.match(worker.logs.join('\n'), /job failed/, 'what is no job of ours is logged')
  t.equal((await worker.client.request('GET', '/health/ready')).status, 200)
}, { env: SHORT })
