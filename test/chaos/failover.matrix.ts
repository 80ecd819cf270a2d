import { Redis } from 'ioredis'
import { problemIn, within } from '../support/client.js'
import { lastId, oneContentPerId, resetOf } from '../support/epochs.js'
import { call, delayed, latch, say } from '../support/model-reply.js'
import { privateRedis } from '../support/redis.js'
import { redisProxy } from '../support/redis-proxy.js'
import { story } from '../support/world.js'

story('F63: failover to a replica that lacks the tail, while the old primary lives on as its replica: a new epoch, and no process is restarted', async (t, { model, service, process, server }) => {
  const replica = await privateRedis(t, { tcp: true, args: ['--repl-diskless-sync-delay', '0'] })
  const link = await redisProxy(t, server?.url ?? '')
  const [{ client }, worker] = [await service({ roles: { api: true, worker: false }, env: { REDIS_URL: link.url } }), await process('worker', { REDIS_URL: link.url })]
  const [old, next] = [new Redis(server?.url ?? ''), new Redis(replica.url)]
  t.teardown(() => [old.disconnect(), next.disconnect()])
  model.otherwise(({ n }) => say(`answer ${n}`))
  await next.call('REPLICAOF', '127.0.0.1', new URL(server?.url ?? '').port)
  const { run: kept } = await client.finish({ input: 'conv:a' })
  const id = kept.conversation_id
  const stayed = await client.open(`/conversations/${id}/events`)
  await stayed.event('run.completed')
  await old.call('WAIT', '1', '20000')
  while (await next.dbsize() !== await old.dbsize()) await new Promise((resolve) => setTimeout(resolve, 20))

  // From here on it is not told what happens, and will be the primary once the old one is missed.
  await next.call('REPLICAOF', 'NO', 'ONE')
  const { run: lost } = await client.finish({ input: 'never was', conversation_id: id })
  await stayed.event('run.completed', ({ run_id: run }) => run === lost.id)
  const seen = lastId(stayed)
  const before = await client.conversation(id)
  link.lead(replica.url)
  await old.call('REPLICAOF', '127.0.0.1', new URL(replica.url).port)

  // The connections still lead to the old one: what is written there is refused, and takes them to the new one.
  const run = await within((async () => {
    for (;;) {
      const answer = await client.request('POST', '/runs', { body: { input: 'and now?', conversation_id: id }, headers: { 'idempotency-key': 'one' } })
      if (answer.status === 201) return JSON.parse(answer.text) as { id: string }
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  })(), () => 'no run is taken after the failover')
  t.equal((await client.ended(run.id)).status, 'completed')
  const now = await client.conversation(id)
  t.ok(now.epoch > before.epoch)
  t.match(problemIn(await client.request('GET', `/runs/${lost.id}`)), { status: 404 })
  // It hears nothing while the old primary copies the new one, and looks by itself 15 s after the last it heard.
  const reset = await resetOf(stayed)
  t.equal(reset.epoch, now.epoch)
  const { run: more } = await client.finish({ input: 'go on', conversation_id: id })
  await stayed.event('run.completed', ({ run_id: of }) => of === more.id)
  const back = await client.open(`/conversations/${id}/events`, { lastEventId: seen })
  await resetOf(back)
  oneContentPerId(t, [stayed, back])
  t.equal(worker.stderr(), '')
  // Whoever judges this test reads where it began.
  await next.call('WAIT', '1', '20000')
  await old.call('REPLICAOF', 'NO', 'ONE')
}, {
  ownRedis: { tcp: true, args: ['--repl-diskless-sync-delay', '0'] },
  env: { INTERLOCK_LOCK_TTL_MS: '1000', INTERLOCK_SWEEP_MS: '200', INTERLOCK_STALLED_MS: '1000' },
  except: ['rollback', 'deltas']
})

story('F64: two primaries, and a worker that still works for the old one: what it does there is nobody\'s, and healed it works for the new one', async (t, { model, tools, process, tool, server }) => {
  const replica = await privateRedis(t, { tcp: true, args: ['--repl-diskless-sync-delay', '0'] })
  const [before, beside] = [await redisProxy(t, server?.url ?? ''), await redisProxy(t, server?.url ?? '')]
  const [{ client }, stranded] = await Promise.all([process('api', { REDIS_URL: before.url }), process('worker', { REDIS_URL: beside.url })])
  const [old, next] = [new Redis(server?.url ?? ''), new Redis(replica.url)]
  t.teardown(() => [old.disconnect(), next.disconnect()])
  await next.call('REPLICAOF', '127.0.0.1', new URL(server?.url ?? '').port)
  const gate = latch()
  model.script('conv:a', ({ n }) => n === 1 ? delayed(call({ id: 'c1', name: 'echo', arguments: { value: 'of the old side' } }), gate) : n === 2 ? say('of the new side') : say('of nobody'))
  const run = await client.start({ input: 'conv:a', tools: [tool('echo')] })
  await model.waitForRequest(() => true)
  await old.call('WAIT', '1', '20000')
  while (await next.dbsize() < await old.dbsize()) await new Promise((resolve) => setTimeout(resolve, 20))

  // The network falls apart: the worker stays with the old primary, everybody else goes to the new one.
  await next.call('REPLICAOF', 'NO', 'ONE')
  before.lead(replica.url, { cut: true })
  const successor = await process('worker', { REDIS_URL: before.url })
  t.match(await client.ended(run), { status: 'completed', output: 'of the new side', usage: { tool_calls: 0 } })
  gate.open()
  await tools.waitFor((attempts) => attempts.length === 1)
  t.match(tools.attempts[0]?.headers, { 'interlock-run-id': run.id, 'interlock-attempt': '1', 'idempotency-key': /./ }, 'a tool can tell what it is asked for')
  await model.waitForRequest(({ n }) => n === 3)
  const log = await client.log({ run: run.id })

  // Healed: what only the old primary knew is gone, and so are its connections.
  await old.call('REPLICAOF', '127.0.0.1', new URL(replica.url).port)
  beside.lead(replica.url, { cut: true })
  await successor.kill()
  model.script('conv:b', [say('as ever')])
  const { run: later } = await client.finish({ input: 'conv:b' })
  t.match(later, { status: 'completed', output: 'as ever' })
  t.same(await client.log({ run: run.id }), log, 'nothing of the lost side is in its log')
  t.equal(stranded.stderr(), '')
  await next.call('WAIT', '1', '20000')
  await old.call('REPLICAOF', 'NO', 'ONE')
}, {
  ownRedis: { tcp: true, args: ['--repl-diskless-sync-delay', '0'] },
  env: { INTERLOCK_LOCK_TTL_MS: '1000', INTERLOCK_SWEEP_MS: '200', INTERLOCK_STALLED_MS: '1000' },
  // The lost side has paid for two LLM calls and one tool call that no log has.
  except: ['rollback'],
  long: true
})
