import { once } from 'node:events'
import { writeFileSync } from 'node:fs'
import type { ServerResponse } from 'node:http'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import t, { type Test } from 'tap'
import { openEgress } from '../../../src/engine/tools/egress.js'
import { HttpTransport } from '../../../src/engine/tools/mcp/http-transport.js'
import { openMcp, type Mcp, type McpOptions, type McpRef } from '../../../src/engine/tools/mcp/mcp.js'
import { callOutput } from '../../../src/engine/tools/mcp/result.js'
import { parseMcpServers, type McpServer } from '../../../src/engine/tools/mcp/servers.js'
import { everythingByStdio, startEverything, watchChildren } from '../../support/mcp-everything.js'
import { startMcpServer, type McpTestServer, type McpTestServerOptions } from '../../support/mcp-server.js'
import { toolContext } from '../../support/tool-context.js'

const stdioMain: McpServer = { command: process.execPath, args: ['--import', 'tsx', fileURLToPath(new URL('../../support/mcp-stdio-main.ts', import.meta.url))] }

function open (t: Test, servers: Record<string, McpServer>, options: Partial<McpOptions> & { allowedHosts?: string[] } = {}): Mcp {
  const egress = openEgress({ allowedHosts: options.allowedHosts ?? ['127.0.0.1'] })
  const mcp = openMcp({ servers: new Map(Object.entries(servers)), egress, maxResponseBytes: 1_000_000, ...options })
  t.teardown(async () => {
    await mcp.close()
    await egress.close()
  })
  return mcp
}

interface World { server: McpTestServer, mcp: Mcp, ref: McpRef, call: (name?: string, args?: Record<string, unknown>) => Promise<unknown> }

/** A server of the test's own, by URL, and a call to it. */
async function setup (t: Test, options: McpTestServerOptions = {}, mcpOptions: Partial<McpOptions> = {}): Promise<World> {
  const server = await startMcpServer(options)
  t.teardown(() => server.close())
  const mcp = open(t, { own: { url: server.url } }, mcpOptions)
  const ref = { server: 'own' }
  return { server, mcp, ref, call: (name = 'act', args = {}) => mcp.call(ref, name, args, toolContext()) }
}

/** Resolves with what the promise rejects with. */
function failureOf (promise: Promise<unknown>): Promise<Error & { code?: string }> {
  return promise.then((value) => { throw new Error(`resolved with ${JSON.stringify(value)}`) }, (error: Error) => error)
}

const sse = (response: ServerResponse, ...events: string[]): ServerResponse => {
  response.writeHead(200, { 'content-type': 'text/event-stream' })
  for (const event of events) response.write(`${event}\n\n`)
  return response
}
const sseResult = (id: unknown, text: string): string => `event: message\ndata: ${JSON.stringify({ jsonrpc: '2.0', id, result: { content: [{ type: 'text', text }] } })}`

t.test('the servers setting', async (t) => {
  t.test('JSON text or the path of a JSON file, wrapped or not', async (t) => {
    const servers = { files: { command: 'npx', args: ['-y', 'files'], env: { A: 'b' }, cwd: '/tmp' }, web: { url: 'https://mcp.example/mcp', headers: { Authorization: 'Bearer x' } } }
    const path = join(t.testdir(), 'mcp.json')
    writeFileSync(path, JSON.stringify({ mcpServers: servers, another_program: 1 }))
    for (const setting of [JSON.stringify(servers), ` \n${JSON.stringify({ mcpServers: servers })}`, path]) t.same(Object.fromEntries(parseMcpServers(setting)), servers)
    t.same([...parseMcpServers('{}')], [])
    t.same(Object.fromEntries(parseMcpServers('{"a": {"type": "stdio", "command": "x"}, "b": {"type": "streamable-http", "url": "http://x"}}')), { a: { command: 'x' }, b: { url: 'http://x' } })
  })

  const wrong: [string, RegExp][] = [
    ['/nowhere/mcp.json', /^the MCP servers file \/nowhere\/mcp\.json cannot be read \(ENOENT\)/],
    ['{"a": ', /^INTERLOCK_MCP_SERVERS is not JSON: /],
    ['{"mcpServers": []}', /: mcpServers must be an object of servers by name$/],
    ['{"a": "npx"}', /: server "a": it must be an object with command or url$/],
    ['{"": {"command": "x"}}', /: server "": its name must have 1 to 64 characters$/],
    ['{"a": {}}', /: server "a": it must have either command or url$/],
    ['{"a": {"command": "x", "url": "http://x"}}', /: it must have either command or url$/],
    ['{"a": {"command": ""}}', /: command must be text$/],
    ['{"a": {"command": "x", "args": "-y"}}', /: args must be a list of texts$/],
    ['{"a": {"command": "x", "env": {"PORT": 1}}}', /: env must be an object of texts: see "PORT"$/],
    ['{"a": {"command": "x", "disabled": true}}', /: disabled is nothing that can be set here$/],
    ['{"a": {"command": "x", "headers": {}}}', /: headers is nothing that can be set here$/],
    ['{"a": {"command": "x", "constructor": 1}}', /: constructor is nothing that can be set here$/],
    ['{"a": {"url": "ftp://x"}}', /: url must be an absolute http or https URL$/],
    ['{"a": {"url": "https://u:secret@x/"}}', /: url must not hold credentials: send them in a header$/],
    ['{"a": {"url": "https://x/", "headers": {"Authorization": "secret\\n"}}}', /: headers has "Authorization", which must be one line of visible ASCII characters$/],
    ['{"a": {"url": "https://x/", "headers": {"Mcp-Session-Id": "secret"}}}', /: headers has "Mcp-Session-Id", which is set by Interlock/],
    ['{"a": {"url": "https://x/", "headers": {"a b": "secret"}}}', /: headers has "a b", which is no name of an HTTP header$/],
    ['{"a": {"url": "https://x/", "headers": {"x-a": "1", "X-A": "2"}}}', /: headers has "X-A", which is given twice, in different case$/],
    ['{"a": {"url": "https://x/", "type": "sse"}}', /: type sse is the older transport, which is not supported/],
    ['{"a": {"url": "https://x/", "type": "stdio"}}', /: type must be http, streamable-http, streamableHttp or absent$/],
    ['{"__proto__": {"command": "x"}}', /is not JSON: the key __proto__ is not accepted$/]
  ]
  for (const [setting, message] of wrong) {
    t.test(`refused, without a value: ${setting}`, async (t) => {
      const error = await failureOf((async () => parseMcpServers(setting))())
      t.match(error.message, message)
      t.notMatch(error.message, /secret|\n/)
    })
  }
})

