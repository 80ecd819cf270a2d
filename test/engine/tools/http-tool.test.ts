import { gzipSync, brotliCompressSync } from 'node:zlib'
import t, { type Test } from 'tap'
import type { HttpTool } from '../../../src/core/tool.js'
import type { Tools } from '../../../src/engine/tools/tool.js'
import { openTools, type ToolsOptions } from '../../../src/engine/tools/tools.js'
import { toolContext } from '../../support/tool-context.js'
import { startToolServer, type Attempt, type ToolServer } from '../../support/tool-server.js'

interface World {
  server: ToolServer
  tools: Tools
  tool: (route: string, over?: Partial<HttpTool>) => HttpTool
  call: (route: string, args?: Record<string, unknown>, over?: Partial<HttpTool>) => Promise<unknown>
  last: () => Attempt
}

async function setup (t: Test, options: ToolsOptions = {}): Promise<World> {
  const server = await startToolServer()
  const tools = await openTools({ allowedHosts: ['127.0.0.1', 'other.test'], resolve: async () => [{ address: '127.0.0.1', family: 4 }], ...options })
  t.teardown(() => Promise.all([server.close(), tools.close()]))
  const tool = (route: string, over: Partial<HttpTool> = {}): HttpTool => ({ kind: 'http', name: 'there', url: `${server.url}/${route}`, parameters: { type: 'object' }, ...over })
  return {
    server,
    tools,
    tool,
    call: (route, args = {}, over = {}) => tools.run(tool(route, over), args, toolContext()),
    last: () => {
      const attempt = server.attempts.at(-1)
      if (attempt === undefined) throw new Error('the server was not called')
      return attempt
    }
  }
}

t.test('the arguments are the JSON body, for GET and DELETE the query', async (t) => {
  const { call, last } = await setup(t)
  const args = { value: { a: [1, null] }, text: 'ä & ü = 1', number: 1.5, yes: true, none: null, list: ['x'] }
  for (const method of [undefined, 'POST', 'PUT', 'PATCH', 'GET', 'DELETE'] as const) {
    t.same(await call('echo', args, method === undefined ? {} : { method }), { a: [1, null] }, `${method}`)
    t.same(last().args, args, 'arrays, objects and null are JSON text in a query')
    t.equal(last().method, method ?? 'POST', 'POST is the default')
    t.equal(last().headers['content-type'], method === 'GET' || method === 'DELETE' ? undefined : 'application/json')
  }
})

t.test('what the declared URL fixes in its query the model can neither change nor double', async (t) => {
  const { server, tools, tool, last } = await setup(t)
  const declared = tool('', { url: `${server.url}/echo?key=ours&value=fixed`, method: 'GET' })
  t.equal(await tools.run(declared, { key: 'theirs', q: 'x' }, toolContext()), 'fixed')
  t.same(last().args, { key: 'ours', value: 'fixed', q: 'x' })
})

t.test('a call says who it is', async (t) => {
  const { server, tools, tool, last } = await setup(t)
  await tools.run(tool('echo'), {}, toolContext({ run_id: 'run_9', call_id: 'call_7', turn: 3, attempt: 2 }))
  t.match(last().headers, {
    'idempotency-key': 'run_9.call_7',
    'interlock-run-id': 'run_9',
    'interlock-call-id': 'call_7',
    'interlock-turn': '3',
    'interlock-attempt': '2',
    'user-agent': 'interlock',
    accept: /^application\/json/,
    host: `127.0.0.1:${server.port}`
  })
  await tools.run(tool('echo'), {}, toolContext({ run_id: 'run_9', call_id: 'call_8' }))
  await tools.run(tool('echo'), {}, toolContext({ run_id: 'run_10', call_id: 'call_1' }))
  const traces = server.attempts.map(({ headers }) => String(headers.traceparent))
  for (const trace of traces) t.match(trace, /^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-01$/, 'W3C Trace Context')
  const [first, second, third] = traces.map((trace) => ({ traceId: trace.slice(3, 35), parent: trace.slice(36, 52) }))
  t.equal(first?.traceId, second?.traceId, 'one trace for all calls of a run')
  t.not(first?.parent, second?.parent)
  t.not(first?.traceId, third?.traceId, 'another run, another trace')
})

