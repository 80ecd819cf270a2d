import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import t from 'tap'
import type { HttpTool, RunTool } from '../../../src/core/tool.js'
import { openTools } from '../../../src/engine/tools/tools.js'
import { toolContext } from '../../support/tool-context.js'

const dir = join(import.meta.dirname, '../../support/tools')
const http: HttpTool = { kind: 'http', name: 'weather', url: 'https://example.com/' }
const module = (name: string): RunTool => ({ kind: 'module', name })

t.test('listings: builtin and module tools, as GET /tools shows them', async (t) => {
  const tools = await openTools({ dir })
  t.teardown(() => tools.close())
  const listings = await tools.listings()
  t.same(listings.map(({ kind, name }) => `${kind} ${name}`), ['builtin http_fetch', 'builtin final_answer', 'module echo', 'module fail', 'module sleep', 'module deaf_sleep', 'module hang'])
  for (const listing of listings) t.same(Object.keys(listing).sort(), ['description', 'effects', 'idempotent', 'kind', 'name', 'parameters', 'placement', 'timeout_ms'])
  t.match(listings[0], { effects: 'read', idempotent: true, timeout_ms: null, placement: 'local', parameters: { type: 'object', required: ['url'], additionalProperties: false } })
  t.strictSame(JSON.parse(JSON.stringify(listings)), listings, 'nothing but JSON')
  t.same((await (await openTools()).listings()).length, 2, 'without a folder')
})

t.test('describe: the tool as the provider is told of it', async (t) => {
  const tools = await openTools({ dir })
  t.teardown(() => tools.close())
  const parameters = { type: 'object', properties: { city: { type: 'string' } }, required: ['city'] }
  t.strictSame(tools.describe({ ...http, description: 'The weather.', parameters }), { type: 'function', function: { name: 'weather', description: 'The weather.', parameters } })
  t.strictSame(tools.describe(http), { type: 'function', function: { name: 'weather', parameters: { type: 'object', properties: {}, additionalProperties: false } } }, 'no arguments, no description')
  t.match(tools.describe(module('echo')), { function: { name: 'echo', description: 'Gives back what it is given.', parameters: { required: ['value'] } } })
  t.match(tools.describe({ kind: 'builtin', name: 'final_answer' }), { function: { name: 'final_answer', parameters: { required: ['answer'] } } })
  t.match(tools.describe(module('elsewhere')), { function: { name: 'elsewhere' } })
})

t.test('rules: what the definition says, else what the listing says, else the defaults', async (t) => {
  const tools = await openTools({ dir })
  t.teardown(() => tools.close())
  t.same(tools.rules(http, 30_000), { effects: 'write', idempotent: false, timeout_ms: 30_000, placement: 'local' })
  t.same(tools.rules({ ...http, effects: 'read', idempotent: true, timeout_ms: 5, placement: 'spread' }, 30_000), { effects: 'read', idempotent: true, timeout_ms: 5, placement: 'spread' })
  t.same(tools.rules(module('hang'), 30_000), { effects: 'write', idempotent: true, timeout_ms: 60_000, placement: 'spread' })
  t.same(tools.rules({ kind: 'module', name: 'hang', idempotent: false, timeout_ms: 5, placement: 'local' }, 30_000), { effects: 'write', idempotent: false, timeout_ms: 5, placement: 'local' })
  t.same(tools.rules({ kind: 'builtin', name: 'http_fetch' }, 30_000), { effects: 'read', idempotent: true, timeout_ms: 30_000, placement: 'local' })
  t.same(tools.rules(module('elsewhere'), 30_000), { effects: 'write', idempotent: false, timeout_ms: 30_000, placement: 'local' })
})

t.test('check: tools of the server must be there', async (t) => {
  const tools = await openTools({ dir })
  t.teardown(() => tools.close())
  t.same(await tools.check(http), [])
  t.same(await tools.check(module('echo')), [])
  t.same(await tools.check({ kind: 'builtin', name: 'http_fetch' }), [])
  for (const name of ['elsewhere', 'http_fetch', '__proto__', 'constructor']) t.match(await tools.check(module(name)), [{ pointer: '/name', detail: /no module tool of that name/ }], name)
})

t.test('E9: a call of a tool this server does not have fails with a clear text; its siblings run', async (t) => {
  const tools = await openTools({ dir })
  t.teardown(() => tools.close())
  const unknown = { name: 'ToolError', code: 'unknown_tool', message: 'This server has no module tool named elsewhere.' }
  t.throws(() => tools.parse(module('elsewhere'), '{}'), unknown)
  const calls = await Promise.allSettled([
    tools.run(module('elsewhere'), {}, toolContext()),
    tools.run(module('echo'), { value: 1 }, toolContext()),
    tools.run(module('fail'), { way: 'throws' }, toolContext()),
    tools.run(module('sleep'), { ms: 5, value: 'slow' }, toolContext())
  ])
  t.match(calls, [{ status: 'rejected', reason: unknown }, { value: 1 }, { status: 'rejected', reason: { code: 'tool_error' } }, { value: 'slow' }])
})

t.test('final_answer gives any JSON value', async (t) => {
  const tools = await openTools()
  t.teardown(() => tools.close())
  const tool = { kind: 'builtin', name: 'final_answer' } as const
  for (const answer of ['42', '', { city: 'Paris', list: [1, null] }, [1], 0, false, null]) {
    t.strictSame(await tools.run(tool, tools.parse(tool, JSON.stringify({ answer })), toolContext()), answer)
  }
  t.throws(() => tools.parse(tool, '{}'), { code: 'invalid_arguments', message: /required property 'answer'/ })
  t.throws(() => tools.parse(tool, '{"answer": 1, "more": 2}'), { code: 'invalid_arguments', message: /"more"/ })
})

t.test('after close no call goes out, and closing twice is fine', async (t) => {
  const tools = await openTools({ allowedHosts: ['127.0.0.1'] })
  await tools.close()
  await tools.close()
  await t.rejects(tools.run({ ...http, url: 'http://127.0.0.1:1/' }, {}, toolContext()), { code: 'http_error' })
})

t.test('the recording tool server in a process of its own', async (t) => {
  const child = spawn(process.execPath, ['--import', 'tsx', join(import.meta.dirname, '../../support/tool-server-main.ts')], { stdio: ['pipe', 'pipe', 'inherit'] })
  const exited = once(child, 'exit')
  t.teardown(() => child.kill('SIGKILL'))
  const [line] = await once(createInterface(child.stdout), 'line') as [string]
  const { port } = JSON.parse(line) as { port: number }
  const url = `http://127.0.0.1:${port}`
  const tools = await openTools({ allowedHosts: ['127.0.0.1'] })
  t.teardown(() => tools.close())

  const held = tools.run({ ...http, url: `${url}/hold`, parameters: { type: 'object' } }, { key: 'k', value: 'held' }, toolContext())
  t.equal(await tools.run({ ...http, url: `${url}/echo` }, { value: 1 }, toolContext({ call_id: 'call_2' })), 1)
  const attempts = await (await fetch(`${url}/attempts`)).json() as unknown[]
  t.match(attempts, { length: 2 })
  await fetch(`${url}/release`, { method: 'POST', body: '{"key": "k"}' })
  t.equal(await held, 'held')
  await fetch(`${url}/reset`, { method: 'POST' })
  t.same(await (await fetch(`${url}/attempts`)).json(), [])
  child.stdin.end()
  t.same(await exited, [0, null], 'ends with its parent')
})