t.test('what a result becomes', async (t) => {
  const text = (value: string) => ({ type: 'text', text: value, annotations: { priority: 1 }, _meta: {} })
  const cases: [string, Record<string, unknown>, unknown][] = [
    ['structured content is the output', { content: [text('{"a":1}')], structuredContent: { a: 1 } }, { a: 1 }],
    ['a single text is a string', { content: [text('hello')] }, 'hello'],
    ['several blocks are a list', { content: [text('a'), text('b')] }, [{ type: 'text', text: 'a' }, { type: 'text', text: 'b' }]],
    ['images and sound keep their data', { content: [{ type: 'image', data: 'aW1n', mimeType: 'image/png' }, { type: 'audio', data: 'c28=', mimeType: 'audio/wav' }] },
      [{ type: 'image', mime_type: 'image/png', data: 'aW1n' }, { type: 'audio', mime_type: 'audio/wav', data: 'c28=' }]],
    ['resources keep what they have', { content: [{ type: 'resource', resource: { uri: 'a:1', text: 'x' } }, { type: 'resource', resource: { uri: 'a:2', mimeType: 'b/c', blob: 'eA==' } }] },
      [{ type: 'resource', uri: 'a:1', text: 'x' }, { type: 'resource', uri: 'a:2', mime_type: 'b/c', data: 'eA==' }]],
    ['links keep what they have', { content: [{ type: 'resource_link', uri: 'a:1', name: 'one', mimeType: 'text/plain' }] }, [{ type: 'resource_link', uri: 'a:1', name: 'one', mime_type: 'text/plain' }]],
    ['an unknown kind of block stays', { content: [{ type: 'hologram', depth: 3 }] }, [{ type: 'hologram', depth: 3 }]],
    ['nothing is null', { content: [] }, null],
    ['no content is null', {}, null],
    ['an empty text is null', { content: [text('')] }, null],
    ['what is no block is left out', { content: ['x', null, text('y')] }, 'y']
  ]
  for (const [title, result, output] of cases) t.strictSame(callOutput(result, 10_000), output, title)

  t.throws(() => callOutput({ isError: true, content: [text('no such order'), text('try 7')] }, 10_000), { code: 'tool_error', message: 'no such order\ntry 7' })
  t.throws(() => callOutput({ isError: true, content: [] }, 10_000), { code: 'tool_error', message: 'the tool failed without a message' })
  t.equal((await failureOf((async () => callOutput({ isError: true, content: [text('x'.repeat(50_000))] }, 10_000))())).message.length, 4_000, 'bounded')
  t.throws(() => callOutput({ content: [text('x'.repeat(101))] }, 100), { code: 'tool_error', message: /more than 100 characters/ })
  const poisoned = callOutput(JSON.parse('{"structuredContent": {"__proto__": {"polluted": 1}, "a": 1}}') as Record<string, unknown>, 1000)
  t.strictSame(poisoned, { a: 1 })
  t.equal(({} as { polluted?: number }).polluted, undefined)
})