t.test('declared headers are sent; the reserved ones are refused when declared', async (t) => {
  const { call, tools, tool, last } = await setup(t)
  await call('echo', {}, { headers: { Authorization: 'Bearer abc', 'X-Custom': 'yes', Accept: 'text/plain', 'Content-Type': 'application/vnd.api+json', 'User-Agent': 'mine' } })
  t.match(last().headers, { authorization: 'Bearer abc', 'x-custom': 'yes', accept: 'text/plain', 'content-type': 'application/vnd.api+json', 'user-agent': 'mine' })

  for (const name of ['Host', 'HOST', 'Content-Length', 'Transfer-Encoding', 'Connection', 'Keep-Alive', 'Proxy-Connection', 'Proxy-Authorization', 'TE', 'Trailer',
    'Upgrade', 'Expect', 'Accept-Encoding', 'Idempotency-Key', 'idempotency-key', 'traceparent', 'Interlock-Run-Id', 'interlock-anything', 'webhook-signature']) {
    t.match(await tools.check(tool('echo', { headers: { [name]: 'x' } })), [{ pointer: `/headers/${name}`, detail: /set by Interlock or belongs to the connection/ }], name)
  }
  t.match(await tools.check(tool('echo', { headers: { 'X-A': '1', 'x-a': '2' } })), [{ pointer: '/headers/x-a', detail: /twice/ }])
  t.same(await tools.check(tool('echo', { headers: { Authorization: 'x', Accept: 'y', Cookie: 'z' } })), [])
  t.match(await tools.check(tool('echo', { url: 'http://[::1' })), [{ pointer: '/url', detail: 'is not an absolute URL' }])
})

t.test('S5: characters that a header cannot hold fail the call and nothing else', async (t) => {
  const { call, server } = await setup(t)
  for (const value of ['a\r\nX-Injected: 1', 'a\nb', 'a\0b', 'ключ']) {
    await t.rejects(call('echo', {}, { headers: { 'X-A': value } }), { name: 'ToolError', code: 'http_error' }, JSON.stringify(value))
  }
  for (const name of ['a b', 'a:b', 'a\nb', '']) {
    await t.rejects(call('echo', {}, { headers: { [name]: 'x' } }), { name: 'ToolError', code: 'http_error' }, JSON.stringify(name))
  }
  await call('echo', {}, { headers: JSON.parse('{"__proto__": "x", "constructor": "y"}') as Record<string, string> })
  t.equal(server.count(), 1)
})

t.test('any 2xx body is the output: JSON when the content type says so, else text; nothing is null', async (t) => {
  const { call } = await setup(t)
  const json = { 'content-type': 'application/json' }
  const cases: [title: string, args: Record<string, unknown>, output: unknown][] = [
    ['object', { headers: json, text: '{"a": [1, "x", null]}' }, { a: [1, 'x', null] }],
    ['201 and a charset', { status: 201, headers: { 'content-type': 'application/json; charset=utf-8' }, text: '"ü"' }, 'ü'],
    ['a JSON dialect', { headers: { 'content-type': 'application/problem+json' }, text: '[1]' }, [1]],
    ['text/json', { headers: { 'content-type': 'TEXT/JSON' }, text: 'false' }, false],
    ['null', { headers: json, text: 'null' }, null],
    ['text', { headers: { 'content-type': 'text/plain' }, text: '{"a": 1}' }, '{"a": 1}'],
    ['no content type', { text: '{"a": 1}' }, '{"a": 1}'],
    ['lines of JSON', { headers: { 'content-type': 'application/jsonl' }, text: '{}\n{}' }, '{}\n{}'],
    ['says JSON and is none', { headers: json, text: '<html>' }, '<html>'],
    ['empty', { headers: json, text: '' }, null],
    ['204', { status: 204 }, null],
    ['byte order mark', { headers: json, base64: Buffer.from('\ufeff{"a":1}').toString('base64') }, { a: 1 }],
    ['latin-1', { headers: { 'content-type': 'text/plain; charset="iso-8859-1"' }, base64: Buffer.from([0xfc]).toString('base64') }, 'ü'],
    ['unknown charset', { headers: { 'content-type': 'text/plain; charset=klingon' }, text: 'ü' }, 'ü'],
    ['gzip', { headers: { ...json, 'content-encoding': 'gzip' }, base64: gzipSync('{"zipped": true}').toString('base64') }, { zipped: true }],
    ['brotli', { headers: { ...json, 'content-encoding': 'br' }, base64: brotliCompressSync('{"zipped": true}').toString('base64') }, { zipped: true }],
    ['empty and said to be gzip', { status: 204, headers: { 'content-encoding': 'gzip' } }, null],
    ['identity', { headers: { 'content-encoding': 'identity' }, text: 'as it is' }, 'as it is']
  ]
  for (const [title, args, output] of cases) t.strictSame(await call('raw', args), output, title)
})

