import t from 'tap'
import { KEY_A, KEY_B, listening, newRun, post, problemOf, raw, refused, testApp, twoTenants } from '../support/app.js'

const a = { authorization: `Bearer ${KEY_A}` }
const b = { authorization: `Bearer ${KEY_B}` }

const IDS = { run_id: 'run_01KAG6XN3Q8V5T2M7R4C9B1DZH0H', call_id: 'call_01KAG6XN3Q8V5T2M7R4C9B1DZH', message_id: 'msg_01KAG6XN3Q8V5T2M7R4C9B1DZH', conversation_id: 'conv_01KAG6XN3Q8V5T2M7R4C9B1DZH' }

interface Document { paths: Record<string, Record<string, { operationId: string, security?: unknown[] }>> }

t.test('S1: every operation of openapi.yaml needs a key, but for those that say they do not', async (t) => {
  const { app, fake } = await testApp(t, twoTenants)
  const open: string[] = []
  for (const [path, item] of Object.entries((app.swagger() as unknown as Document).paths)) {
    for (const [method, { operationId, security }] of Object.entries(item)) {
      const url = path.replace(/{(\w+)}/g, (_, name: keyof typeof IDS) => IDS[name])
      const response = await app.inject({ method: method.toUpperCase() as 'GET', url })
      if (security?.length === 0) {
        open.push(operationId)
        t.equal(response.statusCode, 200, operationId)
      } else {
        refused(t, response, 401, 'unauthorized')
        t.equal(response.headers['www-authenticate'], 'Bearer realm="interlock"')
      }
    }
  }
  t.strictSame(open.sort(), ['live', 'openapi', 'ready'])
  t.strictSame(fake.calls, ['health.ready'])
})

t.test('S1: nothing but a whole, known key is let in', async (t) => {
  const { app } = await testApp(t, twoTenants)
  for (const authorization of [
    '', 'Bearer', 'Bearer ', KEY_A, `Basic ${KEY_A}`, `Bearer ${KEY_A.slice(0, -1)}`, `Bearer ${KEY_A}x`, `Bearer ${KEY_A.toUpperCase()}`, `Bearer ${KEY_A} ${KEY_B}`, `Bearer,${KEY_A}`,
    `Bearer ${KEY_A},Bearer ${KEY_B}`, 'Bearer null', 'Bearer \u00e9', `Bearer ${'x'.repeat(8000)}`
  ]) refused(t, await app.inject({ url: '/tools', headers: { authorization } }), 401, 'unauthorized')
  for (const authorization of [`Bearer ${KEY_A}`, `bearer ${KEY_A}`, `BEARER   ${KEY_A} `]) t.equal((await app.inject({ url: '/tools', headers: { authorization } })).statusCode, 200)
  for (const url of [`/tools?key=${KEY_A}`, `/tools?authorization=Bearer%20${KEY_A}`]) refused(t, await app.inject(url), 401, 'unauthorized')
})

t.test('S1: who has no key learns nothing: not what exists, not what would be wrong with a body', async (t) => {
  const { app } = await testApp(t, twoTenants)
  refused(t, await post(app, '/runs', '{ not json'), 401, 'unauthorized')
  refused(t, await post(app, '/runs', 'x'.repeat(2_000_000)), 401, 'unauthorized')
  refused(t, await app.inject('/nothing'), 401, 'unauthorized')
  refused(t, await app.inject({ method: 'DELETE', url: '/tools' }), 401, 'unauthorized')
  refused(t, await app.inject('/runs/%00'), 401, 'unauthorized')
})

t.test('S2: another tenant\'s things do not exist, in the same words as what never was', async (t) => {
  const { app } = await testApp(t, twoTenants)
  const { id, conversation_id: conversation } = await newRun(app, {}, a)
  const unknown = (text: string) => text.replace(id, IDS.run_id).replace(conversation, IDS.conversation_id)
  for (const [method, url] of [
    ['GET', `/runs/${id}`], ['GET', `/runs/${id}/events`], ['GET', `/runs/${id}/calls`], ['GET', `/runs/${id}/calls/${IDS.call_id}`], ['POST', `/runs/${id}/cancel`],
    ['GET', `/conversations/${conversation}`], ['GET', `/conversations/${conversation}/messages`], ['GET', `/conversations/${conversation}/events`],
    ['GET', `/conversations/${conversation}/state`], ['DELETE', `/conversations/${conversation}`]
  ] as const) {
    const theirs = refused(t, await app.inject({ method, url, headers: b }), 404, 'not_found')
    const never = refused(t, await app.inject({ method, url: unknown(url), headers: b }), 404, 'not_found')
    t.strictSame({ ...theirs, instance: '' }, { ...never, instance: '' })
  }
  refused(t, await post(app, '/runs', { input: 'x', conversation_id: conversation }, b), 404, 'not_found')
  t.strictSame((await app.inject({ url: '/runs', headers: b })).json(), { data: [], next_cursor: null })
  t.equal((await app.inject({ url: '/runs', headers: a })).json<{ data: unknown[] }>().data.length, 1)
  t.equal((await app.inject({ url: `/runs/${id}`, headers: a })).statusCode, 200)
})

t.test('S2: a cursor of one tenant is none for another', async (t) => {
  const { app } = await testApp(t, twoTenants)
  for (let n = 0; n < 2; n++) for (const headers of [a, b]) await newRun(app, {}, headers)
  const { next_cursor: cursor } = (await app.inject({ url: '/runs?limit=1', headers: a })).json<{ next_cursor: string }>()
  t.equal((await app.inject({ url: `/runs?limit=1&cursor=${cursor}`, headers: a })).statusCode, 200)
  refused(t, await app.inject({ url: `/runs?limit=1&cursor=${cursor}`, headers: b }), 422, 'validation_failed')
})

t.test('without keys everybody is the tenant "default"', async (t) => {
  const { app, fake } = await testApp(t)
  const { id } = await newRun(app, {}, { authorization: 'Bearer whatever' })
  t.equal(fake.run(id).tenant, 'default')
})

t.test('with keys, any Host is answered: a key cannot be had by rebinding a name', async (t) => {
  const { app } = await testApp(t, twoTenants)
  t.equal((await app.inject({ url: '/tools', headers: { ...a, host: 'api.example.com' } })).statusCode, 200)
  const { port } = await listening(app)
  problemOf(t, await raw(port, 'GET /tools HTTP/1.0\r\n\r\n'), 401, 'unauthorized')
})

t.test('S20: no other origin is let in: no CORS headers, and a form cannot post', async (t) => {
  const { app } = await testApp(t)
  const { id } = await newRun(app)
  for (const origin of ['https://evil.example', 'null']) {
    const response = await app.inject({ url: `/runs/${id}`, headers: { origin } })
    t.notOk(Object.keys(response.headers).some((name) => name.startsWith('access-control-')))
    refused(t, await app.inject({ method: 'POST', url: '/runs', headers: { origin, 'content-type': 'text/plain' }, payload: '{"input":"x"}' }), 415, 'unsupported_media_type')
    refused(t, await app.inject({ method: 'OPTIONS', url: '/runs', headers: { origin, 'access-control-request-method': 'POST' } }), 405, 'method_not_allowed')
  }
})