for (const kind of ['stdio', 'streamable HTTP'] as const) {
  t.test(`the reference server by ${kind}`, async (t) => {
    const watched = watchChildren()
    t.teardown(watched.stop)
    const http = kind === 'stdio' ? null : await startEverything()
    t.teardown(() => http?.kill())
    const mcp = open(t, { everything: http === null ? everythingByStdio : { url: http.url } })
    const ref = { server: 'everything' }
    const call = (name: string, args: Record<string, unknown> = {}) => mcp.call(ref, name, args, toolContext())

    t.test('lists its tools', async (t) => {
      const tools = await mcp.list(ref)
      t.match(tools.find(({ name }) => name === 'echo'), {
        description: 'Echoes back the input string', effects: 'read', idempotent: true, parameters: { type: 'object', properties: { message: { type: 'string' } }, required: ['message'] }
      })
      t.match(tools.find(({ name }) => name === 'toggle-simulated-logging'), { effects: 'write', idempotent: false })
      t.notOk(tools.some(({ name }) => name === 'simulate-research-query'), 'what can only be run as a task is not offered')
      t.same(mcp.names(), ['everything'])
    })

    t.test('runs its tools', async (t) => {
      t.equal(await call('echo', { message: 'grüße' }), 'Echo: grüße')
      t.equal(await call('get-sum', { a: 2, b: 3 }), 'The sum of 2 and 3 is 5.')
      t.strictSame(await call('get-structured-content', { location: 'Chicago' }), { temperature: 36, conditions: 'Light rain / drizzle', humidity: 82 })
      t.match(await call('get-tiny-image'), [{ type: 'text', text: /image/ }, { type: 'image', mime_type: 'image/png', data: /^iVBORw0KGgo/ }, { type: 'text' }])
      t.match(await call('get-resource-reference', { resourceType: 'Blob', resourceId: 2 }), [{ type: 'text' }, { type: 'resource', uri: /^demo:/, data: /^[A-Za-z0-9+/=]+$/ }, { type: 'text' }])
      t.match(await call('get-resource-links', { count: 1 }), [{ type: 'text' }, { type: 'resource_link', uri: /^demo:/, name: /1/ }])
    })

    t.test('a failure is a ToolError with the server\'s own words', async (t) => {
      await t.rejects(call('get-sum', { a: 'two', b: 3 }), { name: 'ToolError', code: 'tool_error', message: /Invalid arguments for tool get-sum/ })
      await t.rejects(call('get-nothing'), { code: 'tool_error', message: /Tool get-nothing not found/ })
    })

    t.test('progress is told, the last of it too', async (t) => {
      const told: unknown[] = []
      const context = toolContext({ progress: (data) => { told.push(data) } })
      t.match(await mcp.call(ref, 'trigger-long-running-operation', { duration: 0.06, steps: 3 }, context), /completed/)
      t.strictSame(told, [{ progress: 1, total: 3 }, { progress: 2, total: 3 }, { progress: 3, total: 3 }])
    })

    t.test('many calls at once share one connection', async (t) => {
      const answers = await Promise.all(Array.from({ length: 200 }, (_, n) => call('echo', { message: String(n) })))
      t.same(answers, Array.from({ length: 200 }, (_, n) => `Echo: ${n}`))
      if (http === null) t.equal(watched.children.length, 1, 'one process')
      else t.equal(http.lines.filter((line) => line.startsWith('Session initialized')).length, 1, 'one session')
    })

    t.test('an abort ends the call with the signal\'s reason, and the connection goes on', async (t) => {
      const stop = new AbortController()
      const reason = new Error('interrupted')
      const context = toolContext({ signal: stop.signal, progress: () => stop.abort(reason) })
      t.equal(await failureOf(mcp.call(ref, 'trigger-long-running-operation', { duration: 60, steps: 1200 }, context)), reason)
      t.equal(await failureOf(mcp.call(ref, 'echo', { message: 'x' }, context)), reason, 'already aborted')
      t.equal(await call('echo', { message: 'on' }), 'Echo: on')
    })
  })
}

t.test('a process by stdio', async (t) => {
  t.test('has what its setting gives it, and nothing else of our environment', async (t) => {
    process.env.INTERLOCK_TEST_SECRET = 'secret'
    t.teardown(() => { delete process.env.INTERLOCK_TEST_SECRET })
    const mcp = open(t, { everything: { ...everythingByStdio, env: { GIVEN: 'yes' } } })
    const env = JSON.parse(await mcp.call({ server: 'everything' }, 'get-env', {}, toolContext()) as string) as Record<string, string>
    t.match(env, { GIVEN: 'yes', PATH: process.env.PATH })
    // tap gives its own variables to every process that a test starts.
    const allowed = /^(GIVEN|HOME|LOGNAME|PATH|SHELL|TERM|USER|NODE_OPTIONS|_TAPJS_.*)$/
    t.same(Object.keys(env).filter((name) => !allowed.test(name)), [])
  })

  t.test('that ended is started again by the next call', async (t) => {
    const { children, stop } = watchChildren()
    t.teardown(stop)
    const mcp = open(t, { everything: everythingByStdio })
    const echo = () => mcp.call({ server: 'everything' }, 'echo', { message: 'x' }, toolContext())
    t.equal(await echo(), 'Echo: x')
    const [first] = children
    const gone = once(first as NonNullable<typeof first>, 'close')
    first?.kill('SIGKILL')
    await gone
    t.same(await Promise.all([echo(), echo(), echo()]), ['Echo: x', 'Echo: x', 'Echo: x'])
    t.equal(children.length, 2, 'once for all three')
  })

  t.test('that ends in mid-call fails the call, which is not repeated', async (t) => {
    const { children, stop } = watchChildren()
    t.teardown(stop)
    const mcp = open(t, { everything: everythingByStdio })
    const ref = { server: 'everything' }
    let told = 0
    const context = toolContext({
      progress: () => {
        if (++told === 1) children[0]?.kill('SIGKILL')
      }
    })
    const calls = [1, 2].map(() => failureOf(mcp.call(ref, 'trigger-long-running-operation', { duration: 60, steps: 1200 }, context)))
    for (const error of await Promise.all(calls)) {
      t.match(error, { name: 'ToolError', code: 'tool_error', message: 'MCP server everything: the connection was lost before the answer came: whether the call took effect is unknown' })
    }
    t.equal(children.length, 1)
    t.equal(await mcp.call(ref, 'echo', { message: 'x' }, toolContext()), 'Echo: x')
    t.equal(children.length, 2)
  })

  t.test('sees the cancellation of a call', async (t) => {
    const mcp = open(t, { own: stdioMain })
    const stop = new AbortController()
    const context = toolContext({ signal: stop.signal, progress: () => stop.abort(new Error('interrupted')) })
    t.match(await failureOf(mcp.call({ server: 'own' }, 'hold', {}, context)), { message: 'interrupted' })
    t.match(await mcp.call({ server: 'own' }, 'seen', {}, toolContext()), /^\d+ the client no longer waits for the answer$/)
  })

  t.test('may write what is no message; an answer that is too long ends it', async (t) => {
    const { children, stop } = watchChildren()
    t.teardown(stop)
    const mcp = open(t, { own: stdioMain }, { maxResponseBytes: 100_000 })
    t.equal(await mcp.call({ server: 'own' }, 'chatter', {}, toolContext()), 'said')
    await t.rejects(mcp.call({ server: 'own' }, 'flood', { chars: 200_000 }, toolContext()), { code: 'tool_error', message: 'MCP server own: the answer has more than 100000 bytes' })
    t.equal(await mcp.call({ server: 'own' }, 'flood', { chars: 3 }, toolContext()), 'xxx', 'the next call starts it again')
    t.equal(children.length, 2)
  })

  t.test('is gone when close has resolved, also one that was still starting or in mid-call', async (t) => {
    const { children, started, stop } = watchChildren()
    t.teardown(stop)
    const mcp = open(t, { busy: everythingByStdio, starting: everythingByStdio, silent: { command: process.execPath, args: ['-e', 'process.on("SIGTERM", () => {}); setInterval(() => {}, 1e6)'] } })
    let began = (): void => {}
    const under = new Promise<void>((resolve) => { began = resolve })
    const calls = [failureOf(mcp.call({ server: 'busy' }, 'trigger-long-running-operation', { duration: 60, steps: 1200 }, toolContext({ progress: () => began() })))]
    await under
    calls.push(failureOf(mcp.list({ server: 'starting' })), failureOf(mcp.list({ server: 'silent' })))
    await started(3)
    await mcp.close()
    t.match((await Promise.all(calls)).map(({ message }) => message), [
      /^MCP server busy: the connection was lost/, 'MCP server starting: this worker is shutting down', 'MCP server silent: this worker is shutting down'
    ])
    t.equal(children.length, 3)
    for (const { exitCode, signalCode } of children) t.ok(exitCode !== null || signalCode !== null, `${exitCode} ${signalCode}`)
    await t.rejects(mcp.list({ server: 'busy' }), { code: 'tool_error', message: /shutting down/ })
    await mcp.close()
  })
})