t.test('S7: JSON with a __proto__ key, or thousands of levels, is handed on as the text it is', async (t) => {
  const { call } = await setup(t)
  const headers = { 'content-type': 'application/json' }
  for (const text of ['{"a": {"__proto__": {"polluted": true}}}', '{"\\u005f_proto_\\u005F": {"polluted": true}}', '['.repeat(5000) + ']'.repeat(5000)]) {
    t.equal(await call('raw', { headers, text }), text)
  }
  t.equal(({} as { polluted?: boolean }).polluted, undefined)
  t.same(await call('raw', { headers, text: '{"constructor": {"prototype": 1}, "x": "__proto__"}' }), { constructor: { prototype: 1 }, x: '__proto__' })
})

t.test('F1: anything but 2xx is an http_error with the status and a bounded piece of the body', async (t) => {
  const { call, server } = await setup(t)
  await t.rejects(call('fail', { status: 500, message: 'out of stock' }), { name: 'ToolError', code: 'http_error', message: 'HTTP 500: {"message":"out of stock"}' })
  await t.rejects(call('fail', { status: 404 }), { code: 'http_error', message: /^HTTP 404: / })
  await t.rejects(call('raw', { status: 503 }), { message: 'HTTP 503' }, 'no body')
  await t.rejects(call('raw', { status: 304 }), { message: 'HTTP 304' })
  await t.rejects(call('raw', { status: 302 }), { message: 'HTTP 302' }, 'a redirect to nowhere')
  await t.rejects(call('raw', { status: 500, headers: { 'content-encoding': 'gzip' }, text: 'not gzip' }), { message: 'HTTP 500' }, 'an unreadable body')
  await t.rejects(call('raw', { status: 400, base64: Buffer.from([0xff, 0xfe]).toString('base64') }), { message: 'HTTP 400: \ufffd\ufffd' })
  const error = await call('fail', { status: 500, message: '😀'.repeat(100_000) }).catch((error: Error) => error) as Error
  t.ok(error.message.length <= 2_050 && error.message.length > 1_900, `${error.message.length} characters`)
  t.notMatch(error.message, /[\ud800-\udbff]$/, 'not cut inside a character')
  t.equal(server.count(), 8, 'no call was tried twice')
})

t.test('connections that fail are http_errors that say what happened and no address', async (t) => {
  const { call, server, tools, tool } = await setup(t)
  await t.rejects(call('close'), { code: 'http_error', message: 'the connection was closed before the answer was complete' })
  await t.rejects(call('cut'), { code: 'http_error', message: 'the connection was closed before the answer was complete' })
  await t.rejects(call('raw', { headers: { 'content-encoding': 'gzip' }, base64: gzipSync('cut off').subarray(0, 12).toString('base64') }), { message: 'the answer is compressed and cut off' })
  await t.rejects(call('raw', { headers: { 'content-encoding': 'gzip' }, text: 'not gzip' }), { message: 'the answer is said to be compressed and is not' })
  await t.rejects(call('raw', { headers: { 'content-encoding': 'compress' }, text: 'x' }), { message: /encoded in a way that was not asked for/ })
  await t.rejects(call('raw', { headers: { 'content-encoding': 'gzip, gzip' }, text: 'x' }), { message: /encoded in a way that was not asked for/ })
  await t.rejects(call('raw', { headers: { 'x-long': 'x'.repeat(100_000) } }), { message: 'the answer has too many headers' })
  t.equal(server.count('close'), 1, 'a write is not sent twice')
  await server.close()
  await t.rejects(tools.run(tool('echo'), {}, toolContext()), { code: 'http_error', message: 'the connection was refused' })

  const lost = await openTools({ resolve: async () => { throw Object.assign(new Error('getaddrinfo ENOTFOUND secret.internal'), { code: 'ENOTFOUND' }) } })
  t.teardown(() => lost.close())
  await t.rejects(lost.run(tool('', { url: 'http://secret.internal/' }), {}, toolContext()), { code: 'http_error', message: 'the host name does not exist' })
})

