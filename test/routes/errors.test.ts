import { once } from 'node:events'
import { connect } from 'node:net'
import t from 'tap'
import * as errors from '../../src/errors.js'
import { listening, newRun, problemOf, refused, testApp } from '../support/app.js'

t.test('every code of the contract is answered as a problem, with the headers that go with it', async (t) => {
  const { app, fake } = await testApp(t)
  const { id } = await newRun(app)
  for (const code of errors.problemCodes) {
    await t.test(code, async (t) => {
      fake.fail('runs.get', new errors.ProblemError(code, 'What to do.', { retry_after_s: 7, allow: ['GET'] }))
      const response = await app.inject(`/runs/${id}`)
      const problem = refused(t, response, errors.statusOf(code), code)
      t.equal(problem.detail, 'What to do.')
      t.equal(problem.instance, `urn:interlock:request:${response.headers['x-request-id'] as string}`)
      t.equal(response.headers['retry-after'], '7')
      t.equal(response.headers['cache-control'], 'no-store')
      if (problem.status === 401) t.match(response.headers['www-authenticate'], /^Bearer/)
    })
  }
})

t.test('each constructor says what stands in the way, and when to come back', async (t) => {
  const made: [errors.ProblemError, errors.ProblemCode, object][] = [
    [errors.malformedJson('x'), 'malformed_json', {}],
    [errors.badRequest('x'), 'bad_request', {}],
    [errors.unauthorized(), 'unauthorized', {}],
    [errors.forbidden('x'), 'forbidden', {}],
    [errors.notFound('run'), 'not_found', {}],
    [errors.methodNotAllowed(['GET']), 'method_not_allowed', { allow: ['GET'] }],
    [errors.notAcceptable(['text/plain']), 'not_acceptable', {}],
    [errors.requestTimeout(), 'request_timeout', {}],
    [errors.runActive(['run_a']), 'run_active', { run_ids: ['run_a'] }],
    [errors.runEnded('run_a', 'conv_a'), 'run_ended', { run_id: 'run_a', conversation_id: 'conv_a' }],
    [errors.messageDelivered('msg_a'), 'message_delivered', { message_id: 'msg_a' }],
    [errors.suspensionResolved('sus_a', 'superseded', ['call_a']), 'suspension_resolved', { suspension_id: 'sus_a', call_ids: ['call_a'] }],
    [errors.callSettled('has its result', ['call_a']), 'call_settled', { call_ids: ['call_a'] }],
    [errors.notRepairable('Wait.', ['run_a']), 'not_repairable', { run_ids: ['run_a'] }],
    [errors.conversationExists('conv_a'), 'conversation_exists', { conversation_id: 'conv_a' }],
    [errors.idempotencyInProgress(), 'idempotency_in_progress', { retry_after_s: 1 }],
    [errors.versionConflict(), 'version_conflict', { retry_after_s: 1 }],
    [errors.eventsTrimmed(9), 'events_trimmed', { first_seq: 9 }],
    [errors.payloadTooLarge(5), 'payload_too_large', { limit: 5 }],
    [errors.uriTooLong(), 'uri_too_long', {}],
    [errors.headersTooLarge(), 'headers_too_large', {}],
    [errors.unsupportedMediaType(), 'unsupported_media_type', {}],
    [errors.validationFailed([{ pointer: '/a', detail: 'b' }]), 'validation_failed', { errors: [{ pointer: '/a', detail: 'b' }] }],
    [errors.planCycle(['a', 'b', 'a'], { item: 'b', dependency: 'a' }), 'plan_cycle', { path: ['a', 'b', 'a'], suggestion: { item: 'b', dependency: 'a' } }],
    [errors.idempotencyMismatch(), 'idempotency_mismatch', {}],
    [errors.blockedUrl([{ pointer: '/a', detail: 'b' }]), 'blocked_url', { errors: [{ pointer: '/a', detail: 'b' }] }],
    [errors.rateLimited(3), 'rate_limited', { retry_after_s: 3 }],
    [errors.queueFull(100), 'queue_full', { limit: 100, retry_after_s: 1 }],
    [errors.tooManyStreams(4), 'too_many_streams', { retry_after_s: 4 }],
    [errors.unavailable(), 'unavailable', { retry_after_s: 1 }],
    [errors.internal(), 'internal', {}]
  ]
  for (const [error, code, facts] of made) {
    const { detail, title, type, status, retryable, code: said, ...rest } = errors.toProblem(error)
    t.strictSame([said, status, type, rest], [code, errors.statusOf(code), `urn:interlock:problem:${code}`, facts])
    t.ok(detail !== '' && title !== '', code)
    t.equal(retryable, [408, 429, 503].includes(status) || ['run_active', 'idempotency_in_progress', 'version_conflict'].includes(code), `${code} is ${retryable ? '' : 'not '}worth repeating`)
  }
  t.strictSame(errors.problemCodes.filter((code) => !made.some(([, one]) => one === code)), [], 'no code is without one')
})

