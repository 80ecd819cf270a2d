import { connect } from 'node:net'
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import t from 'tap'
import { listening, newRun, post, problemOf, raw, refused, testApp } from '../support/app.js'

/** A body of `POST /runs` with this text as JSON somewhere in it. */
const withJson = (json: string) => `{"input":"x","model_options":{"response_format":{"a":${json}}}}`

t.test('FAULTS 4.3: prototype poisoning, however it is spelt, is 400', async (t) => {
  const { app, fake } = await testApp(t)
  for (const json of [
    '{"__proto__":{"admin":true}}', '{"\\u005f_proto__":{"admin":true}}', '{"\\u005F\\u005Fproto\\u005f\\u005f":1}', '{"constructor":{"prototype":{"admin":true}}}', '[{"a":[{"__proto__":null}]}]'
  ]) refused(t, await post(app, '/runs', withJson(json)), 400, 'malformed_json')
  refused(t, await post(app, '/runs', '{"input":"x","__proto__":{"admin":true}}'), 400, 'malformed_json')
  t.equal(({} as { admin?: boolean }).admin, undefined)
  t.strictSame(fake.calls, [])
})

t.test('FAULTS 4.3: nothing is coerced, and unknown fields are refused', async (t) => {
  const { app } = await testApp(t)
  for (const body of [{ input: 5 }, { input: true }, { input: 'x', after_seconds: '1' }, { input: 'x', tool_policy: { parallel: 'true' } }, { input: 'x', limits: { max_turns: '5' } }, { input: null }, { input: 'x', extra: 1 }]) {
    refused(t, await post(app, '/runs', body), 422, 'validation_failed')
  }
})

t.test('FAULTS 4.3: of a key that comes twice the last one counts', async (t) => {
  const { app, fake } = await testApp(t)
  const { id } = (await post(app, '/runs', '{"input":"x","model":"first","model":"second"}')).json<{ id: string }>()
  t.equal(fake.run(id).run.model, 'second')
})

t.test('S8: bodies nested deeper than 64 levels are 400 before they are parsed', async (t) => {
  const { app } = await testApp(t)
  const nested = (levels: number) => withJson('['.repeat(levels) + ']'.repeat(levels))
  t.equal((await post(app, '/runs', nested(61))).statusCode, 201, '64 levels in all')
  for (const levels of [62, 5000, 500_000]) refused(t, await post(app, '/runs', nested(levels)), 400, 'malformed_json')
  refused(t, await post(app, '/runs', withJson('{"a":'.repeat(62) + '1' + '}'.repeat(62))), 400, 'malformed_json')
  refused(t, await post(app, '/runs', '['.repeat(900_000)), 400, 'malformed_json')
  t.equal((await post(app, '/runs', withJson(JSON.stringify('['.repeat(1000) + '\\"{{{{')))).statusCode, 201, 'brackets in text are text')
})

t.test('FAULTS 4.3: invalid UTF-8 and lone surrogates are 400, NUL and all the rest come through', async (t) => {
  const { app, fake } = await testApp(t)
  for (const bytes of [[0xff], [0xc3, 0x28], [0xed, 0xa0, 0x80], [0xf0, 0x9f, 0x98], [0xc0, 0x80]]) {
    refused(t, await post(app, '/runs', Buffer.concat([Buffer.from('{"input":"'), Buffer.from(bytes), Buffer.from('"}')])), 400, 'malformed_json')
  }
  for (const escaped of ['\\ud83d', '\\ude00', '\\ud83dx', '\\ud83d\\ud83d\\ude00', '\\uDE00\\uD83D', '\\ud83d\\n', 'a\\ud83d']) {
    refused(t, await post(app, '/runs', `{"input":"${escaped}"}`), 400, 'malformed_json')
  }
  for (const [json, text] of [
    ['"a\\u0000b"', 'a\u0000b'], ['"\\ud83d\\ude00\\uD83D\\uDE00"', '\u{1F600}\u{1F600}'], ['"\u{1F600}\u2028\u202e"', '\u{1F600}\u2028\u202e'], ['"\\\\ud83d"', '\\ud83d'], ['"\\"\\\\"', '"\\']
  ] as const) {
    const { id, conversation_id: conversation } = (await post(app, '/runs', `{"input":${json}}`)).json<{ id: string, conversation_id: string }>()
    t.ok(id)
    t.equal((JSON.parse(fake.conversation(conversation).events[0]?.json ?? '') as { input: string }).input, text)
  }
})

