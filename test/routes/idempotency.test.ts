import t from 'tap'
import { notFound, unavailable } from '../../src/errors.js'
import { KEY_A, KEY_B, listening, newRun, post, read, refused, testApp, twoTenants } from '../support/app.js'

const key = { 'idempotency-key': 'key-1' }

t.test('M5: the same key and body gets the first answer again, and the work is done once', async (t) => {
  const { app, fake } = await testApp(t)
  const first = await post(app, '/runs', { input: 'x' }, key)
  t.equal(first.statusCode, 201)
  t.notOk(first.headers['idempotency-replayed'])
  const { id } = first.json<{ id: string }>()
  fake.end(id)
  const second = await post(app, '/runs', { input: 'x' }, key)
  t.equal(second.statusCode, 201)
  t.equal(second.headers['idempotency-replayed'], 'true')
  t.equal(second.body, first.body, 'the first answer, though the run has ended since')
  t.equal(second.headers.location, first.headers.location)
  t.equal(second.headers['content-type'], first.headers['content-type'])
  t.equal(fake.count().runs, 1)
})

t.test('M5: every POST of openapi.yaml takes a key', async (t) => {
  const { app, fake } = await testApp(t)
  const { id, conversation_id: conversation } = await newRun(app)
  const { paths } = app.swagger() as unknown as { paths: Record<string, Record<string, { parameters?: { name: string }[] }>> }
  const callId = 'call_01KAG6XN3Q8V5T2M7R4C9B1DZH'
  const bodies: Record<string, object> = {
    '/runs': { input: 'x' },
    '/conversations': {},
    '/conversations/{conversation_id}/repair': { action: 'explain' },
    '/runs/{run_id}/messages': { content: 'x' },
    '/runs/{run_id}/decisions': { suspension_id: 'susp_01KAG6XN3Q8V5T2M7R4C9B1DZH1', decisions: [{ call_id: callId, decision: 'approve' }] },
    '/runs/{run_id}/tool_outputs': { outputs: [{ call_id: callId, output: 1 }] }
  }
  const posts = Object.entries(paths).filter(([, item]) => item.post !== undefined)
  t.ok(posts.length >= 3)
  for (const [path, { post: operation }] of posts) {
    t.ok(operation?.parameters?.some(({ name }) => name === 'Idempotency-Key'), path)
    const request = { method: 'POST', url: path.replace('{run_id}', id).replace('{conversation_id}', conversation).replace('{call_id}', callId), headers: { 'idempotency-key': path }, payload: bodies[path] } as const
    const first = await app.inject(request)
    t.ok(first.statusCode < 300, path)
    const calls = fake.calls.length
    const second = await app.inject(request)
    t.equal(second.headers['idempotency-replayed'], 'true')
    t.strictSame([second.statusCode, second.body], [first.statusCode, first.body])
    t.strictSame(fake.calls.slice(calls), ['idempotency.begin'])
  }
})

t.test('S17: another body, address or method is a mismatch', async (t) => {
  const { app, fake } = await testApp(t)
  const { id } = await newRun(app)
  await post(app, '/runs', { input: 'x' }, key)
  refused(t, await post(app, '/runs', { input: 'y' }, key), 422, 'idempotency_mismatch')
  refused(t, await post(app, '/runs', '{ "input": "x" }', key), 422, 'idempotency_mismatch')
  refused(t, await post(app, '/conversations', {}, key), 422, 'idempotency_mismatch')
  refused(t, await app.inject({ method: 'POST', url: `/runs/${id}/cancel`, headers: key }), 422, 'idempotency_mismatch')
  t.equal(fake.count().runs, 2)
})

t.test('F52: while the first request is under way a repeat is told to come back', async (t) => {
  const { app, fake } = await testApp(t)
  const create = fake.services.runs.create
  let go = () => {}
  const held = new Promise<void>((resolve) => { go = resolve })
  const begun = new Promise<void>((resolve) => {
    fake.services.runs.create = async (caller, body) => {
      resolve()
      await held
      return create(caller, body)
    }
  })
  const first = post(app, '/runs', { input: 'x' }, key)
  await begun
  const second = await post(app, '/runs', { input: 'x' }, key)
  t.equal(refused(t, second, 409, 'idempotency_in_progress').retryable, true)
  t.equal(second.headers['retry-after'], '1')
  go()
  t.equal((await first).statusCode, 201)
  t.equal((await post(app, '/runs', { input: 'x' }, key)).headers['idempotency-replayed'], 'true')
})

t.test('a refusal changes nothing, so its key is free again', async (t) => {
  const { app, fake } = await testApp(t)
  refused(t, await post(app, '/runs', { input: '' }, key), 422, 'validation_failed')
  t.notOk(fake.calls.includes('idempotency.begin'), 'a bad body does not even take the key')
  fake.fail('runs.create', notFound('conversation'))
  refused(t, await post(app, '/runs', { input: 'x' }, key), 404, 'not_found')
  fake.fail('runs.create')
  t.equal((await post(app, '/runs', { input: 'y' }, key)).statusCode, 201)
})