t.test('a restart of a streamable HTTP server on its port', async (t) => {
  const first = await startEverything()
  t.teardown(() => first.kill())
  const mcp = open(t, { everything: { url: first.url } })
  const ref = { server: 'everything' }
  t.equal(await mcp.call(ref, 'echo', { message: '1' }, toolContext()), 'Echo: 1')

  await first.kill()
  t.match(await failureOf(mcp.call(ref, 'echo', { message: '2' }, toolContext())), { name: 'ToolError', code: 'tool_error', message: /^MCP server everything: it cannot be reached \(ECONNREFUSED\)/ })
  const second = await startEverything(first.port)
  t.teardown(() => second.kill())
  t.same(await Promise.all(['3', '4', '5'].map((message) => mcp.call(ref, 'echo', { message }, toolContext()))), ['Echo: 3', 'Echo: 4', 'Echo: 5'], 'the session it does not know is made anew')
  t.equal(second.lines.filter((line) => line.startsWith('Session initialized')).length, 1, 'once for all three')

  const killed: Promise<void>[] = []
  const context = toolContext({ progress: () => { if (killed.length === 0) killed.push(second.kill()) } })
  const lost = failureOf(mcp.call(ref, 'trigger-long-running-operation', { duration: 60, steps: 1200 }, context))
  t.match(await lost, { name: 'ToolError', code: 'tool_error', message: /^MCP server everything: the connection was lost before the answer came: whether the call took effect is unknown$/ })
  await Promise.all(killed)
  const third = await startEverything(first.port)
  t.teardown(() => third.kill())
  t.ok((await mcp.list(ref)).length > 5)
  t.equal(await mcp.call(ref, 'echo', { message: '6' }, toolContext()), 'Echo: 6')
  t.notOk(third.lines.some((line) => line.includes('long')), 'nothing was repeated')
})

t.test('sessions', async (t) => {
  for (const unknownSession of [404, 400]) {
    t.test(`one that the server answers ${unknownSession} to is begun anew, and the refused request repeated once`, async (t) => {
      let runs = 0
      const { server, mcp, ref, call } = await setup(t, { unknownSession, call: async () => ({ content: [{ type: 'text', text: String(++runs) }] }) })
      t.equal(await call(), '1')
      server.forget()
      t.equal(await call(), '2')
      t.equal(server.count('initialize'), 2)
      t.equal(server.count('tools/call'), 3, 'the second was refused')
      server.forget()
      t.same(await mcp.list(ref), [])
      t.equal(server.count('initialize'), 3)
    })
  }

  t.test('a call that is refused twice fails', async (t) => {
    const { server, call } = await setup(t, {
      intercept: ({ method }, response) => {
        if (method === 'tools/call') response.writeHead(404).end()
        return method === 'tools/call'
      }
    })
    t.match(await failureOf(call()), { code: 'tool_error', message: /^MCP server own: it forgets its session/ })
    t.equal(server.count('tools/call'), 2)
  })

  t.test('a 400 that says nothing of a session is no reason to repeat', async (t) => {
    const { server, call } = await setup(t, {
      intercept: ({ method }, response) => {
        if (method === 'tools/call') response.writeHead(400).end('{"error": "bad"}')
        return method === 'tools/call'
      }
    })
    t.match(await failureOf(call()), { code: 'tool_error', message: /^MCP server own: it answered HTTP 400/ })
    t.equal(server.count('tools/call'), 1)
  })

  t.test('another call of the forgotten session still gets its answer', async (t) => {
    let answer = (): void => {}
    const { server, call } = await setup(t, {
      call: async (name) => {
        if (name === 'slow') await new Promise<void>((resolve) => { answer = resolve })
        return { content: [{ type: 'text', text: name }] }
      }
    })
    const slow = call('slow')
    await server.waitFor(() => server.count('tools/call') === 1)
    server.forget()
    t.equal(await call('quick'), 'quick')
    answer()
    t.equal(await slow, 'slow')
    await server.waitFor((requests) => requests.find(({ http }) => http === 'GET')?.closed === true)
  })

  t.test('are ended by close', async (t) => {
    const { server, mcp, call } = await setup(t)
    await call()
    await mcp.close()
    t.equal(server.count('DELETE'), 1)
  })
})