t.test('FAULTS 4.3: numbers that would be rounded are 400', async (t) => {
  const { app } = await testApp(t)
  for (const json of ['9007199254740992', '-9007199254740993', '12345678901234567890', '1'.repeat(100_000), '1e400', '-1e999', '[1,2,99999999999999999]', '{"a":9007199254740993}']) {
    refused(t, await post(app, '/runs', withJson(json)), 400, 'malformed_json')
  }
  for (const json of ['9007199254740991', '-9007199254740991', '0', '-0', '1e300', '1.5e-7', '0.1', '123456789012.25', '"9007199254740993"']) {
    t.equal((await post(app, '/runs', withJson(json))).statusCode, 201, json)
  }
})

t.test('what does not parse is 400, and the answer does not repeat it', async (t) => {
  const { app } = await testApp(t)
  for (const text of ['{', '{"input":"canary', '{"input":canary}', '\'canary\'', '{"input":"x",}', 'canary', '{"a":01}', '{"a":1e}', '{"a":-}', '\u0000', '[1,]', '{"a" "b"}', '"\\x"', '{"input":"\u0001"}']) {
    const response = await post(app, '/runs', text)
    refused(t, response, 400, 'malformed_json')
    t.notMatch(response.body, 'canary')
  }
})

t.test('FAULTS 4.3: 413 by the limit of the route, with and without a Content-Length', async (t) => {
  const { app } = await testApp(t)
  const { port } = await listening(app)
  const { id } = await newRun(app)
  const text = (bytes: number) => JSON.stringify({ input: 'x'.repeat(bytes) })
  t.equal((await post(app, '/runs', text(7_000_000))).statusCode, 201)
  t.equal(refused(t, await post(app, '/runs', text(8_400_000)), 413, 'payload_too_large').limit, 8_388_608)
  t.equal(refused(t, await post(app, `/runs/${id}/cancel`, text(1_100_000)), 413, 'payload_too_large').limit, 1_048_576)
  const head = `POST /runs/${id}/cancel HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n`
  problemOf(t, await raw(port, `${head}Content-Length: 99999999\r\n\r\n`), 413, 'payload_too_large')
  const chunk = 'x'.repeat(0x110000)
  problemOf(t, await raw(port, `${head}Transfer-Encoding: chunked\r\n\r\n110000\r\n${chunk}\r\n`), 413, 'payload_too_large')
})

t.test('FAULTS 4.3: 415 for all but JSON', async (t) => {
  const { app } = await testApp(t)
  const payload = '{"input":"x"}'
  for (const type of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'application/jsonp', 'application/problem+json', 'application/json; charset=latin1', 'x', 'application/json,text/plain']) {
    refused(t, await app.inject({ method: 'POST', url: '/runs', headers: { 'content-type': type }, payload }), 415, 'unsupported_media_type')
  }
  refused(t, await app.inject({ method: 'POST', url: '/runs', payload: Buffer.from(payload) }), 415, 'unsupported_media_type')
  for (const encoding of ['gzip', 'br', 'deflate']) refused(t, await post(app, '/runs', payload, { 'content-encoding': encoding }), 415, 'unsupported_media_type')
  t.equal((await post(app, '/runs', payload, { 'content-encoding': 'identity' })).statusCode, 201)
  for (const type of ['application/json', 'application/json; charset=utf-8', 'Application/JSON;charset="UTF-8"']) t.equal((await post(app, '/runs', payload, { 'content-type': type })).statusCode, 201, type)
})

t.test('FAULTS 4.3: no content type slips past validation (CVE-2025-32442, CVE-2026-25223)', async (t) => {
  const { app, fake } = await testApp(t)
  for (const type of ['application/json;', 'application/json\t;', 'application/json ;x', 'application/json;;', 'APPLICATION/JSON', 'application/json\t', ' application/json', 'application/json; a="b', 'application/json\u00a0']) {
    const response = await post(app, '/runs', { extra: 1 }, { 'content-type': type })
    t.ok([415, 422].includes(response.statusCode), `${JSON.stringify(type)} is ${response.statusCode}`)
    refused(t, response, response.statusCode, response.statusCode === 415 ? 'unsupported_media_type' : 'validation_failed')
  }
  t.strictSame(fake.calls, [])
})

