import { lookup } from 'node:dns/promises'
import t, { type Test } from 'tap'
import type { HttpTool } from '../../../src/core/tool.js'
import { openEgress, type Address } from '../../../src/engine/tools/egress.js'
import type { Tools } from '../../../src/engine/tools/tool.js'
import { openTools, type ToolsOptions } from '../../../src/engine/tools/tools.js'
import { startToolServer, type ToolServer } from '../../support/tool-server.js'
import { toolContext } from '../../support/tool-context.js'

const tool = (url: string): HttpTool => ({ kind: 'http', name: 'there', url, method: 'GET', parameters: { type: 'object' } })

/** Every spelling of an address that is not the public internet's. `PORT` becomes the port of a server that must never be reached. */
const HOSTILE = [
  'http://127.0.0.1:PORT/', 'http://127.1:PORT/', 'http://127.0.1:PORT/', 'http://127.255.255.254:PORT/', 'http://127.0.0.1.:PORT/',
  'http://2130706433:PORT/', 'http://0x7f000001:PORT/', 'http://0x7F.0.0.1:PORT/', 'http://0x7f.1:PORT/', 'http://017700000001:PORT/',
  'http://0177.0.0.1:PORT/', 'http://0177.0.0.01:PORT/', 'http://00000177.0.0.1:PORT/', 'http://127.0.0x0.1:PORT/',
  'http://１２７.０.０.１:PORT/', 'http://127。0。0。1:PORT/', 'http://①②⑦.0.0.1:PORT/', 'http://%31%32%37.0.0.1:PORT/',
  'http://0.0.0.0:PORT/', 'http://0:PORT/', 'http://0x0:PORT/', 'http://0.1.2.3:PORT/',
  'http://localhost:PORT/', 'http://LOCALHOST:PORT/', 'http://localhost.:PORT/', 'http://a.localhost:PORT/', 'http://ｌocalhost:PORT/',
  'http://[::1]:PORT/', 'http://[0:0:0:0:0:0:0:1]:PORT/', 'http://[0000::0001]:PORT/', 'http://[::]:PORT/',
  'http://[::ffff:127.0.0.1]:PORT/', 'http://[::ffff:7f00:1]:PORT/', 'http://[0:0:0:0:0:ffff:127.0.0.1]:PORT/', 'http://[::ffff:10.0.0.1]/',
  'http://[::127.0.0.1]:PORT/', 'http://[::7f00:1]:PORT/', 'http://[::ffff:0:127.0.0.1]:PORT/',
  'http://[64:ff9b::7f00:1]:PORT/', 'http://[64:ff9b:1::7f00:1]:PORT/', 'http://[2002:7f00:1::]:PORT/', 'http://[2001:0:7f00:1::]:PORT/',
  'http://[fe80::1]:PORT/', 'http://[fec0::1]/', 'http://[fc00::1]/', 'http://[fd00:ec2::254]/latest/meta-data/', 'http://[ff02::1]/',
  'http://[100::1]/', 'http://[2001:db8::1]/', 'http://[3fff::1]/', 'http://[5f00::1]/',
  'http://10.0.0.1/', 'http://10.255.255.255/', 'http://172.16.0.1/', 'http://172.31.255.254/', 'http://192.168.0.1/', 'http://0xc0a80001/',
  'http://169.254.169.254/latest/meta-data/', 'http://169.254.170.2/v2/credentials', 'http://2852039166/', 'http://0xa9fea9fe/', 'http://0251.0376.0251.0376/',
  'http://[::ffff:169.254.169.254]/', 'http://[::ffff:a9fe:a9fe]/', 'http://100.100.100.200/latest/meta-data/', 'http://100.64.0.1/',
  'http://192.0.0.192/', 'http://168.63.129.16/', 'http://192.0.2.1/', 'http://198.18.0.1/', 'http://198.51.100.1/', 'http://203.0.113.1/',
  'http://192.88.99.1/', 'http://224.0.0.1/', 'http://239.255.255.250:1900/', 'http://240.0.0.1/', 'http://255.255.255.255/',
  'https://127.0.0.1:PORT/', 'http://user@127.0.0.1:PORT/', 'http://user:secret@public.test/', 'http://public.test@127.0.0.1:PORT/',
  'file:///etc/passwd', 'gopher://127.0.0.1:PORT/_', 'ftp://public.test/', 'data:text/plain,hello', 'javascript:alert(1)',
  'redis://127.0.0.1:6379/', 'unix:/tmp/x.sock'
]

async function setup (t: Test, options: ToolsOptions): Promise<{ server: ToolServer, tools: Tools }> {
  const server = await startToolServer()
  const tools = await openTools(options)
  t.teardown(() => Promise.all([server.close(), tools.close()]))
  return { server, tools }
}

