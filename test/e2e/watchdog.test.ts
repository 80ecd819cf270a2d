import { setTimeout as sleep } from 'node:timers/promises'
import { problemIn, within } from '../support/client.js'
import { delayed, latch, say } from '../support/model-reply.js'
import { redisProxy } from '../support/redis-proxy.js'
import { story } from '../support/world.js'

/** What BullMQ waits for jobs with, over a connection of its own. */
const BLOCKING = 'bzpopmin'
const api = { roles: { api: true, worker: false } }
const told = (logs: string[], words: string) => logs.filter((line) => line.includes(words)).length
const RENEWED = 'opening the connections of the queue again'

story('B7, B8: a worker whose blocking connection is wedged opens its connections anew, and does what waits', async (t, world) => {
  const proxy = await redisProxy(t, world.redis.url)
  const { client } = await world.service(api)
  // A lease so long that no sweep comes to its help: the job must be fetched.
  const worker = await world.process('worker', { REDIS_URL: proxy.url, INTERLOCK_WATCHDOG_MS: '1000', INTERLOCK_LOCK_TTL_MS: '3600000' })
  world.model.script('conv:before', [say('done')])
  t.equal((await client.finish({ input: 'conv:before' })).run.output, 'done')
  await proxy.cut(BLOCKING, 'unsent')
  world.model.script('conv:a', [say('done')])
  t.equal((await client.finish({ input: 'conv:a' })).run.output, 'done')
  t.equal(told(worker.logs, RENEWED), 1)
  world.model.script('conv:b', [say('done')])
  t.equal((await client.finish({ input: 'conv:b' })).run.output, 'done', 'and goes on')
  // The watchdog sees at its next look that things move.
  while ((await worker.client.request('GET', '/health/ready')).status !== 200) await new Promise((resolve) => setTimeout(resolve, 50))
  worker.signal('SIGTERM')
  t.same(await worker.exited, { code: 0, signal: null })
  t.equal(worker.stderr(), '')
}, { except: ['deltas'] })

story('B7, B8: a worker that new connections do not help says so and ends with code 1, and what it could not do is done by the next', async (t, world) => {
  const proxy = await redisProxy(t, world.redis.url)
  const wedged = proxy.swallow(BLOCKING)
  const { client } = await world.service(api)
  const worker = await world.process('worker', { REDIS_URL: proxy.url, INTERLOCK_WATCHDOG_MS: '1000', INTERLOCK_LOCK_TTL_MS: '3600000' })
  await wedged
  // Nor does any connection work that a worker opens from now on.
  void proxy.swallow('interlock-worker')
  world.model.otherwise(() => say('done'))
  const runs = await Promise.all(['conv:a', 'conv:b'].map((input) => client.start({ input })))
  await within(worker.exited.then(({ code }) => t.equal(code, 1)), () => `it goes on: ${worker.logs.join('\n')}`)
  const last = worker.logs.find((line) => line.includes('due work stands still and new connections did not help'))
  t.match(JSON.parse(last ?? '{}'), { level: 60, watchdog_ms: 1000 })
  t.equal(told(worker.logs, RENEWED), 1)
  // That line is what the operator has to see.
  worker.logs.splice(0)
  await world.service({ roles: { api: false, worker: true } })
  for (const run of runs) t.equal((await client.ended(run)).output, 'done')
}, { except: ['deltas'] })

story('N11: the sweep of a worker with room does what nobody fetches: nothing depends on the queue', async (t, world) => {
  const proxy = await redisProxy(t, world.redis.url)
  const wedged = proxy.swallow(BLOCKING)
  const { client } = await world.service(api)
  const worker = await world.process('worker', { REDIS_URL: proxy.url, INTERLOCK_WATCHDOG_MS: '0', INTERLOCK_LOCK_TTL_MS: '1000' })
  await wedged
  world.model.otherwise(() => say('done'))
  const runs = await Promise.all(Array.from({ length: 8 }, (_, i) => client.start({ input: `conv:${i}` })))
  for (const run of runs) t.equal((await client.ended(run)).output, 'done')
  t.equal(told(worker.logs, RENEWED), 0)
})

story('the watchdog lets a worker be that is full of long LLM calls, and one that is idle', async (t, world) => {
  const { client } = await world.service(api)
  const worker = await world.process('worker', { INTERLOCK_WATCHDOG_MS: '300', INTERLOCK_TURN_CONCURRENCY: '1' })
  const gate = latch()
  world.model.otherwise(({ conversation }) => conversation === 'conv:long' ? delayed(say('long'), gate) : say('done'))
  const long = await client.start({ input: 'conv:long' })
  await world.model.waitForRequest(() => true)
  const behind = await client.start({ input: 'conv:behind' })
  // Many times what it would take to end the process.
  await sleep(3000)
  t.equal((await worker.client.request('GET', '/health/ready')).status, 200)
  gate.open()
  for (const run of [long, behind]) await client.ended(run)
  await sleep(1500)
  t.equal(told(worker.logs, RENEWED), 0)
})

story('F66: Redis that does not answer for long is no standstill: the worker waits, says that it is not ready, and goes on', async (t, world) => {
  const worker = await world.process('all', { INTERLOCK_WATCHDOG_MS: '300' })
  world.model.otherwise(() => say('done'))
  world.server?.pause()
  await sleep(4000)
  t.match(problemIn(await worker.client.request('GET', '/health/ready')), { status: 503, checks: { redis: 'does not answer' } })
  world.server?.resume()
  const patient = (await import('../support/client.js')).createClient(worker.url, { patient: true })
  t.equal((await world.watch(patient).finish({ input: 'conv:a' })).run.output, 'done')
  t.equal(told(worker.logs, RENEWED), 0)
  t.equal(worker.stderr(), '')
}, { ownRedis: true, except: ['deltas'] })