t.test('the listing', async (t) => {
  const tool = (name: unknown, more: object = {}) => ({ name, inputSchema: { type: 'object' }, ...more })

  t.test('has all pages, is kept, and is dropped when the server says that the tools changed', async (t) => {
    let pages: unknown[][] = [[tool('a')], [tool('b')], [tool('c')]]
    const { server, mcp, ref } = await setup(t, { pages: () => pages })
    const names = async () => (await mcp.list(ref)).map(({ name }) => name)
    t.same(await names(), ['a', 'b', 'c'])
    t.same(await names(), ['a', 'b', 'c'])
    t.equal(server.count('tools/list'), 3)
    await server.waitFor(() => server.count('GET') === 1)
    pages = [[tool('d')]]
    await server.toolsChanged()
    await mcp.call(ref, 'any', {}, toolContext())
    t.same(await names(), ['d'])
  })

  t.test('takes tools as they are; what is no tool is left out', async (t) => {
    const hostile = { type: 'string', pattern: '(a+)+$', $ref: 'http://elsewhere/' }
    const page = [
      tool('odd', { inputSchema: hostile, description: 7, annotations: { readOnlyHint: 'yes', idempotentHint: 1 } }),
      { name: 'bare' },
      tool('wordy', { description: 'x'.repeat(5_000) }),
      tool('fine', { description: 'good', annotations: { readOnlyHint: true, idempotentHint: true }, outputSchema: { type: 'object', $ref: '#/nowhere' } }),
      tool('task', { execution: { taskSupport: 'required' } }),
      tool(7), tool(''), null, 'tool'
    ]
    const { mcp, ref } = await setup(t, {
      intercept: ({ method, message }, response) => {
        if (method !== 'tools/list') return false
        response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ jsonrpc: '2.0', id: message.id, result: { tools: page } }))
        return true
      }
    })
    t.strictSame(await mcp.list(ref), [
      { name: 'odd', description: '', parameters: hostile, effects: 'write', idempotent: false },
      { name: 'bare', description: '', parameters: {}, effects: 'write', idempotent: false },
      { name: 'wordy', description: 'x'.repeat(4_096), parameters: { type: 'object' }, effects: 'write', idempotent: false },
      { name: 'fine', description: 'good', parameters: { type: 'object' }, effects: 'read', idempotent: true }
    ])
  })

  const endless: [string, (page: number) => object, RegExp][] = [
    ['without end', (page) => ({ tools: [], nextCursor: String(page) }), /more than 100 pages/],
    ['of too many tools', (page) => ({ tools: Array.from({ length: 300 }, (_, n) => tool(`t${page}-${n}`)), nextCursor: 'x' }), /more than 1000 tools/],
    ['too long in all', (page) => ({ tools: [tool(`t${page}`, { inputSchema: { type: 'object', title: 'x'.repeat(300_000) } })], nextCursor: 'x' }), /longer than 1000000 characters/],
    ['nested too deep', () => ({ tools: [tool('a', { inputSchema: JSON.parse('{"a":'.repeat(200) + '1' + '}'.repeat(200)) as unknown })] }), /nested deeper than 100 levels/]
  ]
  for (const [title, page, message] of endless) {
    t.test(`${title} is refused`, async (t) => {
      let pages = 0
      const { mcp, ref } = await setup(t, {
        intercept: ({ method, message }, response) => {
          if (method !== 'tools/list') return false
          response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ jsonrpc: '2.0', id: message.id, result: page(++pages) }))
          return true
        }
      })
      t.match(await failureOf(mcp.list(ref)), { code: 'tool_error', message })
    })
  }
})

