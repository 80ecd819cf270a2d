/*
 * The fault matrix (docs/fault-matrix.md), F50 to F54: what can become of an API process. F50 to F52 are in test/e2e/idempotency.test.ts.
 */
import root from 'tap'
import { createClient, problemIn } from '../support/client.js'
import { delayed, latch, say } from '../support/model-reply.js'
import { redisProxy, type Blackhole } from '../support/redis-proxy.js'
import { story } from '../support/world.js'

root.setTimeout(600_000)

for (const way of ['both', 'requests', 'replies'] as const satisfies Blackhole[]) {
  story(`F54: Redis out of reach of an API process (${way}): 503 with Retry-After within a second, not ready, and back by itself`, async (t, { model, service, process, redis, watch }) => {
    const proxy = await redisProxy(t, redis.url)
    const [api, worker] = await Promise.all([process('api', { REDIS_URL: proxy.url }), service()])
    const gate = latch()
    model.script('conv:a', [delayed(say('done'), gate)])
    model.script('conv:b', [say('later')])
    const run = await api.client.start({ input: 'conv:a' })
    const stream = await api.client.follow(run)
    await stream.event('turn.started')
    proxy.blackhole(way)
    const post = { body: { input: 'conv:b' }, headers: { 'idempotency-key': 'key' } }
    const requests: [method: string, path: string, options?: object][] = [
      ['POST', '/runs', post], ['GET', `/runs/${run.id}`], ['GET', '/runs'], ['POST', `/runs/${run.id}/messages`, { body: { content: 'hello?' }, headers: { 'idempotency-key': 'other' } }]
    ]
    await Promise.all(requests.map(async ([method, path, options]) => {
      const asked = performance.now()
      const answer = await api.client.request(method, path, options)
      const took = performance.now() - asked
      t.match(problemIn(answer), { status: 503, code: 'unavailable', retryable: true }, `${method} ${path}`)
      t.ok(Number(answer.headers['retry-after']) >= 1)
      // A second by contract; the rest is for a machine that does other things.
      t.ok(took < 2000, `${method} ${path}: ${Math.round(took)} ms`)
    }))
    t.equal((await api.client.request('GET', '/health/live')).status, 200)
    t.equal((await api.client.request('GET', '/health/ready')).status, 503)
    gate.open()
    await worker.client.ended(run)
    proxy.heal()
    const patient = watch(createClient(api.url, { patient: true }))
    const { id } = JSON.parse((await patient.request('POST', '/runs', post)).text) as { id: string }
    // A message that had its 503 may have been heard all the same; the run was over before the connection was back, or has answered it.
    t.match((await patient.ended(id)).output, 'later')
    await stream.ended
    // A stream that needed Redis at that moment has ended, and its reader goes on where it was.
    const after = stream.events().at(-1)?.seq ?? 0
    const rest = stream.types().at(-1) === 'run.completed' ? [] : await patient.follow(run, after).then(async (more) => {
      await more.ended
      return more.types()
    })
    t.same([...stream.types(), ...rest].slice(-2), ['turn.completed', 'run.completed'])
    t.equal((await api.client.request('GET', '/health/ready')).status, 200)
    t.equal(api.stderr(), '')
  }, { except: ['deltas'], long: way === 'both' })
}
