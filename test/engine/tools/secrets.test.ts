import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import type { HttpTool } from '../../../src/core/tool.js'
import { openEgress } from '../../../src/engine/tools/egress.js'
import { exchange } from '../../../src/engine/tools/exchange.js'
import { httpToolFaults, httpToolRequest } from '../../../src/engine/tools/http-tool.js'
import { openSecrets, type Secrets } from '../../../src/engine/tools/secrets.js'
import { openSigning } from '../../../src/engine/tools/signature.js'
import { openTools } from '../../../src/engine/tools/tools.js'
import { startMcpServer } from '../../support/mcp-server.js'
import { toolContext } from '../../support/tool-context.js'
import { startToolServer, type ToolServer } from '../../support/tool-server.js'

const setting = (secrets: Record<string, { value: string, hosts: string[] }>): string => JSON.stringify(secrets)
const one = (value: string): Secrets => openSecrets(setting({ TOKEN: { value, hosts: ['a.test'] } }))
const at = (url: string): URL => new URL(url)

t.test('a header value is filled with its secrets, where they may go', async (t) => {
  const secrets = openSecrets(setting({ USER: { value: 'user-user', hosts: ['a.test', 'b.test'] }, 'Pass_2-x': { value: '$& {{secret.USER}} $1', hosts: ['a.test'] } }))
  const url = at('https://a.test/path?x=1')
  for (const [value, filled] of [
    ['', ''], ['plain', 'plain'], ['Bearer {{secret.USER}}', 'Bearer user-user'], ['{{secret.USER}}{{secret.USER}}', 'user-useruser-user'],
    ['{{secret.Pass_2-x}}:{{secret.USER}}', '$& {{secret.USER}} $1:user-user'], ['{{{secret.USER}}}', '{user-user}'], ['{{stepOutputs.a}}', '{{stepOutputs.a}}'], ['{ { secret', '{ { secret']
  ] as const) {
    t.equal(secrets.fault(value, url), null, value)
    t.equal(secrets.fill(value, url), filled, 'and a value is not filled a second time')
  }
})

t.test('what a header may not hold is a fault, and never sent', async (t) => {
  const secrets = openSecrets(setting({ USER: { value: 'user-user', hosts: ['a.test'] } }))
  for (const [value, url, fault] of [
    ['{{secret.NOBODY}}', 'https://a.test/', 'names the secret NOBODY, which this server does not have; its operator sets INTERLOCK_SECRETS'],
    ['{{secret.constructor}}', 'https://a.test/', 'names the secret constructor, which this server does not have; its operator sets INTERLOCK_SECRETS'],
    ['x {{secret.USER}}', 'https://b.test:8443/path', 'names the secret USER, which INTERLOCK_SECRETS does not let go to https://b.test:8443'],
    ['{{secret.USER}} {{secret.user}}', 'https://a.test/', 'names the secret user, which this server does not have; its operator sets INTERLOCK_SECRETS']
  ] as const) {
    t.equal(secrets.fault(value, at(url)), fault)
    t.throws(() => secrets.fill(value, at(url)), { name: 'ToolError', code: 'http_error', message: `the request was not made: a header ${fault}` })
  }
  for (const value of ['{{secret.}}', '{{ secret.USER }}', '{{secret.USER}', '{{secret}}', '{{secrets.USER}}', '{{SECRET.USER}}', '{{secret.US ER}}', '{{secret.USER}}{{secret.USER']) {
    t.equal(secrets.fault(value, at('https://a.test/')), 'means a secret, but does not name it as {{secret.NAME}}', value)
  }
  t.match(openSecrets(undefined).fault('{{secret.USER}}', at('https://a.test/')), /which this server does not have/, 'without secrets')
})