t.test('a call over HTTP', async (t) => {
  t.test('the server sees its cancellation, and its stream is closed', async (t) => {
    let began = (): void => {}
    const under = new Promise<void>((resolve) => { began = resolve })
    let cancelled = (_reason: unknown): void => {}
    const seen = new Promise<unknown>((resolve) => { cancelled = resolve })
    const { server, mcp, ref } = await setup(t, {
      call: async (_name, _args, { signal }) => {
        began()
        await new Promise((resolve) => signal.addEventListener('abort', resolve))
        cancelled(signal.reason)
        return { content: [] }
      }
    })
    const stop = new AbortController()
    const call = failureOf(mcp.call(ref, 'hold', {}, toolContext({ signal: stop.signal })))
    await under
    stop.abort(new Error('interrupted'))
    t.match(await call, { message: 'interrupted' })
    t.equal(await seen, 'the client no longer waits for the answer')
    await server.waitFor((requests) => requests.some(({ method, closed }) => method === 'tools/call' && closed))
    t.equal(server.count('notifications/cancelled'), 1)
  })

  t.test('cancelled before it was sent, it is not sent', async (t) => {
    const server = await startMcpServer({
      intercept: (_request, response) => {
        response.writeHead(202).end()
        return true
      }
    })
    const egress = openEgress({ allowedHosts: ['127.0.0.1'] })
    t.teardown(() => Promise.all([server.close(), egress.close()]))
    const transport = new HttpTransport(new URL(server.url), { headers: {}, egress, maxBytes: 1000 })
    await transport.start()
    const sent = failureOf(transport.send({ jsonrpc: '2.0', id: 7, method: 'tools/call', params: { name: 'act' } }))
    await transport.send({ jsonrpc: '2.0', method: 'notifications/cancelled', params: { requestId: 7 } })
    await sent
    await transport.close()
    t.same(server.requests.map(({ method }) => method), ['notifications/cancelled'])
  })

  t.test('a signal that is aborted after the answer cancels nothing', async (t) => {
    const { server, mcp, ref } = await setup(t)
    const stop = new AbortController()
    await mcp.call(ref, 'act', {}, toolContext({ signal: stop.signal }))
    stop.abort()
    await mcp.call(ref, 'act', {}, toolContext())
    t.equal(server.count('notifications/cancelled'), 0)
  })

  t.test('has no deadline but its signal', async (t) => {
    const { call } = await setup(t)
    await call()
    const delays: unknown[] = []
    const { setTimeout } = globalThis
    t.teardown(() => { globalThis.setTimeout = setTimeout })
    globalThis.setTimeout = ((work: () => void, ms: number) => {
      delays.push(ms)
      return setTimeout(work, ms)
    }) as typeof setTimeout
    await call()
    t.ok(delays.includes(2 ** 31 - 1), 'the SDK\'s timer is the longest there is')
    t.notOk(delays.includes(60_000))
  })

  t.test('the stream closed by the server is resumed, without a second call', async (t) => {
    let runs = 0
    const { server, call } = await setup(t, {
      resumable: true,
      call: async (_name, _args, { closeSSEStream }) => {
        runs++
        closeSSEStream?.()
        await server.waitFor((requests) => requests.some(({ headers }) => headers['last-event-id'] !== undefined))
        return { content: [{ type: 'text', text: 'resumed' }] }
      }
    })
    t.equal(await call(), 'resumed')
    t.equal(runs, 1)
    t.equal(server.count('tools/call'), 1)
  })

  const broken: [string, (response: ServerResponse, id: unknown) => void][] = [
    ['ends the stream without an answer', (response) => sse(response, ': nothing').end()],
    ['breaks the stream', (response) => { sse(response, ': nothing').write('data: {', () => response.destroy()) }],
    ['closes the connection', (response) => { response.destroy() }],
    ['accepts the request like a notification', (response) => { response.writeHead(202).end() }],
    ['answers another request', (response) => { sse(response, sseResult(99_999, 'x')).end() }],
    ['answers with an empty list', (response) => { response.writeHead(200, { 'content-type': 'application/json' }).end('[]') }],
    ['ends a stream that it then refuses to resume', (response) => { sse(response, 'id: refused\nretry: 0\ndata:').end() }],
    ['ends a stream that it then resumes with nothing', (response) => { sse(response, 'id: empty\nretry: 0\ndata:').end() }],
    ['answers with what is no message', (response) => { sse(response, 'data: {"half":').end() }]
  ]
  for (const [what, act] of broken) {
    t.test(`fails when the server ${what}`, async (t) => {
      const { server, call } = await setup(t, {
        intercept: ({ method, headers, message }, response) => {
          if (method === 'tools/call') act(response, message.id)
          else if (headers['last-event-id'] === 'refused') response.writeHead(400).end()
          else if (headers['last-event-id'] === 'empty') sse(response).end()
          else return false
          return true
        }
      })
      t.match(await failureOf(call()), { name: 'ToolError', code: 'tool_error', message: /^MCP server own: the connection was lost before the answer came.*: whether the call took effect is unknown$/ })
      t.equal(server.count('tools/call'), 1, 'not repeated')
    })
  }

  t.test('a server may ask something meanwhile, with ids like ours', async (t) => {
    const { server, call } = await setup(t, {
      call: async (_name, _args, { ping }) => {
        for (let n = 0; n < 5; n++) await ping()
        return { content: [{ type: 'text', text: 'still there' }] }
      }
    })
    t.equal(await call(), 'still there')
    t.ok(server.requests.every(({ headers }) => headers['user-agent'] === 'interlock'))
  })

  t.test('a JSON answer is as good as a stream', async (t) => {
    const { call } = await setup(t, { json: true, call: async (name) => ({ content: [{ type: 'text', text: name }] }) })
    t.same(await Promise.all(['a', 'b', 'c'].map((name) => call(name))), ['a', 'b', 'c'])
  })

  t.test('an answer counts also when the server keeps the stream open, which is then closed', async (t) => {
    const { server, call } = await setup(t, {
      intercept: ({ method, message }, response) => {
        if (method === 'tools/call') sse(response, sseResult(message.id, 'answer'))
        return method === 'tools/call'
      }
    })
    t.equal(await call(), 'answer')
    await server.waitFor((requests) => requests.some(({ method, closed }) => method === 'tools/call' && closed))
  })

  const big = 'x'.repeat(200_000)
  const long: [string, (response: ServerResponse, id: unknown) => void][] = [
    ['in one event', (response, id) => { sse(response, sseResult(id, big)).end() }],
    ['in an event without end', (response) => { sse(response, 'id: 1\ndata:').write(`data: ${big}`) }],
    ['as JSON', (response, id) => { response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ jsonrpc: '2.0', id, result: { content: [{ type: 'text', text: big }] } })) }],
    ['after decompression', (response, id) => {
      response.writeHead(200, { 'content-type': 'application/json', 'content-encoding': 'gzip' }).end(gzipSync(JSON.stringify({ jsonrpc: '2.0', id, result: { text: big } })))
    }]
  ]
  for (const [where, act] of long) {
    t.test(`an answer that is too long ${where} fails at once`, async (t) => {
      const { server, call } = await setup(t, {
        intercept: ({ method, message }, response) => {
          if (method === 'tools/call') act(response, message.id)
          return method === 'tools/call'
        }
      }, { maxResponseBytes: 100_000 })
      t.match(await failureOf(call()), { code: 'tool_error', message: 'MCP server own: the answer has more than 100000 bytes' })
      await server.waitFor((requests) => requests.some(({ method, closed }) => method === 'tools/call' && closed))
    })
  }

  t.test('many short events may be longer in all than one may be', async (t) => {
    const { mcp, ref } = await setup(t, {
      intercept: ({ method, message }, response) => {
        if (method !== 'tools/call') return false
        const { progressToken } = (message.params as { _meta: { progressToken: number } })._meta
        const progress = (n: number) => `data: ${JSON.stringify({ jsonrpc: '2.0', method: 'notifications/progress', params: { progressToken, progress: n, message: 'y'.repeat(1000) } })}`
        sse(response, ...Array.from({ length: 200 }, (_, n) => progress(n)), sseResult(message.id, 'end')).end()
        return true
      }
    }, { maxResponseBytes: 50_000 })
    let told = 0
    t.equal(await mcp.call(ref, 'act', {}, toolContext({ progress: () => { told++ } })), 'end')
    t.equal(told, 200)
  })

  t.test('a flood on the stream for notifications ends that stream, not the calls', async (t) => {
    const { server, call } = await setup(t, {
      intercept: ({ http }, response) => {
        if (http === 'GET') sse(response, 'retry: 0\ndata:').write(`data: ${big}`)
        return http === 'GET'
      }
    }, { maxResponseBytes: 100_000 })
    t.equal(await call(), 'done')
    await server.waitFor((requests) => requests.some(({ http, closed }) => http === 'GET' && closed))
    t.equal(await call(), 'done')
    t.equal(server.count('GET'), 1, 'and is not opened again')
  })
})

