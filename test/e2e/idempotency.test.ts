import type { Run } from '../../src/schemas/run.js'
import { createClient, problemIn, type Answer, type Client } from '../support/client.js'
import { call, say } from '../support/model-reply.js'
import { redisProxy } from '../support/redis-proxy.js'
import type { RequiredAction } from '../../src/schemas/action.js'
import { story } from '../support/world.js'

const post = (client: Client, key: string, body: unknown = { input: 'conv:a' }, headers: Record<string, string> = {}): Promise<Answer> =>
  client.request('POST', '/runs', { body, headers: { 'idempotency-key': key, ...headers } })

const idOf = (answer: Answer): string => (JSON.parse(answer.text) as Run).id

story('F52, M5: the same key and body replays the first answer, whatever has become of the run', async (t, { model, service }) => {
  const [{ client }, other] = await Promise.all([service(), service({ roles: { api: true, worker: false } })])
  model.otherwise(() => say('done'))
  const first = await post(client, 'key-1')
  t.match(first, { status: 201, headers: { location: `/runs/${idOf(first)}` } })
  t.equal(first.headers['idempotency-replayed'], undefined)
  await client.ended(idOf(first))
  for (const one of [client, other.client]) {
    const again = await post(one, 'key-1')
    t.same([again.status, again.text, again.headers.location, again.headers['idempotency-replayed']], [201, first.text, first.headers.location, 'true'])
  }
  t.match(problemIn(await post(client, 'key-1', { input: 'conv:other' })), { status: 422, code: 'idempotency_mismatch', retryable: false })
  t.match(problemIn(await client.request('POST', '/conversations', { body: { input: 'conv:a' }, headers: { 'idempotency-key': 'key-1' } })), { status: 422 })
  t.not(idOf(await post(client, 'key-2')), idOf(first), 'another key, another run')
  t.match(problemIn(await post(client, 'ö')), { status: 422 })
  t.equal((await client.get<{ data: Run[] }>('/runs')).data.length, 2)
})

story('M5: a refused request leaves its key free', async (t, { model, service }) => {
  const { client } = await service()
  model.otherwise(() => say('done'))
  t.equal((await post(client, 'key', { input: 'conv:a', conversation_id: 'conv_unknown' })).status, 404)
  t.equal((await post(client, 'key', { input: '' })).status, 422)
  t.equal((await post(client, 'key')).status, 201)
})

story('M5: conversations and cancels are done once per key too', async (t, { model, service }) => {
  const { client } = await service()
  model.otherwise(() => say('done'))
  const create = () => client.request('POST', '/conversations', { body: {}, headers: { 'idempotency-key': 'make' } })
  const [one, two] = [await create(), await create()]
  t.equal(two.text, one.text)
  t.equal(two.headers['idempotency-replayed'], 'true')
  const run = await client.start({ input: 'conv:a', after_seconds: 3600 })
  const cancel = () => client.request('POST', `/runs/${run.id}/cancel`, { headers: { 'idempotency-key': 'stop' } })
  const [first, again] = [await cancel(), await cancel()]
  t.equal(again.text, first.text)
})

story('M5: a repeat that waits, or that wants the stream, gets it for the same run', async (t, { model, service }) => {
  const { client } = await service()
  model.otherwise(() => say('done'))
  const first = await post(client, 'key', undefined, { prefer: 'wait=30' })
  t.equal(first.status, 200)
  const again = await post(client, 'key', undefined, { prefer: 'wait=30' })
  t.same([again.status, again.text, again.headers['idempotency-replayed']], [200, first.text, 'true'])
  const stream = await client.open('/runs', { method: 'POST', body: { input: 'conv:a' }, headers: { 'idempotency-key': 'key' } })
  await stream.ended
  t.equal(stream.events()[0]?.run_id, idOf(first))
  t.equal(stream.types().at(-1), 'run.completed')
  t.equal(model.requests().length, 1)
})

story('F52: the same key in parallel on two API processes makes one run', async (t, { model, service, process }) => {
  const [{ client: one }, { client: two }] = await Promise.all([process('api'), process('api'), service({ roles: { api: false, worker: true } })])
  model.otherwise(() => say('done'))
  for (let round = 0; round < 5; round++) {
    const answers = await Promise.all(Array.from({ length: 12 }, (_, i) => post(i % 2 === 0 ? one : two, `key-${round}`, { input: `conv:${round}` })))
    const made = answers.filter(({ status }) => status === 201)
    t.ok(made.length >= 1)
    t.equal(new Set(made.map(idOf)).size, 1, 'one run')
    t.equal(made.filter(({ headers }) => headers['idempotency-replayed'] !== 'true').length, 1, 'made by one request')
    for (const refused of answers.filter(({ status }) => status !== 201)) {
      t.match(problemIn(refused), { status: 409, code: 'idempotency_in_progress', retryable: true })
      t.equal(refused.headers['retry-after'], '1')
    }
    t.equal(idOf(await post(two, `key-${round}`, { input: `conv:${round}` })), idOf(made[0] as Answer))
    await one.ended(idOf(made[0] as Answer))
  }
  t.equal((await one.get<{ data: Run[] }>('/runs')).data.length, 5)
  t.equal(model.requests().length, 5)
})