t.test('I5: after a 5xx nobody knows what was done: the key stays, and so does what the request is named after', async (t) => {
  const { app, fake } = await testApp(t)
  const create = fake.services.runs.create
  const operations: string[] = []
  // The run is made, but the reply is lost.
  fake.services.runs.create = async (caller, body) => {
    operations.push(caller.operation)
    await create(caller, body)
    throw unavailable()
  }
  refused(t, await post(app, '/runs', { input: 'x' }, key), 503, 'unavailable')
  refused(t, await post(app, '/runs', { input: 'x' }, key), 409, 'idempotency_in_progress')
  t.notOk(fake.calls.includes('idempotency.abandon'))

  // Once the reservation has lapsed, a repeat is handed the first request's operation, and finds what that one made.
  fake.services.idempotency.begin = async () => ({ status: 'fresh', operation: operations[0] as string, reservation: '' })
  fake.services.runs.create = create
  const { id } = (await post(app, '/runs', { input: 'x' }, key)).json<{ id: string }>()
  t.equal(id, `run_${operations[0]}0H`)
  t.equal(fake.count().runs, 1)
})

t.test('a crash is a 5xx too', async (t) => {
  const { app, fake } = await testApp(t)
  fake.fail('runs.create', new TypeError('oops'))
  refused(t, await post(app, '/runs', { input: 'x' }, key), 500, 'internal')
  t.notOk(fake.calls.includes('idempotency.abandon'))
})

t.test('an answer that cannot be kept is given all the same', async (t) => {
  const { app, fake, logs } = await testApp(t)
  fake.fail('idempotency.finish', unavailable())
  t.equal((await post(app, '/runs', { input: 'x' }, key)).statusCode, 201)
  t.ok(logs.some(({ msg }) => msg === 'idempotency key not settled'))
  fake.fail('idempotency.begin', unavailable())
  refused(t, await post(app, '/runs', { input: 'x' }, key), 503, 'unavailable')
})

t.test('a repeat that streams gets the stream of the same run', async (t) => {
  const { app, fake } = await testApp(t)
  const { origin } = await listening(app)
  const request = { method: 'POST', headers: { ...key, 'content-type': 'application/json' }, body: '{"input":"x"}' }
  const first = await read(`${origin}/runs`, request)
  await first.take(1)
  await first.leave()
  const second = await read(`${origin}/runs`, request)
  t.equal(second.response.headers.get('idempotency-replayed'), 'true')
  t.equal(second.response.headers.get('location'), first.response.headers.get('location'))
  fake.end((second.response.headers.get('location') ?? '').slice('/runs/'.length))
  t.strictSame((await second.rest()).map(({ id, event }) => [id, event]), [['1', 'run.created'], ['2', 'run.completed']])
  t.equal(fake.count().runs, 1)
})

t.test('a repeat that waits waits for the same run, whatever the first one did', async (t) => {
  const { app, fake } = await testApp(t)
  const { id } = (await post(app, '/runs', { input: 'x' }, key)).json<{ id: string }>()
  const running = await post(app, '/runs', { input: 'x' }, { ...key, prefer: 'wait=0' })
  t.strictSame([running.statusCode, running.headers['idempotency-replayed']], [202, 'true'])
  fake.end(id)
  const ended = await post(app, '/runs', { input: 'x' }, { ...key, prefer: 'wait=60' })
  t.strictSame([ended.statusCode, ended.headers['idempotency-replayed'], ended.json<{ id: string }>().id], [200, 'true', id])
})

t.test('S17: a key is 1 to 255 visible ASCII characters', async (t) => {
  const { app } = await testApp(t)
  for (const bad of ['', ' ', 'a b', 'x'.repeat(256), 'x'.repeat(10_000), 'caf\u00e9', 'a\tb']) {
    t.match(refused(t, await post(app, '/runs', { input: 'x' }, { 'idempotency-key': bad }), 422, 'validation_failed').errors, [{ in: 'header', pointer: '/idempotency-key' }])
  }
  for (const good of ['a', 'x'.repeat(255), '!"#{}~:*']) t.equal((await post(app, '/runs', { input: 'x' }, { 'idempotency-key': good })).statusCode, 201)
})

t.test('S17: a key belongs to its tenant', async (t) => {
  const { app, fake } = await testApp(t, twoTenants)
  for (const one of [KEY_A, KEY_B]) {
    const response = await post(app, '/runs', { input: one === KEY_A ? 'x' : 'y' }, { ...key, authorization: `Bearer ${one}` })
    t.equal(response.statusCode, 201)
    t.notOk(response.headers['idempotency-replayed'])
  }
  t.equal(fake.count().runs, 2)
})
