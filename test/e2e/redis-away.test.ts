import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { createClient, problemIn } from '../support/client.js'
import { call, delayed, latch, say } from '../support/model-reply.js'
import { story } from '../support/world.js'

const CALL = 'call_01M7WNB2JRND3S37P2QRWZV709'
const MESSAGE = 'msg_01M7WNB57EPQDGB7N41ZB0EN6K'
const worker = { roles: { api: false, worker: true } }

story('F54, F66: while Redis does not answer every route says 503 within a second, and all of them work again by themselves', async (t, { model, service, server }) => {
  const { app, client } = await service()
  model.otherwise(() => say('done'))
  const { run } = await client.finish({ input: 'conv:a' })
  const requests: [method: string, path: string, body?: unknown][] = [
    ['POST', '/runs', { input: 'conv:b' }], ['GET', '/runs'], ['GET', `/runs/${run.id}`], ['GET', `/runs/${run.id}/events`], ['POST', `/runs/${run.id}/cancel`],
    ['POST', `/runs/${run.id}/messages`, { content: 'x' }], ['GET', `/runs/${run.id}/messages`], ['PATCH', `/runs/${run.id}/messages/${MESSAGE}`, { content: 'x' }],
    ['DELETE', `/runs/${run.id}/messages/${MESSAGE}`], ['GET', `/runs/${run.id}/calls`], ['GET', `/runs/${run.id}/calls/${CALL}`],
    ['POST', `/runs/${run.id}/decisions`, { suspension_id: 'susp_01M7WNB2JRND3S37P2QRWZV7091', decisions: [{ call_id: CALL, decision: 'approve' }] }],
    ['POST', `/runs/${run.id}/tool_outputs`, { outputs: [{ call_id: CALL, output: 1 }] }], ['GET', `/runs/${run.id}/orphans`],
    ['DELETE', `/runs/${run.id}/orphans/${CALL}`], ['POST', `/runs/${run.id}/orphans/${CALL}/attach`],
    ['POST', '/conversations', { id: 'mine' }], ['GET', `/conversations/${run.conversation_id}`], ['DELETE', `/conversations/${run.conversation_id}`],
    ['GET', `/conversations/${run.conversation_id}/messages`], ['GET', `/conversations/${run.conversation_id}/state`], ['GET', `/conversations/${run.conversation_id}/events`],
    ['POST', `/conversations/${run.conversation_id}/repair`, { action: 'explain' }], ['POST', `/conversations/${run.conversation_id}/repair`, { action: 'release' }],
    ['GET', '/health/ready']
  ]
  // Whatever is added to the API belongs here.
  const { paths } = app.swagger() as unknown as { paths: Record<string, Record<string, unknown>> }
  const alike = (path: string) => path.replace(/\{[^}]+\}/g, 'X')
  const asked = new Set(requests.map(([method, path]) => `${method} ${path.replace(run.id, 'X').replace(run.conversation_id, 'X').replace(CALL, 'X').replace(MESSAGE, 'X')}`))
  const open = ['GET /health/live', 'GET /metrics', 'GET /openapi.yaml', 'GET /openapi.json', 'GET /tools', 'GET /models', 'GET /docs', 'GET /inspector']
  for (const [path, methods] of Object.entries(paths)) {
    for (const method of Object.keys(methods)) {
      const name = `${method.toUpperCase()} ${alike(path)}`
      t.ok(asked.has(name) || open.includes(name), `${name} is asked, or needs no Redis`)
    }
  }
  server?.pause()
  await Promise.all(requests.map(async ([method, path, body]) => {
    const began = performance.now()
    const answer = await client.request(method, path, { body })
    const took = performance.now() - began
    t.match(problemIn(answer), { status: 503, code: 'unavailable', retryable: true }, `${method} ${path}`)
    t.ok(Number(answer.headers['retry-after']) >= 1)
    // A second by contract; the rest is for a machine that does other things.
    t.ok(took < 2000, `${method} ${path}: ${Math.round(took)} ms`)
  }))
  t.equal((await client.request('GET', '/health/live')).status, 200)
  server?.resume()
  // What was sent before the pause may still be done: that is what its caller was told.
  const patient = createClient(client.url, { patient: true })
  t.equal((await patient.request('GET', '/health/ready')).status, 200)
  t.equal((await patient.finish({ input: 'conv:after' })).run.output, 'done')
}, { ownRedis: true, except: ['deltas'] })

story('processes whose Redis comes back empty do not crash: what is gone is gone, and new work is done', async (t, { model, process, tools, tool, server }) => {
  const empty = server?.image() ?? ''
  const both = await process('all', { INTERLOCK_LOCK_TTL_MS: '1000' })
  const gate = latch()
  model.script('conv:llm', [delayed(say('for nobody'), gate)])
  model.script('conv:tool', [call({ id: 'c1', name: 'hold', arguments: { key: 'x', value: 1 } }), say('for nobody')])
  model.script('conv:new', [say('done')])
  const lost = [await both.client.start({ input: 'conv:llm' }), await both.client.start({ input: 'conv:tool', tools: [tool('hold')] })]
  await model.waitForRequest(({ conversation }) => conversation === 'conv:llm')
  await tools.waitFor((attempts) => attempts.length === 1)
  await server?.kill()
  server?.restore(empty)
  await server?.start()
  gate.open()
  tools.release('x')
  for (const run of lost) t.equal((await createClient(both.url, { patient: true }).request('GET', `/runs/${run.id}`)).status, 404)
  t.equal((await createClient(both.url, { patient: true }).finish({ input: 'conv:new' })).run.output, 'done')
  both.signal('SIGTERM')
  t.same(await both.exited, { code: 0, signal: null })
  t.equal(both.stderr(), '')
}, { ownRedis: true, except: ['deltas'] })

