import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import t, { type Test } from 'tap'
import { listModels } from '../../../src/engine/model/list-models.js'
import { ModelError, type ModelAnswer, type ModelRequest } from '../../../src/engine/model/model.js'
import { openaiModel, type OpenAIModelOptions } from '../../../src/engine/model/openai-model.js'
import { answer, cut, cutBytes, delayed, events, heldAt, latch, say, status, stream, type Reply } from '../../support/model-reply.js'
import { startModelServer, type ModelServer, type Script } from '../../support/model-server.js'

const API_KEY = 'sk-canary-7f3a'
const SECRET_TEXT = 'canary question'

const tools: ModelRequest['tools'] = [{ type: 'function', function: { name: 'work', parameters: { type: 'object' } } }]

interface World {
  server: ModelServer
  ask: (request?: Partial<ModelRequest>, signal?: AbortSignal, onText?: (text: string) => void) => Promise<ModelAnswer>
  /** The error of a call that must fail, and how it must look. */
  fails: (expected: object, request?: Partial<ModelRequest>) => Promise<ModelError>
}

async function setup (t: Test, replies: Reply[] | Script, options: Partial<OpenAIModelOptions> = {}): Promise<World> {
  const server = await startModelServer()
  t.teardown(server.close)
  server.otherwise(replies)
  const model = openaiModel({ apiKey: API_KEY, baseUrl: server.baseUrl, timeoutMs: 10_000, ...options })
  const ask: World['ask'] = (request, signal = new AbortController().signal, onText = () => {}) => {
    const messages = [{ role: 'user' as const, content: SECRET_TEXT }]
    return model.complete({ model: 'test', messages, options: {}, request_id: 'run_1.1.1', ...request }, { signal, onText })
  }
  const fails: World['fails'] = async (expected, request) => {
    const error: unknown = await ask(request).then(() => t.fail('it must fail'), (error: unknown) => error)
    if (!(error instanceof ModelError)) throw error
    t.match(error, expected)
    t.match(error.message, /^[A-Z][^.]*(\([^)]*\))?\. [A-Z].*\.$/, 'a sentence and a next step')
    t.equal(error.cause, undefined, 'causes quote the provider')
    return error
  }
  return { server, ask, fails }
}

t.test('an answer comes complete: text in pieces as they arrive, parallel calls, usage', async (t) => {
  const gate = latch()
  const reply = answer({ text: ['Hel', 'lo'], calls: [{ id: 'a', name: 'work', arguments: { x: 1 } }, { id: 'b', name: 'work', arguments: { x: 2 } }] })
  const { server, ask } = await setup(t, [heldAt(reply, 3, gate)])
  const heard: string[] = []
  const request = { tools, parallel_tool_calls: true, options: { temperature: 0.2, tool_choice: 'auto' } }
  // The rest of the answer comes only after all of its text was heard.
  t.strictSame(await ask(request, undefined, (text) => heard.push(text) === 2 && gate.open()), {
    text: 'Hello',
    refusal: null,
    finish_reason: 'tool_calls',
    tool_calls: [{ id: 'a', name: 'work', arguments: '{"x":1}' }, { id: 'b', name: 'work', arguments: '{"x":2}' }],
    usage: { input_tokens: 10, output_tokens: 5, total_tokens: 15 }
  })

  t.strictSame(heard, ['Hel', 'lo'])

  const [sent] = server.requests()
  t.match(sent!.headers, { authorization: `Bearer ${API_KEY}`, 'x-client-request-id': 'run_1.1.1', 'content-type': 'application/json' })
  t.strictSame(sent!.body, {
    temperature: 0.2, model: 'test', messages: [{ role: 'user', content: SECRET_TEXT }], tools, tool_choice: 'auto', parallel_tool_calls: true,
    stream: true, stream_options: { include_usage: true }
  })
  t.strictSame(server.violations, [])
})