t.test('redirects follow the rules of fetch, at most five', async (t) => {
  const { call, server, last } = await setup(t)
  t.equal(await call('redirect', { times: 5 }), 'arrived')
  await t.rejects(call('redirect', { times: 6 }), { code: 'http_error', message: 'HTTP 302: more than 5 redirects' })

  const cases = [
    [301, 'POST', 'GET'], [302, 'POST', 'GET'], [303, 'POST', 'GET'], [307, 'POST', 'POST'], [308, 'POST', 'POST'],
    [301, 'PUT', 'PUT'], [302, 'PATCH', 'PATCH'], [303, 'PUT', 'GET'], [303, 'DELETE', 'GET'], [307, 'DELETE', 'DELETE'], [302, 'GET', 'GET']
  ] as const
  for (const [status, method, then] of cases) {
    await call('redirect', { to: `${server.url}/echo`, status, value: 'kept' }, { method, headers: { Authorization: 'secret', 'Content-Type': 'application/x+json' } })
    const arrived = last()
    t.equal(arrived.route, 'echo')
    t.equal(arrived.method, then, `${status} after ${method}`)
    const body = then !== 'GET' && then !== 'DELETE'
    t.equal(arrived.args.value, body ? 'kept' : undefined, 'the body stays or goes with the method')
    t.equal(arrived.headers.authorization, 'secret', 'same origin')
    if (method !== 'GET' && then === 'GET') t.equal(arrived.headers['content-type'], undefined)
    t.match(arrived.headers, { 'idempotency-key': 'run_1.call_1', 'interlock-run-id': 'run_1' })
  }
  await t.rejects(call('raw', { status: 302, headers: { location: 'http://[' } }), { message: /not a URL/ })
})

t.test('S4: no declared header crosses to another origin, and none comes back after that', async (t) => {
  const { call, server, last } = await setup(t)
  const other = await startToolServer()
  t.teardown(() => other.close())
  const headers = { Authorization: 'secret', Cookie: 'secret', 'X-Api-Key': 'secret' }
  const sentTo = (attempt: Attempt | undefined): string => JSON.stringify(attempt?.headers)

  await call('redirect', { to: `${other.url}/echo`, status: 307, value: 1 }, { headers })
  t.match(sentTo(server.attempts[0]), 'secret')
  t.notMatch(sentTo(other.attempts[0]), 'secret', 'another port')
  t.equal(other.attempts[0]?.headers['content-type'], 'application/json')
  await call('redirect', { to: `http://other.test:${server.port}/echo`, status: 307 }, { headers })
  t.notMatch(sentTo(last()), 'secret', 'another name')
  await call('redirect', { to: `${other.url}/redirect?to=${encodeURIComponent(`${server.url}/echo`)}` }, { headers })
  t.equal(last().route, 'echo')
  t.notMatch(sentTo(last()), 'secret', 'there and back')
})