t.test('where connections may lead', async (t) => {
  t.test('a blocked URL is refused, a configured one as well, and never called (FAULTS S4)', async (t) => {
    const server = await startMcpServer()
    t.teardown(() => server.close())
    const mcp = open(t, { inside: { url: server.url } }, { allowedHosts: [] })
    t.match(mcp.refusal({ server: 'inside' }), { pointer: '/server', code: 'blocked_url', detail: /INTERLOCK_ALLOWED_TOOL_HOSTS/ })
    t.match(mcp.refusal({ server_url: 'http://169.254.169.254/mcp' }), { pointer: '/server_url', code: 'blocked_url' })
    t.match(mcp.refusal({ server_url: 'file:///etc/passwd' }), { pointer: '/server_url', code: 'blocked_url' })
    t.match(mcp.refusal({ server_url: 'nowhere' }), { pointer: '/server_url', detail: 'is not an absolute URL' })
    for (const ref of [{ server: 'inside' }, { server_url: server.url }, { server_url: 'nowhere' }]) {
      await t.rejects(mcp.list(ref), { name: 'ToolError', code: 'tool_error' })
      await t.rejects(mcp.call(ref, 'act', {}, toolContext()), { name: 'ToolError', code: 'tool_error' })
    }
    t.equal(server.requests.length, 0)
  })

  t.test('a name that leads inside is refused when it is connected to', async (t) => {
    const server = await startMcpServer()
    t.teardown(() => server.close())
    const egress = openEgress({ allowedHosts: [], resolve: async () => [{ address: '127.0.0.1', family: 4 }] })
    const mcp = openMcp({ servers: new Map(), egress, maxResponseBytes: 1000 })
    t.teardown(async () => {
      await mcp.close()
      await egress.close()
    })
    const ref = { server_url: `http://rebound.test:${server.port}/mcp` }
    t.equal(mcp.refusal(ref), null)
    t.match(await failureOf(mcp.list(ref)), { code: 'tool_error', message: /^MCP server at rebound\.test:\d+: the URL leads to a private or reserved address/ })
    t.equal(server.requests.length, 0)
  })

  t.test('redirects are followed within the origin only, and headers stay there', async (t) => {
    const other = await startMcpServer()
    t.teardown(() => other.close())
    let target = ''
    const { server, mcp } = await setup(t, {
      intercept: (_request, response, { url }) => {
        if (url !== '/mcp') return false
        response.writeHead(307, { location: target }).end()
        return true
      }
    })
    const ref = { server_url: server.url, headers: { Authorization: 'Bearer secret-1' } }
    target = other.url
    const error = await failureOf(mcp.list(ref))
    t.match(error, { code: 'tool_error', message: /it answered HTTP 307, a redirect that is not followed: use the URL it leads to$/ })
    t.equal(other.requests.length, 0)
    target = '/mcp/'
    t.same(await mcp.list(ref), [])
    await server.waitFor((requests) => requests.some(({ http }) => http === 'GET'))
    t.ok(server.requests.every(({ headers }) => headers.authorization === 'Bearer secret-1'))
  })

  t.test('forbidden headers of a reference are refused, without their value (FAULTS S5)', async (t) => {
    const mcp = open(t, {})
    const refused = (headers: Record<string, string>) => mcp.refusal({ server_url: 'https://mcp.example/', headers })
    t.equal(refused({ Authorization: 'Bearer x' }), null)
    t.match(refused({ 'X-A': 'secret\r\nX-B: 1' }), { pointer: '/headers/X-A' })
    t.match(refused({ 'a/b~': 'secret' }), { pointer: '/headers/a~1b~0' })
    for (const name of ['Host', 'Mcp-Session-Id', 'Transfer-Encoding']) t.match(refused({ [name]: 'secret' }), { pointer: `/headers/${name}` })
    t.notMatch(JSON.stringify(refused({ 'X-A': 'secret\n' })), /secret/)
  })
})