t.test('S4: a secret goes to its hosts only', async (t) => {
  const goes = (host: string, url: string): boolean => openSecrets(setting({ X: { value: 'x-x-x-x-x', hosts: ['other.test', host] } })).fault('{{secret.X}}', at(url)) === null
  const cases: [host: string, yes: string[], no: string[]][] = [
    ['api.crm.test', ['https://api.crm.test/', 'https://API.CRM.TEST:8443/x', 'https://api.crm.test./', 'https://user@api.crm.test/'],
      ['http://api.crm.test/', 'https://crm.test/', 'https://x.api.crm.test/', 'https://api.crm.test.evil.test/', 'https://evil.test/api.crm.test', 'https://api.crm.test@evil.test/', 'https://api-crm.test/']],
    ['https://api.crm.test', ['https://api.crm.test/'], ['http://api.crm.test/']],
    ['API.crm.test.', ['https://api.crm.test/'], ['https://crm.test/']],
    ['*.crm.test', ['https://a.crm.test/', 'https://b.a.crm.test/', 'https://a.crm.test./'], ['https://crm.test/', 'https://evilcrm.test/', 'https://a.crm.test.evil.test/', 'http://a.crm.test/']],
    ['api.crm.test:8443', ['https://api.crm.test:8443/'], ['https://api.crm.test/', 'https://api.crm.test:443/']],
    ['api.crm.test:443', ['https://api.crm.test/'], ['https://api.crm.test:8443/']],
    ['http://api.crm.test', ['http://api.crm.test/', 'https://api.crm.test/', 'http://api.crm.test:8080/'], ['http://crm.test/']],
    ['http://*.crm.test:80', ['http://a.crm.test/'], ['http://a.crm.test:8080/', 'https://a.crm.test/']],
    ['10.1.2.3', ['https://10.1.2.3/', 'https://0x0a010203/', 'https://167838211/'], ['https://10.1.2.4/', 'https://[::ffff:10.1.2.3]/', 'https://10.1.2.3.evil.test/']],
    ['::1', ['https://[::1]/', 'https://[0:0::1]:8443/'], ['https://[::2]/']],
    ['[::1]:8443', ['https://[::1]:8443/'], ['https://[::1]/']],
    ['bücher.test', ['https://xn--bcher-kva.test/', 'https://bücher.test/'], ['https://bucher.test/']]
  ]
  for (const [host, yes, no] of cases) {
    for (const url of yes) t.ok(goes(host, url), `${host}: ${url}`)
    for (const url of no) t.notOk(goes(host, url), `${host}: not ${url}`)
  }
})

t.test('S13: a setting that cannot be used is refused by one sentence without any value', async (t) => {
  const form = '; it must be JSON like {"CRM_TOKEN": {"value": "…", "hosts": ["api.crm.example"]}}, or the path of a file with that.'
  const good = { value: 'canary-canary', hosts: ['a.test'] }
  const cases: [given: unknown, sentence: string][] = [
    ['canary-canary', 'is neither a JSON object nor a file that can be read (ENOENT)'],
    ['["canary"]', 'is neither a JSON object nor a file that can be read (ENOENT)'],
    [import.meta.dirname, 'is neither a JSON object nor a file that can be read (EISDIR)'],
    ['{"canary": ', 'is not a JSON object'],
    ['{"__proto__": {"value": "canary-canary", "hosts": ["a.test"]}}', 'is not a JSON object'],
    [{ 'canary canary': good }, 'has an entry, number 1, whose name is not 1 to 64 of A-Z, a-z, 0-9, _ and -'],
    [{ A: good, '': good }, 'has an entry, number 2, whose name is not 1 to 64 of A-Z, a-z, 0-9, _ and -'],
    [{ A: 'canary-canary' }, 'has an entry A that is not an object of "value" and "hosts"'],
    [{ A: null }, 'has an entry A that is not an object of "value" and "hosts"'],
    [{ A: { value: 'canary-canary' } }, 'has an entry A that is not an object of "value" and "hosts"'],
    [{ A: { ...good, hosts: 'a.test' } }, 'has an entry A that is not an object of "value" and "hosts"'],
    [{ A: { ...good, host: 'canary' } }, 'has an entry A that is not an object of "value" and "hosts"'],
    [{ A: { ...good, hosts: [] } }, 'names no hosts that A may be sent to'],
    ...['canary', '', 'canary-canary\n', 'canary\r\nX-Injected: 1', ' canary-canary', 'canary-canary ', 'canary\tcanary', 'canary\0canary', 'canary-canäry', 'canary'.repeat(1000)]
      .map((value): [unknown, string] => [{ A: { ...good, value } }, 'has a value of A that is not 8 to 4096 visible ASCII characters, as a header needs']),
    ...['canary/', '', '*', '*.', '.a.test', 'a.*.test', '*a.test', '*.*.test', 'user:canary@a.test', 'a.test:0', 'a.test:65536', 'a.test:', 'ftp://a.test', 'https://a.test/', '*.10.1.2.3', '[::1', 'a b', 1, null]
      .map((host): [unknown, string] => [{ A: { ...good, hosts: ['a.test', host] } }, 'has hosts of A of which number 2 is not a name, *.name or IP address, with or without :port and http://'])
  ]
  for (const [given, sentence] of cases) {
    t.throws(() => openSecrets(typeof given === 'string' ? given : JSON.stringify(given)), { message: `INTERLOCK_SECRETS ${sentence}${form}` }, JSON.stringify(given).slice(0, 80))
  }
  t.equal(openSecrets('{}').fault('x', at('https://a.test')), null, 'no secrets at all is a setting')
})