t.test('S23: an answer over the limit is an http_error and the connection is closed', async (t) => {
  const { call, server } = await setup(t, { maxResponseBytes: 100_000 })
  const zeros = (bytes: number): string => '0'.repeat(bytes)
  t.equal(await call('bomb', { bytes: 100_000 }), zeros(100_000), 'exactly the limit')
  t.equal(await call('gzip_bomb', { bytes: 100_000 }), zeros(100_000))
  const before = process.memoryUsage().rss
  for (const route of ['bomb', 'gzip_bomb']) {
    await t.rejects(call(route, { bytes: 100_001 }), { code: 'http_error', message: 'HTTP 200: the answer has more than 100000 bytes' }, `${route}, one more`)
    server.reset()
    await t.rejects(call(route, { bytes: 1_000_000_000 }), { message: /more than 100000 bytes/ }, `${route} of 1 GB`)
    await server.waitFor(([attempt]) => attempt?.aborted === true)
  }
  t.ok(process.memoryUsage().rss - before < 100_000_000, 'memory')
})

t.test('D4: an abort ends the call at once with its reason, and the server sees the connection close', async (t) => {
  const { server, tools, tool } = await setup(t)
  for (const route of ['hang', 'drip', 'bomb', 'gzip_bomb', 'sleep']) {
    server.reset()
    const controller = new AbortController()
    const call = tools.run(tool(route), { bytes: 1e12, ms: 60_000 }, toolContext({ signal: controller.signal }))
    await server.waitFor(({ length }) => length === 1)
    const reason = new Error('timeout')
    controller.abort(reason)
    t.equal(await call.catch((error: unknown) => error), reason, route)
    await server.waitFor(([attempt]) => attempt?.aborted === true)
  }
  const late = AbortSignal.abort(new Error('before it began'))
  await t.rejects(tools.run(tool('echo'), {}, toolContext({ signal: late })), { message: 'before it began' })
  t.equal(server.count('echo'), 0, 'a call that was aborted before is not made')
})

t.test('D4: an abort ends a call whose connection is not even there yet', async (t) => {
  let asked = (): void => {}
  const resolving = new Promise<void>((resolve) => { asked = resolve })
  const tools = await openTools({ resolve: (): Promise<never> => (asked(), new Promise(() => {})) })
  t.teardown(() => tools.close())
  const controller = new AbortController()
  const call = tools.run({ kind: 'http', name: 'x', url: 'http://slow-dns.test/' }, {}, toolContext({ signal: controller.signal }))
  await resolving
  controller.abort(new Error('enough'))
  await t.rejects(call, { message: 'enough' })
})

t.test('E3: calls of one tool overlap, and connections are used again', async (t) => {
  const { call, server } = await setup(t)
  await Promise.all(Array.from({ length: 20 }, () => call('barrier', { n: 20 })))
  t.equal(server.maxOverlap('barrier'), 20)
  for (let i = 0; i < 10; i++) await call('echo')
  const used = new Set(server.attempts.filter(({ route }) => route === 'echo').map(({ connection }) => connection))
  t.ok(used.size < 10, `${used.size} connections for ten calls in a row`)
})

t.test('http_fetch GETs a URL and tells the server nothing about the run', async (t) => {
  const { server, tools, last } = await setup(t)
  const fetchTool = { kind: 'builtin', name: 'http_fetch' } as const
  const fetch = (url: string): Promise<unknown> => tools.run(fetchTool, tools.parse(fetchTool, JSON.stringify({ url })), toolContext())
  t.same(await fetch(`${server.url}/echo?value={"a":1}`), { a: 1 })
  t.equal(last().method, 'GET')
  t.notMatch(Object.keys(last().headers).join(), /interlock|idempotency|trace/)
  t.equal(await fetch(`${server.url}/raw?text=hello&headers={"content-type":"text/plain"}`), 'hello')
  t.equal(await fetch(`${server.url}/redirect?times=2`), 'arrived')
  await t.rejects(fetch(`${server.url}/fail?status=418`), { code: 'http_error', message: /^HTTP 418/ })
  await t.rejects(fetch('not a url'), { code: 'http_error', message: 'url is not an absolute URL' })
  await t.rejects(fetch('file:///etc/passwd'), { code: 'http_error', message: 'only http and https URLs can be called' })
  t.throws(() => tools.parse(fetchTool, '{}'), { code: 'invalid_arguments', message: /url/ })
  t.throws(() => tools.parse(fetchTool, '{"url": "http://a.test", "method": "POST"}'), { code: 'invalid_arguments', message: /"method"/ })
})
