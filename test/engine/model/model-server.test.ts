import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { fileURLToPath } from 'node:url'
import t, { type Test } from 'tap'
import { answer, call, cut, cutBytes, heldAt, latch, say, status } from '../../support/model-reply.js'
import { startModelServer } from '../../support/model-server.js'
import { turnsScript } from '../../support/turns-script.js'

async function setup (t: Test) {
  const server = await startModelServer()
  t.teardown(server.close)
  return server
}

const body = (conversation: string, ...rest: object[]) => ({ model: 'test', stream: true, messages: [{ role: 'user', content: `hi conv:${conversation}` }, ...rest] })

function post (baseUrl: string, payload: unknown, init: RequestInit = {}): Promise<Response> {
  return fetch(`${baseUrl}/chat/completions`, { method: 'POST', body: typeof payload === 'string' ? payload : JSON.stringify(payload), ...init })
}

t.test('a conversation gets its replies in turn and every request is recorded', async (t) => {
  const server = await setup(t)
  server.script('conv:a', [call({ name: 'work', arguments: { x: 1 } }), say('done')])
  server.script('conv:b', (request, n) => say(`${request.conversation} ${n}`))

  t.match(await (await post(server.baseUrl, body('a'), { headers: { 'x-client-request-id': 'run.1.1' } })).text(), /"name":"work".*\[DONE\]/s)
  t.match(await (await post(server.baseUrl, body('b'))).text(), /"content":"conv:b 1"/)
  t.match(await (await post(server.baseUrl, body('a'))).text(), /"content":"done"/)

  const [first, second] = server.requests('conv:a')
  t.equal(server.requests().length, 3)
  t.match(first, { n: 1, requestId: 'run.1.1', inFlight: 1, aborted: false, body: body('a') })
  await second!.ended
  t.ok(second!.endedAt! >= second!.arrivedAt)
  t.strictSame(server.violations, [])
})

t.test('an invalid payload is refused as the provider would and kept as a violation', async (t) => {
  const server = await setup(t)
  server.otherwise(() => say('never'))
  const response = await post(server.baseUrl, body('a', { role: 'tool', tool_call_id: 'x', content: 'late' }))
  t.equal(response.status, 400)
  t.match(await response.json(), { error: { type: 'invalid_request_error', message: /must be a response to a preceeding message with 'tool_calls'/ } })
  t.equal((await post(server.baseUrl, '{"model":')).status, 400)
  t.equal((await post(server.baseUrl, 'null')).status, 400)
  t.match(server.violations, [{ rule: 'P6', at: 'messages[1]', conversation: 'conv:a', n: 1 }, { rule: 'schema' }, { rule: 'schema' }])
})

t.test('a request that the script does not foresee is a violation', async (t) => {
  const server = await setup(t)
  server.script('conv:a', [say('only one')])
  await (await post(server.baseUrl, body('a'))).text()
  t.equal((await post(server.baseUrl, body('a'))).status, 400)
  t.equal((await post(server.baseUrl, body('unknown'))).status, 400)
  t.match(server.violations, [{ rule: 'script', conversation: 'conv:a', n: 2 }, { rule: 'script', conversation: 'conv:unknown', n: 1 }])
})

t.test('a held reply waits for its latch, and calls in flight are counted per conversation', async (t) => {
  const server = await setup(t)
  const gate = latch()
  server.otherwise(() => heldAt(say('hi'), 2, gate))
  const requests = ['a', 'a', 'b'].map((name) => post(server.baseUrl, body(name)))
  const [first] = await Promise.all(requests)
  t.equal(server.maxInFlight('conv:a'), 2)
  t.equal(server.maxInFlight('conv:b'), 1)
  t.equal(server.maxInFlight(), 2)
  const { newest, ...stats } = server.stats()
  t.strictSame(newest.map(({ ended }) => ended), [null, null, null])
  t.strictSame(stats, { requests: 3, conversations: 2, aborted: 0, maxInFlight: 3, maxInFlightPerConversation: 2, overlapping: { 'conv:a': 2 }, violations: 0, firstViolations: [] })

  const reader = first!.body!.getReader()
  let text = ''
  while (!text.includes('"content":"hi"')) text += Buffer.from((await reader.read()).value!).toString()
  t.notMatch(text, /DONE/, 'the two parts before the latch came')
  gate.open()
  while (!text.includes('[DONE]')) text += Buffer.from((await reader.read()).value!).toString()
  await Promise.all(requests.slice(1).map(async (response) => (await response).text()))
  await (await post(server.baseUrl, body('a'))).text()
  t.equal(server.requests('conv:a').at(-1)?.inFlight, 1, 'those that have ended do not count')
})

t.test('waitForRequest finds past and future requests and says when none came', async (t) => {
  const server = await setup(t)
  server.otherwise(() => say('hi'))
  const future = server.waitForRequest((request) => request.conversation === 'conv:a')
  await (await post(server.baseUrl, body('b'))).text()
  await (await post(server.baseUrl, body('a'))).text()
  t.equal((await future).conversation, 'conv:a')
  t.equal((await server.waitForRequest((request) => request.conversation === 'conv:b')).n, 1)
  await t.rejects(server.waitForRequest(() => false, 1), /no such request within 1 ms; 2 others came/)
})