t.test('a server that cannot be used is said to be so in one sentence, and tried again by the next call', async (t) => {
  const silent = createServer(() => {}).listen(0, '127.0.0.1')
  await once(silent, 'listening')
  const sockets = new Set<{ destroy: () => void }>()
  silent.on('connection', (socket) => sockets.add(socket))
  t.teardown(() => {
    for (const socket of sockets) socket.destroy()
    silent.close()
  })
  const silentUrl = `http://127.0.0.1:${(silent.address() as { port: number }).port}/mcp`
  const closed = createServer().listen(0, '127.0.0.1')
  await once(closed, 'listening')
  const closedUrl = `http://127.0.0.1:${(closed.address() as { port: number }).port}/secret-path?key=secret`
  await new Promise((resolve) => closed.close(resolve))
  const answers: { status: number, body: string, type?: string } = { status: 401, body: 'Authorization: Bearer secret-1 is wrong' }
  const web = await startMcpServer({
    intercept: (_request, response) => {
      response.writeHead(answers.status, { 'content-type': answers.type ?? 'text/plain' }).end(answers.body)
      return true
    }
  })
  t.teardown(() => web.close())
  const headers = { authorization: 'Bearer secret-1' }
  const mcp = open(t, {
    missing: { command: 'no-such-command-here' },
    badCwd: { command: process.execPath, cwd: '/no/such/folder' },
    ends: { command: process.execPath, args: ['-e', 'console.error("secret"); process.exit(3)'] },
    mute: { command: process.execPath, args: ['-e', 'process.stdin.resume()'] },
    closed: { url: closedUrl, headers },
    silent: { url: silentUrl },
    web: { url: web.url, headers }
  })
  const cases: [string, McpRef, RegExp][] = [
    ['unknown', { server: 'else' }, /^the MCP server cannot be used: server is none of the MCP servers configured here: missing, badCwd, ends, /],
    ['no command', { server: 'missing' }, /^MCP server missing: it cannot be started \(ENOENT\): see that its command exists$/],
    ['no folder', { server: 'badCwd' }, /^MCP server badCwd: it cannot be started \(ENOENT\)/],
    ['ends', { server: 'ends' }, /^MCP server ends: its process ended before it answered: run its command by hand to see why$/],
    ['refused', { server: 'closed' }, /^MCP server closed: it cannot be reached \(ECONNREFUSED\): see that it runs$/],
    ['refused, by URL', { server_url: closedUrl, headers }, /^MCP server at 127\.0\.0\.1:\d+: it cannot be reached \(ECONNREFUSED\): see that it runs$/],
    ['says nothing', { server: 'silent' }, /^MCP server silent: no answer within 300 ms$/],
    ['process says nothing', { server: 'mute' }, /^MCP server mute: no answer within 300 ms$/]
  ]
  for (const [title, ref, message] of cases) {
    for (const again of [false, true]) {
      const error = await failureOf(mcp.list(ref, title.endsWith('nothing') ? 300 : undefined))
      t.match(error, { name: 'ToolError', code: 'tool_error', message }, `${title}${again ? ', again' : ''}`)
      t.notMatch(error.message, /secret|\n/)
    }
  }
  const pages: [typeof answers, RegExp][] = [
    [answers, /: it answered HTTP 401: see that the headers hold valid credentials$/],
    [{ status: 404, body: 'nothing here' }, /: it answered HTTP 404: see that its URL is a streamable HTTP endpoint$/],
    [{ status: 503, body: 'secret' }, /: it answered HTTP 503$/],
    [{ status: 200, body: '<html>', type: 'text/html' }, /: it answered something that is not MCP/],
    [{ status: 200, body: '{"secret": 1}', type: 'application/json' }, /: it answered something that is not MCP/],
    [{ status: 200, body: '{"jsonrpc":"2.0","id":0,"result":{"secret":1}}', type: 'application/json' }, /: it answered something that is not MCP/]
  ]
  for (const [page, message] of pages) {
    Object.assign(answers, { type: undefined }, page)
    const error = await failureOf(mcp.call({ server: 'web' }, 'act', {}, toolContext()))
    t.match(error, { name: 'ToolError', code: 'tool_error', message }, `${page.status} ${page.body}`)
    t.notMatch(error.message, /secret|\n/)
  }
})

t.test('connections to servers named by URL', async (t) => {
  t.test('are shared by references that are the same, headers included', async (t) => {
    const { server, mcp } = await setup(t)
    const call = (headers?: Record<string, string>) => mcp.call({ server_url: server.url, ...(headers === undefined ? {} : { headers }) }, 'act', {}, toolContext())
    await Promise.all([call(), call(), call({ a: '1', B: '2' }), call({ b: '2', A: '1' }), call({ a: '1', b: '3' })])
    t.equal(server.count('initialize'), 3)
  })

  t.test('are bounded: the idle one used longest ago is closed, and when all are busy a call waits', async (t) => {
    const held = new Map<string, () => void>()
    const { server, mcp } = await setup(t, {
      call: async (name) => {
        if (name !== 'act') await new Promise<void>((resolve) => { held.set(name, resolve) })
        return { content: [{ type: 'text', text: name }] }
      }
    }, { maxConnections: 2 })
    const call = (path: string, name = 'act', signal = new AbortController().signal) => mcp.call({ server_url: `${server.url}?${path}` }, name, {}, toolContext({ signal }))
    for (const path of ['a', 'b', 'a', 'c']) await call(path)
    await server.waitFor(() => server.count('DELETE') === 1)
    t.equal(server.count('initialize'), 3)
    await call('a')
    t.equal(server.count('initialize'), 3, 'it was b that had to go')

    const busy = [call('a', 'hold-a'), call('c', 'hold-c')]
    await server.waitFor((requests) => requests.filter(({ message }) => String((message.params as { name?: string } | undefined)?.name).startsWith('hold')).length === 2)
    const stop = new AbortController()
    const abandoned = failureOf(call('d', 'act', stop.signal))
    const waits = call('d')
    stop.abort(new Error('enough'))
    t.match(await abandoned, { message: 'enough' })
    t.equal(server.count('initialize'), 3)
    for (const answer of held.values()) answer()
    t.equal(await waits, 'act')
    t.same(await Promise.all(busy), ['hold-a', 'hold-c'])
  })

  t.test('are closed when idle for a while, and configured ones are not', async (t) => {
    const { server, mcp, call } = await setup(t, {}, { idleMs: 1 })
    await call()
    await mcp.call({ server_url: server.url }, 'act', {}, toolContext())
    await server.waitFor(() => server.count('DELETE') === 1)
    await call()
    t.equal(server.count('initialize'), 2)
    await mcp.call({ server_url: server.url }, 'act', {}, toolContext())
    t.equal(server.count('initialize'), 3)
  })
})