t.test('S11: ids that are none are 404 and reach no service', async (t) => {
  const { app, fake } = await testApp(t)
  const bad = [
    '%00', '..%2f..%2fetc%2fpasswd', 'a%0d%0aSet-Cookie:x', '%2e%2e', 'run_1', 'run_01KAG6XN3Q8V5T2M7R4C9B1DZH0h', 'run_01KAG6XN3Q8V5T2M7R4C9B1DZH0H%00', 'RUN_01KAG6XN3Q8V5T2M7R4C9B1DZH0H',
    '*', '%7b%7d', 'a:b', 'a%20b', '%F0%9F%98%80', '__proto__', 'constructor', 'x'.repeat(100)
  ]
  for (const id of bad) {
    for (const url of [`/runs/${id}`, `/runs/${id}/events`, `/runs/${id}/calls`, `/runs/run_01KAG6XN3Q8V5T2M7R4C9B1DZH0H/calls/${id}`]) {
      refused(t, await app.inject({ url, headers: { accept: 'application/json, text/event-stream' } }), 404, 'not_found')
    }
    refused(t, await app.inject({ method: 'POST', url: `/runs/${id}/cancel` }), 404, 'not_found')
  }
  for (const id of ['%00', '..%2f..', 'a%0d%0ab', '-a', '_a', 'a:b', 'a%7bb%7d', 'x'.repeat(65)]) refused(t, await app.inject(`/conversations/${id}`), 404, 'not_found')
  t.strictSame(fake.calls, [])
  refused(t, await app.inject(`/runs/${'x'.repeat(101)}`), 414, 'uri_too_long')
  refused(t, await app.inject('/runs/%E0%A4%A'), 400, 'bad_request')
})

t.test('FAULTS 4.3: what Node\'s parser refuses is a whole problem answer (4.2)', async (t) => {
  const { app } = await testApp(t)
  const { port } = await listening(app)
  const cases: [string, string, number, string][] = [
    ['a header of 20 KB', `GET /tools HTTP/1.1\r\nHost: localhost\r\nX-A: ${'a'.repeat(20_000)}\r\n\r\n`, 431, 'headers_too_large'],
    ['Content-Length and Transfer-Encoding (S26)', 'POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n', 400, 'bad_request'],
    ['two lengths', 'POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello', 400, 'bad_request'],
    ['no HTTP at all', 'hello\r\n\r\n', 400, 'bad_request'],
    ['a control character in a header', 'GET /tools HTTP/1.1\r\nHost: localhost\r\nX-A: a\x00b\r\n\r\n', 400, 'bad_request'],
    ['a bad chunk', 'POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n', 400, 'bad_request'],
    ['no Host', 'GET /tools HTTP/1.1\r\nConnection: close\r\n\r\n', 400, 'bad_request'],
    ['CONNECT', 'CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n', 400, 'bad_request'],
    ['a path that does not decode', 'GET /runs/%zz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n', 400, 'bad_request']
  ]
  for (const [name, request, status, code] of cases) {
    await t.test(name, async (t) => {
      const answer = await raw(port, request)
      problemOf(t, answer, status, code)
      t.equal(Number(/^content-length: (\d+)/im.exec(answer.headers)?.[1]), Buffer.byteLength(answer.text))
    })
  }
})

t.test('an expectation that is not known is ignored (RFC 9110, 10.1.1)', async (t) => {
  const { app } = await testApp(t)
  const { port } = await listening(app)
  t.equal((await raw(port, 'GET /tools HTTP/1.1\r\nHost: localhost\r\nExpect: miracles\r\nConnection: close\r\n\r\n')).status, 200)
})