t.test(`S4: ${HOSTILE.length} URLs that do not lead to the public internet are refused, when declared and when called`, async (t) => {
  const { server, tools } = await setup(t, { resolve: async () => { throw new Error('an IP address needs no resolver, and these names are refused before') } })
  for (const template of HOSTILE) {
    const url = template.replace('PORT', String(server.port))
    const faults = await tools.check(tool(url))
    t.match(faults, [{ pointer: '/url', code: 'blocked_url' }], `declared: ${template}`)
    const call = tools.run(tool(url), {}, toolContext())
    await t.rejects(call, { name: 'ToolError', code: 'http_error', message: /INTERLOCK_ALLOWED_TOOL_HOSTS|only http|credentials/ }, `called: ${template}`)
    const fetched = tools.run({ kind: 'builtin', name: 'http_fetch' }, { url }, toolContext())
    await t.rejects(fetched, { name: 'ToolError', code: 'http_error' }, `fetched: ${template}`)
  }
  t.equal(server.count(), 0, 'nothing was ever reached')
})

t.test('S4: names are judged by what they resolve to, at each call', async (t) => {
  const answers: Record<string, Address[]> = {
    'inside.test': [{ address: '127.0.0.1', family: 4 }],
    'inside6.test': [{ address: '::1', family: 6 }],
    'mapped.test': [{ address: '::ffff:127.0.0.1', family: 6 }],
    'zone.test': [{ address: 'fe80::1%lo', family: 6 }],
    'metadata.test': [{ address: '169.254.169.254', family: 4 }],
    'nowhere.test': [],
    'nonsense.test': [{ address: 'nonsense', family: 4 }]
  }
  const { server, tools } = await setup(t, { resolve: async (name) => answers[name] ?? [] })
  for (const name of Object.keys(answers)) {
    const there = tool(`http://${name}:${server.port}/echo`)
    t.same(await tools.check(there), [], `${name}: no DNS when the run is created`)
    await t.rejects(tools.run(there, {}, toolContext()), { code: 'http_error', message: /private or reserved.*INTERLOCK_ALLOWED_TOOL_HOSTS/ }, name)
  }
  t.equal(server.count(), 0)
})

t.test('S4: of several addresses only the permitted ones are connected to', async (t) => {
  const server = await startToolServer({ host: '127.0.0.2' })
  const tools = await openTools({
    allowedHosts: ['127.0.0.2'],
    resolve: async () => [{ address: '127.0.0.1', family: 4 }, { address: '127.0.0.2', family: 4 }]
  })
  const decoy = await startToolServer({ port: server.port, host: '127.0.0.1' })
  t.teardown(() => Promise.all([server.close(), decoy.close(), tools.close()]))
  t.equal(await tools.run(tool(`http://both.test:${server.port}/echo`), { value: 'x' }, toolContext()), 'x')
  t.equal(decoy.count(), 0)
})

t.test('S4: a name that changes its answer (DNS rebinding) reaches nothing with the second one', async (t) => {
  const server = await startToolServer({ host: '127.0.0.2' })
  const victim = await startToolServer({ port: server.port, host: '127.0.0.3' })
  const asked: string[] = []
  const tools = await openTools({
    allowedHosts: ['127.0.0.2'],
    resolve: async (name) => [{ address: asked.push(name) === 1 ? '127.0.0.2' : '127.0.0.3', family: 4 }]
  })
  t.teardown(() => Promise.all([server.close(), victim.close(), tools.close()]))

  const rebinding = tool(`http://rebind.test:${server.port}/close`)
  await t.rejects(tools.run(rebinding, {}, toolContext()), { message: /connection was closed/ }, 'the first answer leads to the server, which hangs up')
  await t.rejects(tools.run(rebinding, {}, toolContext()), { message: /INTERLOCK_ALLOWED_TOOL_HOSTS/ }, 'the new connection is judged again')
  t.same(asked, ['rebind.test', 'rebind.test'])
  t.equal(victim.count(), 0)
})

t.test('S4: a redirect is judged like the first URL', async (t) => {
  const { server, tools } = await setup(t, { allowedHosts: ['gate.test'], resolve: async () => [{ address: '127.0.0.1', family: 4 }] })
  const targets = [
    `http://127.0.0.1:${server.port}/echo`, `http://2130706433:${server.port}/echo`, `http://[::ffff:127.0.0.1]:${server.port}/echo`,
    `http://other.test:${server.port}/echo`, 'http://169.254.169.254/latest/meta-data/', 'file:///etc/passwd', 'gopher://gate.test/', `http://u:p@gate.test:${server.port}/echo`
  ]
  for (const status of [301, 302, 303, 307, 308]) {
    for (const to of targets) {
      const call = tools.run(tool(`http://gate.test:${server.port}/redirect`), { to, status }, toolContext())
      await t.rejects(call, { name: 'ToolError', code: 'http_error', message: /INTERLOCK_ALLOWED_TOOL_HOSTS|only http|credentials/ }, `${status} to ${to}`)
    }
  }
  t.equal(server.count('echo'), 0)
  t.equal(server.count('redirect'), 5 * targets.length)
})