t.test('FAULTS M2: without tools no tool option is sent, and options cannot touch what we decide', async (t) => {
  const { server, ask } = await setup(t, () => say('hi'))
  await ask({ tools: [], parallel_tool_calls: true, options: { tool_choice: 'required' } })
  await ask({ parallel_tool_calls: false, options: { parallel_tool_calls: true, tools, stream: false, stream_options: null, model: 'other', messages: [] } })
  for (const { body } of server.requests()) t.strictSame(Object.keys(body).sort(), ['messages', 'model', 'stream', 'stream_options'])
  t.equal(server.requests()[1]?.body.model, 'test')
  t.strictSame(server.violations, [])
})

t.test('calls one after the other share their connections', async (t) => {
  const { server, ask } = await setup(t, () => say('hi'))
  for (let i = 0; i < 10; i++) await ask()
  // Two, because the next call is made before the pool has taken the connection of the last one back.
  t.ok(new Set(server.requests().map((request) => request.clientPort)).size <= 2)
})

t.test('F9: 429, 500 and a cut stream are retryable, say how long to wait, and the next call succeeds', async (t) => {
  const { server, ask, fails } = await setup(t, [status(429, { retryAfter: 2, errorCode: 'rate_limit_exceeded' }), status(500), cut(say('half'), 2, 'fin'), say('whole')])
  await fails({ code: 'provider_rate_limited', retryable: true, retryAfterMs: 2000, status: 429, message: /\(429, rate_limit_exceeded\)/ })
  await fails({ code: 'provider_unavailable', retryable: true, retryAfterMs: null, status: 500 })
  await fails({ code: 'provider_truncated', retryable: true, status: null })
  t.equal((await ask()).text, 'whole')
  t.equal(server.requests().length, 4)
})

t.test('F10, FAULTS M7: a server that always fails is asked once per call, and its Retry-After is kept however long', async (t) => {
  const inAnHour = new Date(Date.now() + 3_600_000).toUTCString()
  const { server, fails } = await setup(t, [
    status(500), status(503, { retryAfter: 120 }), status(429, { retryAfter: inAnHour }), status(429, { headers: { 'retry-after-ms': '1500' }, retryAfter: 60 }),
    status(429, { retryAfter: 'soon' }), status(429, { retryAfter: -5 }), status(429, { retryAfter: new Date(0).toUTCString() }), status(529)
  ])
  await fails({ code: 'provider_unavailable', retryable: true })
  await fails({ code: 'provider_unavailable', retryable: true, retryAfterMs: 120_000 })
  const { retryAfterMs } = await fails({ code: 'provider_rate_limited' })
  t.ok(retryAfterMs! > 3_500_000 && retryAfterMs! <= 3_600_000)
  for (const expected of [1500, null, 0, 0]) await fails({ retryable: true, retryAfterMs: expected })
  await fails({ code: 'provider_unavailable', retryable: true, status: 529 })
  t.equal(server.requests().length, 8, 'one request each')
})

t.test('FAULTS M11, F18: what will not get better is typed, asked once and not retryable', async (t) => {
  const cases: [reply: Reply, code: string][] = [
    [status(400, { errorCode: 'context_length_exceeded', type: 'invalid_request_error' }), 'context_length_exceeded'],
    [status(400, { message: 'This model\'s maximum context length is 8192 tokens.' }), 'context_length_exceeded'],
    [status(400, { errorCode: 'content_filter' }), 'content_filter'],
    [status(400, { errorCode: 'invalid_value' }), 'provider_bad_request'],
    [status(401, { errorCode: 'invalid_api_key' }), 'provider_unauthorized'],
    [status(402), 'provider_unauthorized'],
    [status(403), 'provider_unauthorized'],
    [status(404, { errorCode: 'model_not_found' }), 'provider_model_not_found'],
    [status(422), 'provider_bad_request'],
    [status(302, { headers: { location: '/elsewhere' } }), 'provider_bad_request']
  ]
  const { server, fails } = await setup(t, cases.map(([reply]) => reply))
  for (const [reply, code] of cases) await fails({ code, retryable: false, status: reply.status })
  t.equal(server.requests().length, cases.length)
})

t.test('408 and 409 may get better', async (t) => {
  const { fails } = await setup(t, [status(408), status(409)])
  await fails({ code: 'provider_timeout', retryable: true, status: 408 })
  await fails({ code: 'provider_unavailable', retryable: true, status: 409 })
})