t.test('S14: a body that drips in is cut off with 408, and others are served meanwhile', async (t) => {
  const { app } = await testApp(t, { requestTimeoutMs: 300 })
  const { port, origin } = await listening(app)
  const socket = connect(port, '127.0.0.1')
  socket.setEncoding('utf8')
  let text = ''
  socket.on('data', (chunk: string) => { text += chunk })
  socket.on('error', () => {})
  socket.write('POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n')
  const closed = once(socket, 'close')
  let open = true
  void closed.then(() => { open = false })
  const started = performance.now()
  while (open) {
    socket.write(' ')
    t.equal((await fetch(`${origin}/health/live`)).status, 200)
    await Promise.race([closed, sleep(50)])
  }
  t.ok(performance.now() - started < 10_000)
  problemOf(t, { status: Number(text.split(' ')[1]), type: /^content-type: (.*)$/im.exec(text)?.[1], text: text.split('\r\n\r\n')[1] ?? '' }, 408, 'request_timeout')
})

t.test('S14: a connection that never says anything is closed', async (t) => {
  const { app } = await testApp(t, { requestTimeoutMs: 200 })
  const { port } = await listening(app)
  problemOf(t, await raw(port, ''), 408, 'request_timeout')
  problemOf(t, await raw(port, 'GET /tools HTTP/1.1\r\nHost: loc'), 408, 'request_timeout')
})

t.test('requests without a body: none, an empty one and {} are the same, fields are refused', async (t) => {
  const { app } = await testApp(t)
  const { id, conversation_id: conversation } = await newRun(app)
  const cancel = { method: 'POST', url: `/runs/${id}/cancel` } as const
  t.equal((await app.inject(cancel)).statusCode, 200)
  t.equal((await app.inject({ ...cancel, headers: { 'content-type': 'application/json' } })).statusCode, 200)
  t.equal((await app.inject({ ...cancel, headers: { 'content-type': 'application/json' }, payload: '{}' })).statusCode, 200)
  for (const payload of ['{"wait":true}', '[]', 'null', '5']) {
    refused(t, await app.inject({ ...cancel, headers: { 'content-type': 'application/json' }, payload }), 422, 'validation_failed')
  }
  for (const headers of [{}, { 'content-type': 'application/json' }]) {
    t.match(refused(t, await app.inject({ method: 'POST', url: '/runs', headers }), 422, 'validation_failed').errors, [{ pointer: '', detail: 'must be an object' }])
  }
  refused(t, await app.inject({ method: 'DELETE', url: `/conversations/${conversation}`, payload: { force: true } }), 422, 'validation_failed')
  t.equal((await app.inject({ method: 'DELETE', url: `/conversations/${conversation}` })).statusCode, 204)
})

t.test('a method an address does not take is 405 and says which it takes', async (t) => {
  const { app } = await testApp(t)
  for (const [method, url, allow] of [
    ['DELETE', '/runs', 'GET, HEAD, POST'], ['PUT', '/conversations/abc', 'DELETE, GET, HEAD'], ['GET', '/runs/x/cancel', 'POST'], ['OPTIONS', '/tools', 'GET, HEAD'], ['POST', '/docs/static/x.js', 'GET, HEAD']
  ] as const) {
    const response = await app.inject({ method, url })
    t.strictSame(refused(t, response, 405, 'method_not_allowed').allow, allow.split(', '))
    t.equal(response.headers.allow, allow)
  }
  for (const url of ['/', '/run', '/runs/', '/runs/x/y', '/RUNS', '//runs', '/docs/nothing/here', '/.env']) refused(t, await app.inject(url), 404, 'not_found')
})

t.test('S20: without keys only loopback names and our own are answered (DNS rebinding)', async (t) => {
  const { app } = await testApp(t, { host: 'box.internal' })
  for (const host of ['localhost', 'localhost:3000', '127.0.0.1:80', '[::1]:3000', 'LOCALHOST', 'box.internal:3000']) t.equal((await app.inject({ url: '/tools', headers: { host } })).statusCode, 200, host)
  for (const host of ['evil.example', 'localhost.evil.example', '127.0.0.1.nip.io', '169.254.169.254', 'localhost:3000.evil.example', '[::2]', 'evil.example:localhost']) {
    refused(t, await app.inject({ url: '/tools', headers: { host } }), 403, 'forbidden')
    refused(t, await app.inject({ url: '/health/live', headers: { host } }), 403, 'forbidden')
  }
})