t.test('INTERLOCK_ALLOWED_TOOL_HOSTS permits hosts, addresses and blocks, with a port or without', async (t) => {
  const local = [{ address: '127.0.0.1', family: 4 }]
  const server = await startToolServer()
  t.teardown(() => server.close())
  const { port } = server
  const cases: [allowed: string, url: string, reached: boolean][] = [
    ['127.0.0.1', `http://127.0.0.1:${port}`, true],
    ['127.0.0.1', `http://name.test:${port}`, true],
    ['127.0.0.1', `http://[::ffff:127.0.0.1]:${port}`, true],
    ['127.0.0.1', `http://2130706433:${port}`, true],
    [`127.0.0.1:${port}`, `http://127.0.0.1:${port}`, true],
    [`127.0.0.1:${port}`, `http://name.test:${port}`, true],
    [`127.0.0.1:${port + 1}`, `http://127.0.0.1:${port}`, false],
    ['127.0.0.2', `http://127.0.0.1:${port}`, false],
    ['127.0.0.0/8', `http://127.0.0.1:${port}`, true],
    ['127.0.0.0/8', `http://name.test:${port}`, true],
    ['10.0.0.0/8', `http://127.0.0.1:${port}`, false],
    ['::1/128', `http://127.0.0.1:${port}`, false],
    ['name.test', `http://name.test:${port}`, true],
    ['NAME.test', `http://name.test.:${port}`, true],
    ['name.test', `http://127.0.0.1:${port}`, false],
    ['name.test', `http://sub.name.test:${port}`, false],
    [`name.test:${port}`, `http://name.test:${port}`, true],
    [`name.test:${port + 1}`, `http://name.test:${port}`, false],
    ['localhost', `http://localhost:${port}`, true],
    ['localhost', `http://127.0.0.1:${port}`, false]
  ]
  for (const [allowed, url, reached] of cases) {
    const tools = await openTools({ allowedHosts: [allowed], resolve: async (name) => name === 'localhost' ? await lookup(name, { all: true, family: 4 }) : local })
    const call = tools.run(tool(`${url}/echo`), { value: 'here' }, toolContext())
    if (reached) {
      t.same(await tools.check(tool(`${url}/echo`)), [], `${allowed} permits declaring ${url}`)
      t.equal(await call, 'here', `${allowed} permits ${url}`)
    } else {
      await t.rejects(call, { message: /INTERLOCK_ALLOWED_TOOL_HOSTS/ }, `${allowed} does not permit ${url}`)
    }
    await tools.close()
  }
})

t.test('S4: the connection itself is judged, not only the URL that led to it', async (t) => {
  const server = await startToolServer()
  const egress = openEgress({ allowedHosts: [] })
  t.teardown(() => Promise.all([server.close(), egress.close()]))
  for (const origin of [server.url, server.url.replace('127.0.0.1', '[::ffff:127.0.0.1]'), server.url.replace('127.0.0.1', 'localhost')]) {
    await t.rejects(egress.dispatcher.request({ origin, path: '/echo', method: 'GET' }), { name: 'BlockedAddressError' }, origin)
  }
  t.equal(server.count(), 0)
})

t.test('public addresses need no permission', async (t) => {
  const egress = openEgress({ allowedHosts: [] })
  t.teardown(() => egress.close())
  for (const url of ['http://1.1.1.1/', 'https://93.184.216.34:8443/x', 'https://[2606:4700::1111]/', 'https://example.com/', 'http://172.15.0.1/', 'http://100.128.0.1/', 'http://[::ffff:1.1.1.1]/']) {
    t.equal(egress.refusal(new URL(url)), null, url)
  }
})

t.test('an allowed host that is none stops the start', async (t) => {
  for (const entry of ['', ' ', 'http://a.test', 'a b', 'a.test/path', '10.0.0.0/33', '10.0.0/x', 'a.test:0', 'a.test:99999', 'a.test:port', 'user@a.test', '[::1', '999.1.1.1', '*']) {
    await t.rejects(openTools({ allowedHosts: [entry] }), { message: `INTERLOCK_ALLOWED_TOOL_HOSTS: ${JSON.stringify(entry)} is not a host, host:port, IP address or CIDR block` }, JSON.stringify(entry))
  }
})