t.test('the setting may be the path of a file', async (t) => {
  const path = join(t.testdir(), 'secrets.json')
  writeFileSync(path, `\ufeff${setting({ FROM_FILE: { value: 'from-file', hosts: ['a.test'] } })}\n`)
  t.equal(openSecrets(path).fill('{{secret.FROM_FILE}}', at('https://a.test/')), 'from-file')
  writeFileSync(path, 'canary')
  t.throws(() => openSecrets(path), { message: /^INTERLOCK_SECRETS is not a JSON object; (?!.*canary)/ })
})

t.test('S13: values are taken out of texts and JSON, names, items and numbers included', async (t) => {
  const secrets = openSecrets(setting({
    SHORT: { value: 'abc/def+ghi==', hosts: ['a.test'] }, LONG: { value: 'xx abc/def+ghi== "q" \\n %41', hosts: ['a.test'] }, DIGITS: { value: '1234567890', hosts: ['a.test'] }
  }))
  const long = 'xx abc/def+ghi== "q" \\n %41'
  const cases: [said: unknown, redacted: unknown][] = [
    ['Bearer abc/def+ghi==', 'Bearer [secret SHORT]'],
    ['abc/def+ghi==abc/def+ghi==', '[secret SHORT][secret SHORT]'],
    [`<${long}>`, '<[secret LONG]>'],
    [JSON.stringify({ a: long }), '{"a":"[secret LONG]"}'],
    [JSON.stringify({ a: long }).replaceAll('/', '\\/'), '{"a":"[secret LONG]"}'],
    ['{"a":"abc\\/def\\u002Bghi\\u003d="}', '{"a":"[secret SHORT]"}'],
    [`?token=${encodeURIComponent(long)}&x=1`, '?token=[secret LONG]&x=1'],
    ['?token=abc%2fdef%2bghi%3d%3d', '?token=[secret SHORT]'],
    [{ 'abc/def+ghi==': ['x', { deep: `${long}!` }, null, true, 1] }, { '[secret SHORT]': ['x', { deep: '[secret LONG]!' }, null, true, 1] }],
    [{ id: 1234567890, other: 12345678 }, { id: '[secret DIGITS]', other: 12345678 }],
    [1234567890, '[secret DIGITS]'],
    ['abc/def', 'abc/def'], ['ABC/DEF+GHI==', 'ABC/DEF+GHI=='], ['', ''], [null, null], [{}, {}], [[], []], [undefined, undefined]
  ]
  for (const [said, redacted] of cases) t.strictSame(secrets.redact(said), redacted, JSON.stringify(said))
  const untouched = { list: ['x'] }
  t.equal(secrets.redact(untouched), untouched, 'what holds none is handed on as it is')
  t.equal(openSecrets(undefined).redact(long), long)
})