t.test('a crash is 500 without a word of what happened, and is in the log', async (t) => {
  const { app, fake, logs } = await testApp(t)
  const { id } = await newRun(app)
  fake.fail('runs.get', new TypeError('canary: cannot read properties of /srv/secret/file.ts'))
  const response = await app.inject(`/runs/${id}`)
  refused(t, response, 500, 'internal')
  t.notMatch(response.body, /canary|secret|TypeError|at /)
  t.match(logs.find(({ msg }) => msg === 'request failed'), {
    level: 50, request_id: response.headers['x-request-id'], route: '/runs/:run_id', run_id: id, error: { type: 'TypeError', stack: /errors\.test/ }
  })
})

t.test('whatever is thrown is answered', async (t) => {
  const { app, fake } = await testApp(t)
  const { id } = await newRun(app)
  for (const thrown of ['a string', 42, null, { statusCode: 418, message: 'canary' }, Object.assign(new Error('canary'), { statusCode: 404, code: 'FST_ERR_X', headers: { 'x-leak': 'canary' } })]) {
    fake.fail('runs.get', thrown as Error)
    const response = await app.inject(`/runs/${id}`)
    if (thrown === null) continue
    refused(t, response, 500, 'internal')
    t.notMatch(JSON.stringify(response.headers) + response.body, 'canary')
  }
})

t.test('F54: Redis away is 503 with Retry-After on every route that needs it', async (t) => {
  const { app, fake } = await testApp(t)
  const { id, conversation_id: conversation } = await newRun(app)
  const call = 'call_01KAG6XN3Q8V5T2M7R4C9B1DZH'
  const routes = [
    ['runs.create', 'POST', '/runs'], ['runs.list', 'GET', '/runs'], ['runs.get', 'GET', `/runs/${id}`], ['runs.get', 'GET', `/runs/${id}/events`], ['runs.calls', 'GET', `/runs/${id}/calls`],
    ['runs.call', 'GET', `/runs/${id}/calls/${call}`], ['runs.cancel', 'POST', `/runs/${id}/cancel`], ['conversations.create', 'POST', '/conversations'],
    ['conversations.get', 'GET', `/conversations/${conversation}`], ['conversations.messages', 'GET', `/conversations/${conversation}/messages`],
    ['conversations.state', 'GET', `/conversations/${conversation}/state`], ['conversations.get', 'GET', `/conversations/${conversation}/events`],
    ['conversations.remove', 'DELETE', `/conversations/${conversation}`], ['models', 'GET', '/models'], ['metrics', 'GET', '/metrics'], ['health.ready', 'GET', '/health/ready']
  ] as const
  for (const [method, verb, url] of routes) {
    fake.fail(method, errors.unavailable({ cause: new Error('connect ECONNREFUSED 10.0.0.1:6379') }))
    const response = await app.inject({ method: verb, url, ...(verb === 'POST' && !url.includes('cancel') && { payload: url === '/runs' ? { input: 'x' } : {} }) })
    t.equal(refused(t, response, 503, 'unavailable').retryable, true, `${verb} ${url}`)
    t.equal(response.headers['retry-after'], '1')
    t.notMatch(response.body, /ECONN|10\.0/)
    fake.fail(method)
  }
  t.equal((await app.inject('/health/live')).statusCode, 200)
})

t.test('410: events that are no longer kept are named, never left out', async (t) => {
  const { app, fake } = await testApp(t)
  const { id } = await newRun(app)
  fake.fail('events.page', errors.eventsTrimmed(17))
  const response = await app.inject({ url: `/runs/${id}/events`, headers: { accept: 'application/json' } })
  t.equal(refused(t, response, 410, 'events_trimmed').first_seq, 17)
})

t.test('a HEAD that fails has no body', async (t) => {
  const { app } = await testApp(t)
  for (const url of ['/runs/nothing', '/nothing']) {
    const response = await app.inject({ method: 'HEAD', url })
    t.strictSame([response.statusCode, response.body], [404, ''])
  }
})

t.test('F53: while the app closes, what is under way is answered, and what still arrives is sent elsewhere', async (t) => {
  const { app, fake } = await testApp(t)
  const { port } = await listening(app)
  const { id } = await newRun(app)
  const get = fake.services.runs.get
  let go = () => {}
  const held = new Promise<void>((resolve) => { go = resolve })
  const begun = new Promise<void>((resolve) => {
    fake.services.runs.get = async (caller, runId) => {
      resolve()
      await held
      return get(caller, runId)
    }
  })
  const socket = connect(port, '127.0.0.1')
  const request = `GET /runs/${id} HTTP/1.1\r\nHost: localhost\r\n\r\n`
  socket.write(request)
  await begun
  const closed = app.close()
  const arrived = once(app.server, 'request')
  socket.write(request)
  await arrived
  go()
  let text = ''
  for await (const bytes of socket) text += String(bytes)
  await closed
  const [, first = '', second = ''] = text.split('HTTP/1.1 ')
  t.match(first, /^200 OK/)
  t.match(second, /^503 Service Unavailable/)
  problemOf(t, { status: 503, type: /^content-type: (.*)$/im.exec(second)?.[1], text: second.split('\r\n\r\n')[1] ?? '' }, 503, 'unavailable')
})