t.test('S13: an error never shows the key, the request or what the provider wrote', async (t) => {
  const echo = `you sent ${SECRET_TEXT} with ${API_KEY}`
  const { fails } = await setup(t, [
    ...[400, 401, 404, 429, 500].map((code) => status(code, { message: echo, type: echo, errorCode: API_KEY })),
    events({ error: { message: echo, type: echo, code: API_KEY } }), events(echo), events({ error: echo })
  ])
  for (let i = 0; i < 8; i++) {
    const error = await fails({})
    t.notMatch(`${error.message} ${error.stack} ${JSON.stringify(error)}`, /canary/)
  }
})

t.test('S13: a key that cannot be sent is not shown either', async (t) => {
  const { server, fails } = await setup(t, [], { apiKey: `${API_KEY}\nX: y` })
  const error = await fails({ code: 'provider_bad_request', retryable: false })
  t.notMatch(`${error.stack}`, /canary/)
  t.equal(server.requests().length, 0)
})

const calls = [{ name: 'work', arguments: { amount: 100, note: 'ü😀' } }]
const whole = answer({ text: 'I pay.', calls })
const emoji = whole.whole!.indexOf('😀')
const cuts: [where: string, reply: Reply][] = [
  ['closed before the first event', cut(whole, 0, 'fin')],
  ['closed after some text', cut(whole, 2, 'fin')],
  ['closed inside the arguments', cut(whole, 4, 'fin')],
  ['reset inside the arguments', cut(whole, 4, 'rst')],
  ['ended properly inside the arguments', cut(whole, 4, 'end')],
  ['closed inside a character', cutBytes(whole, emoji + 2, 'fin')],
  ['closed just before the finish_reason', cut(whole, -3, 'fin')],
  ['ended properly without a finish_reason', answer({ text: 'I pay.', calls, finish: null, usage: null })],
  ['without any event', events()]
]
for (const [where, reply] of cuts) {
  t.test(`FAULTS M5, F13: a stream ${where} is no answer`, async (t) => {
    const { fails } = await setup(t, [reply])
    await fails({ code: /provider_truncated|provider_connection/, retryable: true })
  })
}

t.test('an answer is complete with its finish_reason, even if the connection then breaks', async (t) => {
  const { ask } = await setup(t, [cut(whole, -2, 'fin'), cut(whole, -1, 'fin')])
  const first = await ask()
  t.match(first, { finish_reason: 'tool_calls', tool_calls: [{ arguments: JSON.stringify(calls[0]!.arguments) }], usage: null })
  t.match(await ask(), { finish_reason: 'tool_calls', usage: { total_tokens: 15 } })
})

t.test('nor does an error event or silence after it spoil the answer', async (t) => {
  const finish = { choices: [{ index: 0, delta: { content: 'hi' }, finish_reason: 'stop' }] }
  const { ask } = await setup(t, [events(finish, { error: { message: 'x' } }), events(finish, 'no JSON'), cut(say('hi'), 3, 'stall')], { idleMs: 30 })
  for (let i = 0; i < 3; i++) t.equal((await ask()).text, 'hi')
})

t.test('a server that keeps the connection open after [DONE] does not keep the answer', async (t) => {
  const { server, ask } = await setup(t, [cut(say('hi'), 5, 'stall')])
  t.equal((await ask()).text, 'hi')
  t.equal((await server.requests()[0]!.ended).aborted, true, 'the connection is closed')
})

t.test('a mistake in the listener is not taken for a cut stream', async (t) => {
  const { ask } = await setup(t, [say('hi')])
  await t.rejects(ask({}, undefined, () => { throw new TypeError('a mistake') }), new TypeError('a mistake'))
})

t.test('I26: usage of a stream that was cut after it is kept', async (t) => {
  const usage = { choices: [], usage: { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5 } }
  const { fails } = await setup(t, [cut(events(usage, 'x'), 1, 'fin'), events(usage, { error: { message: 'x' } }), events(usage, 'no JSON')])
  for (const code of ['provider_truncated', 'provider_unavailable', 'provider_malformed']) {
    await fails({ code, retryable: true, usage: { input_tokens: 3, output_tokens: 2, total_tokens: 5 } })
  }
})