t.test('S13: whatever a value is made of, no text with it keeps it: as it is, as JSON, as part of a URL', async () => {
  const value = fc.stringMatching(/^[!-~][ -~]{6,40}[!-~]$/)
  const around = fc.string({ maxLength: 20 })
  fc.assert(fc.property(value, around, around, fc.boolean(), (value, before, after, slashes) => {
    const { redact } = one(value)
    const json = slashes ? JSON.stringify({ [value]: value }).replaceAll('/', '\\/') : JSON.stringify({ [value]: value })
    const mark = '[secret TOKEN]'
    return redact(`${before}${value}${after}`).includes(mark) &&
      redact(json) === JSON.stringify({ [mark]: mark }) &&
      redact(`?a=${encodeURIComponent(value)}`) === `?a=${mark}` &&
      JSON.stringify(redact({ [value]: [value] })) === JSON.stringify({ [mark]: [mark] })
  }), { numRuns: 500 })
})

t.test('S7: a value and an answer made to be compared for ever are not', async (t) => {
  const { redact } = one(`${'\\'.repeat(60)}%%%%%%%%x`)
  t.equal(redact('\\'.repeat(10_000)).length, 10_000)
  t.equal(redact(`${'\\'.repeat(120)}${'%25'.repeat(8)}x`), '[secret TOKEN]')
})

interface World { server: ToolServer, tool: (over?: Partial<HttpTool>) => HttpTool, call: (tool: HttpTool, args?: Record<string, unknown>) => Promise<unknown>, faults: (tool: HttpTool) => unknown[] }

async function setup (t: Test, value: string): Promise<World> {
  const server = await startToolServer()
  const egress = openEgress({ allowedHosts: ['127.0.0.1', 'other.test'], resolve: async () => [{ address: '127.0.0.1', family: 4 }] })
  t.teardown(() => Promise.all([server.close(), egress.close()]))
  const secrets = openSecrets(setting({ TOKEN: { value, hosts: [`http://127.0.0.1:${server.port}`] } }))
  return {
    server,
    tool: (over = {}) => ({ kind: 'http', name: 'there', url: `${server.url}/raw`, headers: { Authorization: 'Bearer {{secret.TOKEN}}' }, ...over }),
    call: async (tool, args = {}) => exchange(
      egress, httpToolRequest(tool, args, toolContext(), secrets, openSigning(undefined)), { signal: new AbortController().signal, maxBytes: 1e6, redact: secrets.redact }
    ),
    faults: (tool) => httpToolFaults(tool, egress, secrets)
  }
}

t.test('S13: an http tool sends a secret, and hands on nothing of it that the server sends back', async (t) => {
  const value = 'a "token" / with + all'
  const { server, tool, call } = await setup(t, value)
  const json = { 'content-type': 'application/json' }
  t.equal(await call(tool(), { text: `you sent ${value}` }), 'you sent [secret TOKEN]')
  t.equal(server.attempts[0]?.headers.authorization, `Bearer ${value}`)
  t.same(await call(tool(), { headers: json, text: JSON.stringify({ headers: { authorization: `Bearer ${value}` } }) }), { headers: { authorization: 'Bearer [secret TOKEN]' } })
  t.equal(await call(tool(), { headers: json, text: `<html>${value}` }), '<html>[secret TOKEN]')
  await t.rejects(call(tool(), { status: 401, text: `unknown token ${value}` }), { code: 'http_error', message: 'HTTP 401: unknown token [secret TOKEN]' })
  await t.rejects(call(tool({ url: `${server.url}/fail` }), { status: 403, message: `no ${value}` }), { message: 'HTTP 403: {"message":"no [secret TOKEN]"}' })
})

t.test('S13: what an MCP server tells of its tools holds no secret that it was sent: it is kept with the run, and the model reads it', async (t) => {
  const value = 'canary-canary'
  const server = await startMcpServer({ pages: () => [[{ name: 'look', description: `for ${value}`, inputSchema: { type: 'object', properties: { key: { const: value } } } }]] })
  const tools = await openTools({ allowedHosts: ['127.0.0.1'], secrets: setting({ TOKEN: { value, hosts: ['http://127.0.0.1'] } }) })
  t.teardown(async () => {
    await tools.close()
    await server.close()
  })
  const tool = { kind: 'mcp' as const, name: 'm', server_url: server.url, headers: { Authorization: 'Bearer {{secret.TOKEN}}' } }
  t.same(await tools.check(tool), [])
  const { tools: offers } = await tools.expand([tool], 128)
  t.equal(server.requests[0]?.headers.authorization, `Bearer ${value}`)
  t.match(offers, [{ name: 'look', description: 'for [secret TOKEN]' }])
  t.notMatch(JSON.stringify(offers), value)
})