story('B8: a frozen worker that wakes ends what it has lost within one renewal, also when nobody can tell it', async (t, { model, tools, process, service, tool, redis }) => {
  const ttl = 1500
  const env = { INTERLOCK_LOCK_TTL_MS: String(ttl) }
  const frozen = await process('worker', env)
  const { client } = await service({ roles: { api: true, worker: false }, env })
  const gate = latch()
  model.script('conv:llm', [delayed(say('late'), latch()), delayed(say('done'), gate)])
  model.script('conv:tool', [call({ id: 'c1', name: 'hang', arguments: {} }), say('done')])
  const asked = await client.start({ input: 'conv:llm' })
  const called = await client.start({ input: 'conv:tool', tools: [tool('hang', { timeout_ms: 600_000, effects: 'read' })] })
  await model.waitForRequest(({ conversation }) => conversation === 'conv:llm')
  await tools.waitFor((attempts) => attempts.length === 1)
  frozen.signal('SIGSTOP')
  await service({ ...worker, env })
  await model.waitForRequest(({ conversation, n }) => conversation === 'conv:llm' && n === 2)
  await tools.waitFor((attempts) => attempts.length === 2)
  // What it would have been told is lost.
  const direct = new Redis(redis.url)
  for (const line of String(await direct.call('CLIENT', 'LIST')).split('\n')) {
    const [, id] = /^id=(\d+) .*name=interlock-subscriber/.exec(line) ?? []
    if (id !== undefined) await direct.call('CLIENT', 'KILL', 'ID', id)
  }
  await direct.quit()
  frozen.signal('SIGCONT')
  const woken = performance.now()
  t.equal((await model.requests('conv:llm')[0]?.ended)?.aborted, true)
  const llm = performance.now() - woken
  await tools.waitFor((attempts) => attempts[0]?.aborted === true)
  const ended = performance.now() - woken
  // One renewal is a third of the lock's time; a second is for the machine.
  t.ok(llm < ttl / 3 + 1000, `the LLM call: ${Math.round(llm)} ms`)
  t.ok(ended < ttl / 3 + 1500, `the tool call: ${Math.round(ended)} ms`)
  gate.open()
  t.equal((await client.ended(asked)).output, 'done')
  t.equal((await client.cancel(called.id, '?wait=1')).status, 'cancelled')
}, { ownRedis: true, except: ['overlap', 'deltas'] })

story('N11: with the default settings a killed worker costs at most the lock\'s time, a sweep and a second', async (t, { model, process, service }) => {
  const defaults = { INTERLOCK_SWEEP_MS: '1000' }
  const doomed = await process('worker', defaults)
  const { client } = await service({ roles: { api: true, worker: false }, env: defaults })
  model.script('conv:a', [delayed(say('late'), latch()), say('done')])
  const run = await client.start({ input: 'conv:a' })
  await model.waitForRequest(() => true)
  await service({ ...worker, env: defaults })
  // Not just after its last sign of life.
  await sleep(500)
  await doomed.kill()
  const killed = performance.now()
  t.equal((await client.ended(run)).output, 'done')
  const cost = (model.requests()[1]?.arrivedAt ?? Infinity) - killed
  t.ok(cost <= 10_000 + 1000 + 1000, `${Math.round(cost)} ms`)
})

story('FAULTS F60: Redis is away for twice the time a claim holds: whoever is alive then keeps what it does, a call that writes is done once', async (t, { model, tools, process, tool, server }) => {
  const ttl = 3000
  const [one, two] = await Promise.all([process('all', { INTERLOCK_LOCK_TTL_MS: `${ttl}` }), process('all', { INTERLOCK_LOCK_TTL_MS: `${ttl}` })])
  const clients = [one, two].map(({ url }) => createClient(url, { patient: true }))
  model.otherwise(({ conversation, body: { messages } }) => {
    return messages.at(-1)?.role === 'tool' ? say('done') : call({ id: 'c', name: 'hold', arguments: { key: conversation, value: 'written' } })
  })
  const runs = await Promise.all(clients.flatMap((client, i) => [0, 1, 2].map((k) => client.start({ input: `conv:${i}${k}`, tools: [tool('hold')] }))))
  await tools.waitFor((attempts) => attempts.length === runs.length)
  await server?.kill()
  await new Promise((resolve) => setTimeout(resolve, 2 * ttl))
  await server?.start()
  for (const client of clients) t.equal((await client.request('GET', '/health/ready')).status, 200)
  // In that time whatever was due has been looked at by both.
  await new Promise((resolve) => setTimeout(resolve, ttl))
  for (const i of [0, 1]) for (const k of [0, 1, 2]) tools.release(`conv:${i}${k}`)
  for (const run of runs) {
    t.match(await clients[0]!.ended(run), { status: 'completed', output: 'done' })
    t.match(await clients[0]!.calls(run.id), [{ status: 'completed', attempt: 1, output: 'written' }])
  }
  t.equal(tools.attempts.length, runs.length)
  t.notOk(tools.attempts.some(({ aborted }) => aborted))
}, { ownRedis: true, except: ['deltas'] })