t.test('FAULTS M6: an abort before the headers rejects with its reason and closes the connection within 100 ms', async (t) => {
  const { server, ask } = await setup(t, [delayed(say('never'), latch())])
  const abort = new AbortController()
  const asked = ask({}, abort.signal)
  const request = await server.waitForRequest(() => true)
  const reason = new Error('interrupted')
  const at = performance.now()
  abort.abort(reason)
  await t.rejects(asked, reason)
  const { aborted, endedAt } = await request.ended
  t.ok(aborted && endedAt! - at < 100, `closed after ${endedAt! - at} ms`)
})

t.test('FAULTS M6: an abort in mid-stream rejects with its reason and closes the connection within 100 ms', async (t) => {
  const { server, ask } = await setup(t, [cut(whole, 4, 'stall')])
  const abort = new AbortController()
  const text = latch()
  const asked = ask({}, abort.signal, text.open)
  await text.opened
  const reason = new Error('interrupted')
  const at = performance.now()
  abort.abort(reason)
  await t.rejects(asked, reason)
  const { aborted, endedAt } = await server.requests()[0]!.ended
  t.ok(aborted && endedAt! - at < 100, `closed after ${endedAt! - at} ms`)
})

t.test('FAULTS M6: an abort at the last moment is an abort, and one before the first makes no request', async (t) => {
  const { server, ask } = await setup(t, () => say('hi'))
  const abort = new AbortController()
  t.equal(await ask({}, abort.signal, () => abort.abort('too late')).then(() => 'answered', (reason: unknown) => reason), 'too late')
  t.equal(await ask({}, abort.signal).then(() => 'answered', (reason: unknown) => reason), 'too late')
  t.equal(server.requests().length, 1)
})

t.test('FAULTS M12, F12: silence in mid-stream is noticed and the connection closed', async (t) => {
  const { server, fails } = await setup(t, [cut(whole, 4, 'stall')], { idleMs: 30 })
  await fails({ code: 'provider_timeout', retryable: true, message: /silent for 30 ms/ })
  t.equal((await server.requests()[0]!.ended).aborted, true)
})

t.test('FAULTS M12: a stream that is slow but not silent goes on', async (t) => {
  const pieces = Array.from({ length: 8 }, (_, i) => `${i}`)
  const slow = pieces.reduce((reply, _, i) => heldAt(reply, 2 * i + 1, 100), say(pieces))
  const { ask } = await setup(t, [slow], { idleMs: 600 })
  t.equal((await ask()).text, '01234567', 'it took longer than idleMs, no pause did')
})

t.test('F12: no headers in time, and no server at all', async (t) => {
  const { server, fails } = await setup(t, [delayed(say('never'), latch())], { timeoutMs: 30 })
  await fails({ code: 'provider_timeout', retryable: true, message: /no response within 30 ms/ })
  t.equal((await server.requests()[0]!.ended).aborted, true)
  await server.close()
  await fails({ code: 'provider_connection', retryable: true, message: /ECONNREFUSED/ })
})

t.test('an error body that never ends costs neither time nor memory', async (t) => {
  const { fails } = await setup(t, [
    { ...status(500), parts: Array<Buffer>(64).fill(Buffer.alloc(64 * 1024, 32)), ending: 'stall', whole: null },
    { ...status(500), ending: 'stall', whole: null }
  ], { timeoutMs: 300 })
  await fails({ code: 'provider_unavailable', status: 500, retryable: true })
  await fails({ code: 'provider_timeout', retryable: true })
})

t.test('F11: what is not an event stream is a failure that may be retried', async (t) => {
  const page: Reply = { ...status(200), headers: { 'content-type': 'text/html' }, parts: [Buffer.from('<html>login</html>')], whole: Buffer.from('<html>login</html>') }
  const { fails } = await setup(t, [page, events({ choices: [] }), stream([], { finish: 'tool_calls' }), status(200)])
  for (let i = 0; i < 4; i++) await fails({ code: /provider_truncated|provider_malformed/, retryable: true })
})