for (const [title, at] of [['F50: between commit and answer', 'answered'], ['F51: before the commit', 'unsent']] as const) {
  story(`${title} an API process is killed: a repeat with the same key gives the one run`, async (t, { model, service, process, redis }) => {
    const proxy = await redisProxy(t, redis.url)
    const [doomed, { client }] = await Promise.all([process('api', { REDIS_URL: proxy.url }), service()])
    model.otherwise(() => say('done'))
    const cut = proxy.cut('run.created', at)
    const lost = t.rejects(post(doomed.client, 'key'), 'no answer ever comes')
    await cut
    await doomed.kill()
    await lost
    const listed = async () => (await client.get<{ data: Run[] }>('/runs')).data.map(({ id }) => id)
    const before = await listed()
    t.equal(before.length, at === 'answered' ? 1 : 0)
    t.match(problemIn(await post(client, 'key')), { status: 409, code: 'idempotency_in_progress' }, 'the first one may still be alive')
    const answer = await post(createClient(client.url, { patient: true }), 'key')
    t.equal(answer.status, 201)
    if (at === 'answered') t.equal(idOf(answer), before[0])
    t.same(await listed(), [idOf(answer)])
    t.equal((await client.ended(idOf(answer))).output, 'done')
    t.equal(model.requests().length, 1)
  })
}

const locate = { kind: 'client' as const, name: 'locate', parameters: { type: 'object' } }

story('F50: outputs and decisions whose answer was lost are taken once: the repeat is answered, and nothing is an orphan or decided already', async (t, world) => {
  const { model, service, process, redis, tool } = world
  const { client } = await service()
  model.script('conv:a', [call({ id: 'a', name: 'locate', arguments: {} }, { id: 'b', name: 'echo', arguments: { value: 'paid' } }), say('done')])
  const run = await client.start({ input: 'conv:a', tools: [locate, tool('echo', { approval: 'always' })] })
  const stream = await client.open(`/runs/${run.id}/events`)
  await stream.event('run.requires_action')
  const { suspension_id: suspension, calls: [outside, paid] } = (await client.run(run.id)).required_action as RequiredAction
  const posts: [path: string, body: unknown, stored: string][] = [
    ['tool_outputs', { outputs: [{ call_id: outside?.call_id, output: 'here' }] }, 'tool.completed'],
    ['decisions', { suspension_id: suspension, decisions: [{ call_id: paid?.call_id, decision: 'approve' }] }, 'suspension.resolved']
  ]
  const patient = world.watch(createClient(client.url, { patient: true }))
  for (const [path, body, stored] of posts) {
    const proxy = await redisProxy(t, redis.url)
    const doomed = await process('api', { REDIS_URL: proxy.url })
    const request = { body, headers: { 'idempotency-key': path } }
    const cut = proxy.cut(stored, 'answered')
    const lost = t.rejects(doomed.client.request('POST', `/runs/${run.id}/${path}`, request), 'no answer ever comes')
    await cut
    await doomed.kill()
    await lost
    t.equal((await patient.request('POST', `/runs/${run.id}/${path}`, request)).status, 200, path)
    t.equal((await client.request('POST', `/runs/${run.id}/${path}`, request)).headers['idempotency-replayed'], 'true')
    t.match(problemIn(await client.request('POST', `/runs/${run.id}/${path}`, { body })), { status: 409 }, 'another request is too late')
  }
  await stream.ended
  t.equal((await client.run(run.id)).output, 'done')
  const { data: orphans } = await client.get<{ data: object[] }>(`/runs/${run.id}/orphans`)
  t.match(orphans, [{ call_id: outside?.call_id, reason: 'duplicate' }], 'of the other request alone')
  t.equal(orphans.length, 1)
})

story('M5: a key is good for a day, also when more has happened in its conversation than the row remembers', async (t, { model, service, process, redis }) => {
  const { client } = await service()
  const { id: conversation } = JSON.parse((await client.request('POST', '/conversations', { body: {} })).text) as { id: string }
  model.otherwise(() => say('done'))
  const later = await client.start({ input: 'conv:later', conversation_id: conversation, after_seconds: 3600 })
  const posts: [path: string, body: unknown, stored: string, status: number][] = [
    ['/runs', { input: 'conv:first', conversation_id: conversation }, 'run.created', 201], [`/runs/${later.id}/messages`, { content: 'once' }, 'message.accepted', 202]
  ]
  for (const [path, body, stored] of posts) {
    const proxy = await redisProxy(t, redis.url)
    const doomed = await process('api', { REDIS_URL: proxy.url })
    const cut = proxy.cut(stored, 'answered')
    const lost = t.rejects(doomed.client.request('POST', path, { body, headers: { 'idempotency-key': path } }), 'no answer ever comes')
    await cut
    await doomed.kill()
    await lost
  }
  for (let i = 0; i < 40; i++) t.equal((await client.request('POST', `/runs/${later.id}/messages`, { body: { content: `${i}` } })).status, 202)
  const patient = createClient(client.url, { patient: true })
  for (const [path, body, , status] of posts) t.match(await patient.request('POST', path, { body, headers: { 'idempotency-key': path } }), { status })
  t.equal((await client.get<{ data: Run[] }>('/runs')).data.length, 2)
  const { data } = await client.get<{ data: { content: string }[] }>(`/runs/${later.id}/messages`)
  t.equal(data.filter(({ content }) => content === 'once').length, 1)
  t.equal(data.length, 41)
})