t.test('S13: the headers of a configured MCP server name secrets too; where one does not fit, the server does not start, in one sentence', async (t) => {
  const value = 'canary-canary'
  const server = await startMcpServer({ pages: () => [[{ name: 'look', description: `for ${value}`, inputSchema: { type: 'object' } }]] })
  t.teardown(() => server.close())
  const secrets = setting({ TOKEN: { value, hosts: ['http://127.0.0.1'] } })
  const servers = (header: string) => JSON.stringify({ crm: { url: server.url, headers: { authorization: header } } })
  const tools = await openTools({ allowedHosts: ['127.0.0.1'], secrets, mcpServers: servers('Bearer {{secret.TOKEN}}') })
  t.teardown(() => tools.close())
  t.match((await tools.listings()).find(({ name }) => name === 'look'), { description: 'for [secret TOKEN]', server: 'crm' })
  t.equal(server.requests[0]?.headers.authorization, `Bearer ${value}`)
  await t.rejects(openTools({ secrets, mcpServers: servers('Bearer {{secret.OTHER}}') }), { message: 'INTERLOCK_MCP_SERVERS: server "crm": the header "authorization" names the secret OTHER, which this server does not have; its operator sets INTERLOCK_SECRETS' })
})

t.test('S13: a secret at the place where an error text is cut leaves no part of it', async (t) => {
  const value = 'canary'.repeat(680)
  const { call, tool } = await setup(t, value)
  for (const before of ['x'.repeat(1990), '語'.repeat(1990), '']) {
    const { message } = await call(tool(), { status: 500, text: `${before}${value}${value.slice(0, 1000)}${value}` }).catch((error: Error) => error) as Error
    t.ok(message.length <= 2010)
    if (before !== '') t.notMatch(message, /canary/)
  }
})

t.test('S4: a secret stays with the origin it was meant for', async (t) => {
  const { server, tool, call } = await setup(t, 'canary-canary')
  const sent = (): string => JSON.stringify(server.attempts.at(-1))
  await call(tool({ url: `${server.url}/redirect` }), { to: `${server.url}/echo`, status: 307 })
  t.match(sent(), 'canary', 'the same origin')
  await call(tool({ url: `${server.url}/redirect` }), { to: `http://other.test:${server.port}/echo`, status: 307 })
  t.notMatch(sent(), 'canary', 'another host')
  server.reset()
  await t.rejects(call(tool({ url: `http://other.test:${server.port}/echo` })), { code: 'http_error', message: /^the request was not made: a header names the secret TOKEN/ })
  await t.rejects(call(tool({ headers: { 'X-A': '{{secret.OTHER}}' } })), { message: /which this server does not have/ })
  t.equal(server.count(), 0, 'a request with a fault is not made')
  await call(tool({ url: `${server.url}/echo`, headers: {} }), { value: '{{secret.TOKEN}}' })
  t.match(server.attempts.at(-1)?.args, { value: '{{secret.TOKEN}}' }, 'and what the model writes is filled with nothing')
})

t.test('a tool that names a secret wrongly is refused with the place', async (t) => {
  const { server, tool, faults } = await setup(t, 'canary-canary')
  t.same(faults(tool()), [])
  t.strictSame(faults(tool({ headers: { Authorization: '{{secret.OTHER}}', 'X-Fine': '{{secret.TOKEN}}', 'X-Odd': '{{ secret.TOKEN }}' } })), [
    { pointer: '/headers/Authorization', detail: 'names the secret OTHER, which this server does not have; its operator sets INTERLOCK_SECRETS' },
    { pointer: '/headers/X-Odd', detail: 'means a secret, but does not name it as {{secret.NAME}}' }
  ])
  t.strictSame(faults(tool({ url: `http://other.test:${server.port}/` })), [
    { pointer: '/headers/Authorization', detail: `names the secret TOKEN, which INTERLOCK_SECRETS does not let go to http://other.test:${server.port}` }
  ])
  t.match(faults(tool({ url: 'http://[::1' })), [{ pointer: '/url' }])
})