t.test('S24: a flood is stopped at its cap and the connection closed', async (t) => {
  const megabyte = Buffer.from(`data: ${JSON.stringify({ choices: [{ index: 0, delta: { content: 'x'.repeat(1024 * 1024) } }] })}\n\n`)
  const { server, fails } = await setup(t, [{ ...say(''), parts: Array<Buffer>(64).fill(megabyte), ending: 'stall', whole: null }])
  await fails({ code: 'provider_malformed', retryable: false })
  t.equal((await server.requests()[0]!.ended).aborted, true)
})

t.test('N4: with a cap the others wait, first come first served, and each advances', async (t) => {
  const { server, ask } = await setup(t, () => delayed(say('hi'), 5), { concurrency: 3 })
  const finished: number[] = []
  await Promise.all(Array.from({ length: 10 }, async (_, conversation) => {
    for (let turn = 1; turn <= 3; turn++) {
      await ask({ request_id: `${conversation}.${turn}`, messages: [{ role: 'user', content: `conv:${conversation}` }] })
      finished.push(conversation)
    }
  }))
  t.equal(server.stats().maxInFlight, 3)
  t.equal(server.stats().maxInFlightPerConversation, 1)
  // Fair: nobody has its next turn before all have had theirs.
  for (const round of [0, 1, 2]) t.equal(new Set(finished.slice(round * 10, round * 10 + 10)).size, 10, `round ${round + 1}`)
})

t.test('N4: whoever gives up waiting loses its place, and a failure frees one', async (t) => {
  const gate = latch()
  const { server, ask } = await setup(t, (_, n) => n === 1 ? delayed(status(500), gate) : say('hi'), { concurrency: 1 })
  const first = ask({ request_id: 'first' })
  await server.waitForRequest(() => true)
  const abort = new AbortController()
  const second = ask({ request_id: 'second' }, abort.signal)
  const third = ask({ request_id: 'third' })
  abort.abort('gave up')
  t.equal(await second.then(() => 'answered', (reason: unknown) => reason), 'gave up')
  gate.open()
  await t.rejects(first, { code: 'provider_unavailable' })
  t.equal((await third).text, 'hi')
  t.strictSame(server.requests().map((request) => request.requestId), ['first', 'third'])
})

t.test('N5: a thousand calls are in flight at once when there is no cap', async (t) => {
  const gate = latch()
  const { server, ask } = await setup(t, () => delayed(say('hi'), gate))
  const all = Array.from({ length: 1000 }, (_, i) => ask({ messages: [{ role: 'user', content: `conv:${i}` }] }))
  await server.waitForRequest(() => server.stats().requests === 1000)
  t.equal(server.stats().maxInFlight, 1000)
  gate.open()
  t.equal((await Promise.all(all)).length, 1000)
})

t.test('the models of a provider are listed, or null when it does not say', async (t) => {
  const server = await startModelServer({ models: ['a', 'b'] })
  t.teardown(server.close)
  t.strictSame(await listModels({ apiKey: API_KEY, baseUrl: server.baseUrl }), ['a', 'b'])
  t.equal(await listModels({ apiKey: API_KEY, baseUrl: `${server.baseUrl}/none` }), null)

  const silent = createServer((request, response) => {
    if (request.url === '/odd/models') response.setHeader('content-type', 'application/json').end('{"data": [{"id": 7}]}')
    else response.setHeader('content-type', 'application/json').write('{')
  })
  await new Promise<void>((resolve) => silent.listen(0, '127.0.0.1', resolve))
  t.teardown(() => silent.close().closeAllConnections())
  const url = `http://127.0.0.1:${(silent.address() as AddressInfo).port}`
  t.equal(await listModels({ apiKey: API_KEY, baseUrl: `${url}/odd` }), null)
  t.equal(await listModels({ apiKey: API_KEY, baseUrl: `${url}/stalled`, timeoutMs: 30 }), null)
})
