import { createHmac } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders } from 'node:http'
import type { AddressInfo } from 'node:net'
import { buffer } from 'node:stream/consumers'
import t, { type Test } from 'tap'
import type { HttpTool } from '../../../src/core/tool.js'
import { openEgress } from '../../../src/engine/tools/egress.js'
import { exchange } from '../../../src/engine/tools/exchange.js'
import { httpToolRequest } from '../../../src/engine/tools/http-tool.js'
import { openSecrets } from '../../../src/engine/tools/secrets.js'
import { openSigning } from '../../../src/engine/tools/signature.js'
import { toolContext } from '../../support/tool-context.js'

/** The vector of the Standard Webhooks libraries: github.com/standard-webhooks/standard-webhooks, `sign function works`. */
const vector = {
  secret: 'whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw',
  id: 'msg_p5jXN8AQM9LWM0D4loKWxJek',
  seconds: 1_614_265_330,
  body: '{"test": 2432232314}',
  signature: 'v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE='
}

t.test('S18: signatures are those of Standard Webhooks', async (t) => {
  const sign = openSigning(vector.secret, () => vector.seconds * 1000 + 999)
  t.strictSame(sign(vector.id, vector.body), { 'webhook-id': vector.id, 'webhook-timestamp': '1614265330', 'webhook-signature': vector.signature })
  t.not(sign(vector.id, `${vector.body} `)['webhook-signature'], vector.signature)
  t.not(sign(`${vector.id}x`, vector.body)['webhook-signature'], vector.signature)
  t.not(openSigning(vector.secret, () => (vector.seconds + 1) * 1000)(vector.id, vector.body)['webhook-signature'], vector.signature)
})

t.test('S18: while a secret is replaced each request carries a signature by both', async (t) => {
  const other = `whsec_${Buffer.alloc(64, 7).toString('base64')}`
  const now = (): number => vector.seconds * 1000
  const alone = openSigning(other, now)(vector.id, vector.body)['webhook-signature']
  t.equal(openSigning(`${vector.secret}, ${other}`, now)(vector.id, vector.body)['webhook-signature'], `${vector.signature} ${alone}`)
})

t.test('without a secret nothing is signed', async (t) => {
  t.strictSame(openSigning(undefined)('id', 'body'), {})
})

t.test('S13: a signing secret that is none is refused by a sentence without it', async (t) => {
  const bytes = (length: number): string => Buffer.alloc(length, 'canary').toString('base64')
  for (const length of [24, 32, 64]) t.ok(openSigning(`whsec_${bytes(length)}`), `${length} bytes`)
  for (const secret of ['', 'canary', 'whsec_', bytes(32), `whsec_${bytes(23)}`, `whsec_${bytes(65)}`, `whsec_${bytes(32)}=`, `whsec_${bytes(32).replace('=', '')}`, `whsec_${bytes(32)},`,
    `WHSEC_${bytes(32)}`, `whsk_${bytes(32)}`, `whsec_${bytes(32).replace(/^./, '-')}`, `whsec_${bytes(24)} ${bytes(24)}`]) {
    t.throws(() => openSigning(secret), { message: 'INTERLOCK_SIGNING_SECRET has an unusable value; it must be whsec_ followed by 24 to 64 random bytes in base64, such as "openssl rand -base64 32" prints.' }, secret)
  }
})

interface Arrived { method: string, path: string, headers: IncomingHttpHeaders, bytes: Buffer }

/** A server that keeps the very bytes of every request and sends `/to?<url>` on with the status its path names. */
async function setup (t: Test): Promise<{ url: string, arrived: Arrived[], call: (over: Partial<HttpTool>, args?: Record<string, unknown>) => Promise<unknown> }> {
  const arrived: Arrived[] = []
  const server = createServer((request, response) => {
    void buffer(request).then((bytes) => {
      const path = request.url ?? ''
      arrived.push({ method: request.method ?? '', path, headers: request.headers, bytes })
      const [, status, location] = /^\/(\d{3})\?(.*)$/.exec(path) ?? []
      response.writeHead(Number(status ?? 200), location === undefined ? {} : { location: decodeURIComponent(location) }).end()
    })
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  const egress = openEgress({ allowedHosts: ['127.0.0.1', 'other.test'], resolve: async () => [{ address: '127.0.0.1', family: 4 }] })
  t.teardown(async () => {
    await egress.close()
    await once(server.close(), 'close')
  })
  const sign = openSigning(vector.secret)
  const call = (over: Partial<HttpTool>, args: Record<string, unknown> = {}): Promise<unknown> => {
    const tool: HttpTool = { kind: 'http', name: 'there', url, ...over }
    return exchange(egress, httpToolRequest(tool, args, toolContext({ run_id: 'run_9', call_id: 'call_7' }), openSecrets(undefined), sign), { signal: new AbortController().signal, maxBytes: 1e6 })
  }
  return { url, arrived, call }
}

/** As a receiver checks it, from the bytes that came. */
function genuine ({ headers, bytes }: Arrived): boolean {
  const key = Buffer.from(vector.secret.slice('whsec_'.length), 'base64')
  const expected = createHmac('sha256', key).update(`${String(headers['webhook-id'])}.${String(headers['webhook-timestamp'])}.`).update(bytes).digest('base64')
  return headers['webhook-signature'] === `v1,${expected}` && Math.abs(Number(headers['webhook-timestamp']) - Date.now() / 1000) < 60
}

t.test('S18: an http tool\'s request is signed over the very bytes of its body', async (t) => {
  const { arrived, call } = await setup(t)
  const args = { text: 'ü \u{1f600} \ud800 "', list: [1, null] }
  for (const method of ['POST', 'PUT', 'PATCH', 'GET', 'DELETE'] as const) {
    await call({ method }, args)
    const last = arrived.at(-1)!
    t.ok(genuine(last), method)
    t.equal(last.headers['webhook-id'], 'run_9.call_7')
    t.equal(last.bytes.length > 0, method.startsWith('P'))
  }
})

t.test('S18: a redirect within the origin is signed for what it carries, one to another origin not at all', async (t) => {
  const { url, arrived, call } = await setup(t)
  const { port } = new URL(url)
  for (const status of [307, 303]) {
    await call({ url: `${url}/${status}?${encodeURIComponent('/there')}` }, { x: 1 })
    const last = arrived.at(-1)!
    t.match(last, { path: '/there', method: status === 303 ? 'GET' : 'POST' })
    t.equal(last.bytes.toString(), status === 303 ? '' : '{"x":1}')
    t.ok(genuine(last), `${status}`)
  }
  await call({ url: `${url}/307?${encodeURIComponent(`http://other.test:${port}/307?${encodeURIComponent(`${url}/back`)}`)}` }, { x: 1 })
  const [, elsewhere, back] = arrived.slice(-3)
  t.match(elsewhere?.headers.host, 'other.test')
  for (const unsigned of [elsewhere, back]) t.notMatch(Object.keys(unsigned!.headers).join(), 'webhook-')
})