t.test('a client that goes away is recorded as aborted at once', async (t) => {
  const server = await setup(t)
  server.script('conv:a', [cut(say('hi'), 1, 'stall'), say('again')])
  const abort = new AbortController()
  await post(server.baseUrl, body('a'), { signal: abort.signal })
  abort.abort()
  const record = await (await server.waitForRequest((request) => request.n === 1)).ended
  t.equal(record.aborted, true)
  await (await post(server.baseUrl, body('a'))).text()
  t.equal(server.maxInFlight('conv:a'), 1, 'and is no longer in flight')
})

/** Every byte of a response that came, and how it ended. */
function raw (port: number, payload: object): Promise<{ text: string, ending: string }> {
  return new Promise((resolve) => {
    let text = ''
    const broken = (error: NodeJS.ErrnoException) => resolve({ text, ending: error.code ?? error.message })
    const request = httpRequest({ port, host: '127.0.0.1', path: '/v1/chat/completions', method: 'POST' }, (response: IncomingMessage) => {
      response.setEncoding('utf8').on('data', (piece: string) => { text += piece })
      response.on('end', () => resolve({ text, ending: 'end' })).on('error', broken)
    })
    request.on('error', broken).end(JSON.stringify(payload))
  })
}

t.test('cuts: with a clean end, by closing, by reset, and inside a character', async (t) => {
  const server = await setup(t)
  const reply = answer({ text: ['one', '😀'] })
  server.script('conv:end', [cut(reply, 2, 'end')])
  server.script('conv:fin', [cut(reply, 2, 'fin')])
  server.script('conv:rst', [cut(reply, 2, 'rst')])
  const emoji = reply.whole!.indexOf('😀')
  server.script('conv:bytes', [cutBytes(reply, emoji + 2, 'fin')])

  const ended = await raw(server.port, body('end'))
  t.match(ended, { text: /one"[^\n]*\n\n$/, ending: 'end' })
  const closed = await raw(server.port, body('fin'))
  t.strictSame(closed, { text: ended.text, ending: 'ECONNRESET' }, 'a response without its last chunk')
  t.match(await raw(server.port, body('rst')), { ending: 'ECONNRESET' })
  t.match(await raw(server.port, body('bytes')), { text: /one.*"content":"/s, ending: 'ECONNRESET' })
  t.ok(server.requests().every((request) => !request.aborted), 'the client did none of this')
})

t.test('errors have the provider\'s shape and headers, and who does not stream gets JSON', async (t) => {
  const server = await setup(t)
  server.script('conv:a', [status(429, { retryAfter: 2, errorCode: 'rate_limit_exceeded' }), answer({ text: 'hi', calls: [{ name: 'work', arguments: '{}' }] })])
  const limited = await post(server.baseUrl, body('a'))
  t.match([limited.status, limited.headers.get('retry-after')], [429, '2'])
  t.match(await limited.json(), { error: { code: 'rate_limit_exceeded' } })
  const plain = await post(server.baseUrl, { ...body('a'), stream: false })
  t.match(await plain.json(), { object: 'chat.completion', choices: [{ message: { content: 'hi', tool_calls: [{ id: 'call_1' }] }, finish_reason: 'tool_calls' }] })
  t.match(await (await fetch(`${server.baseUrl}/models`)).json(), { data: [{ id: 'test' }] })
})

t.test('the benchmark script goes by turns, and a first message can ask for another', async (t) => {
  const script = turnsScript('2x3')
  const server = await setup(t)
  server.otherwise(script)
  const reply = async (content: string, turns: number) => {
    const earlier = Array.from({ length: turns }, () => ({ role: 'assistant', content: 'x' }))
    const messages = [{ role: 'user', content }, ...earlier, ...(turns > 0 ? [{ role: 'system', content: 'go on' }] : [])]
    return await (await post(server.baseUrl, { model: 'test', stream: true, messages, tools: [{ type: 'function', function: { name: 'work' } }] })).text()
  }
  t.equal((await reply('go', 0)).match(/"name":"work"/g)?.length, 3)
  t.equal((await reply('go', 1)).match(/"name":"work"/g)?.length, 3)
  t.match(await reply('go', 2), /"content":"All "/)
  t.equal((await reply('go script:1x7@1', 0)).match(/"name":"work"/g)?.length, 7)
  const [request] = server.requests()
  t.equal(script(request!, 1), script(request!, 1), 'a reply is made once')
  t.throws(() => turnsScript('3by5'), /not a script/)
})

t.test('it runs in a process of its own and ends with the one that started it', async (t) => {
  const main = fileURLToPath(new URL('../../support/model-server-main.ts', import.meta.url))
  const child = spawn(process.execPath, ['--import', 'tsx', main, '--script=1x2'], { stdio: ['pipe', 'pipe', 'inherit'] })
  t.teardown(() => child.kill())
  const [line] = await once(child.stdout, 'data') as [Buffer]
  const { port } = JSON.parse(line.toString()) as { port: number }
  const response = await post(`http://127.0.0.1:${port}/v1`, { ...body('a'), tools: [{ type: 'function', function: { name: 'work' } }] })
  t.equal((await response.text()).match(/"name":"work"/g)?.length, 2)
  t.match(await (await fetch(`http://127.0.0.1:${port}/_stats`)).json(), { requests: 1, conversations: 1, violations: 0 })
  const exit = once(child, 'exit')
  child.stdin.end()
  t.strictSame(await exit, [0, null])
})
