import t from 'tap'
import { buildApp } from '../../src/app.js'
import { fakeServices } from '../support/fake-services.js'
import { conforms, KEY_A, newRun, refused, testApp, twoTenants } from '../support/app.js'

t.test('health: live whatever is away, ready when the process can work', async (t) => {
  const { app, fake } = await testApp(t)
  const live = await app.inject('/health/live')
  conforms(t, app, 'live', live)
  t.strictSame(live.json(), { status: 'ok' })
  const ready = await app.inject('/health/ready')
  conforms(t, app, 'ready', ready)
  t.strictSame(ready.json(), { status: 'ok', checks: { redis: 'ok' } })
  fake.services.health.ready = async () => ({ ready: false, checks: { redis: 'does not answer' } })
  const problem = refused(t, await app.inject('/health/ready'), 503, 'unavailable')
  t.strictSame(problem.checks, { redis: 'does not answer' })
  t.equal((await app.inject('/health/live')).statusCode, 200)
})

t.test('N2: metrics are the services\', as they are, behind a key when there are keys (S30)', async (t) => {
  const { app } = await testApp(t, twoTenants)
  refused(t, await app.inject('/metrics'), 401, 'unauthorized')
  const response = await app.inject({ url: '/metrics', headers: { authorization: `Bearer ${KEY_A}` } })
  t.equal(response.headers['content-type'], 'text/plain; version=0.0.4; charset=utf-8')
  t.equal(response.body, '# HELP up\nup 1\n')
})

t.test('tools and models are listed', async (t) => {
  const { app } = await testApp(t)
  const tools = await app.inject('/tools')
  conforms(t, app, 'listTools', tools)
  t.equal(tools.json<{ data: { name: string }[] }>().data[0]?.name, 'http_fetch')
  const models = await app.inject('/models')
  conforms(t, app, 'listModels', models)
  t.strictSame(models.json(), { data: [{ id: 'scripted', default: true }], next_cursor: null })
})

t.test('a process that serves no API answers its operator, and nobody else', async (t) => {
  const app = await buildApp({ services: fakeServices().services, config: { apiKeys: [], host: '127.0.0.1' }, routes: 'operations' })
  t.teardown(() => app.close())
  for (const url of ['/health/live', '/health/ready', '/metrics']) t.equal((await app.inject(url)).statusCode, 200, url)
  refused(t, await app.inject('/runs'), 404, 'not_found')
})

t.test('/docs works without a network: every asset is ours, and the page\'s own policy allows it', async (t) => {
  const { app } = await testApp(t, twoTenants)
  const page = await app.inject('/docs')
  t.equal(page.statusCode, 200)
  t.match(page.headers['content-type'], /^text\/html/)
  const assets = [...page.body.matchAll(/(?:src|href)="([^"]+)"/g)].map(([, url]) => url as string)
  t.ok(assets.length >= 5)
  for (const url of assets) {
    t.match(url, /^\/docs\//, 'from our own address')
    const asset = await app.inject(url)
    t.equal(asset.statusCode, 200, url)
    if (url.endsWith('swagger-initializer.js')) t.notMatch(asset.body.replace(/^ *\/\/.*$/gm, ''), /https?:\/\//)
  }
  t.notMatch(page.body, /<script(?! src)|<style| on[a-z]+=/i, 'nothing is inline that the policy would block')
  const policy = page.headers['content-security-policy'] as string
  t.match(policy, /default-src 'none'/)
  t.match(policy, /script-src 'self'(;|$)/)
  t.match(policy, /connect-src 'self'(;|$)/)
  t.match(policy, /frame-ancestors 'none'/)
  t.notMatch(policy, /https?:|unsafe-eval|upgrade-insecure/)
  t.equal((await app.inject('/docs/json')).json<{ openapi: string }>().openapi, '3.1.0')
  for (const path of ['..%2fpackage.json', '..%2f..%2f..%2fpackage.json', '%252e%252e/package.json', '..%5c..%5cpackage.json']) {
    refused(t, await app.inject(`/docs/static/${path}`), 404, 'not_found')
  }
})

t.test('every answer has the headers that keep browsers in check, and names its request', async (t) => {
  const { app } = await testApp(t)
  const { id } = await newRun(app)
  for (const url of ['/tools', `/runs/${id}`, '/nothing', '/runs/nobody', '/docs', '/openapi.yaml']) {
    const { headers } = await app.inject(url)
    t.match(headers, { 'x-content-type-options': 'nosniff', 'x-frame-options': 'DENY', 'referrer-policy': 'no-referrer', 'x-request-id': /^[0-9A-Z]{26}$/ }, url)
    t.notOk(headers['x-powered-by'] ?? headers.server)
  }
  t.equal((await app.inject('/tools')).headers['cache-control'], 'no-store')
  t.not((await app.inject({ url: '/tools', headers: { 'x-request-id': 'mine', 'request-id': 'mine' } })).headers['x-request-id'], 'mine', 'ids are ours alone')
})

t.test('S28, S13: a request is one line in the log, with ids as fields and nothing that was sent', async (t) => {
  const { app, logs } = await testApp(t, twoTenants)
  const headers = { authorization: `Bearer ${KEY_A}`, 'idempotency-key': 'canary-key', 'user-agent': 'canary', 'x-canary': 'canary', cookie: 'canary=1' }
  const { id } = await newRun(app, { input: 'canary text', metadata: { name: 'canary' } }, headers)
  await app.inject({ url: `/runs/${id}?canary=1`, headers })
  await app.inject({ url: '/runs/canary%0d%0acanary', headers })
  await app.inject({ url: '/canary', headers })
  await app.inject({ method: 'POST', url: '/runs', headers: { ...headers, 'content-type': 'application/json' }, payload: '{canary' })
  await app.inject({ url: '/tools', headers: { authorization: 'Bearer canary' } })
  await app.inject({ url: '/health/live' })
  const text = JSON.stringify(logs)
  t.notMatch(text, /canary/)
  t.notMatch(text, KEY_A)
  const requests = logs.filter(({ msg }) => msg === 'request')
  t.equal(requests.length, 7)
  t.match(requests[0], { level: 30, request_id: /^[0-9A-Z]{26}$/, method: 'POST', route: '/runs', tenant: 'a', status: 201, ms: Number })
  t.match(requests[1], { method: 'GET', route: '/runs/:run_id', run_id: id, status: 422 })
  t.match(requests[2], { route: '/runs/:run_id', status: 404 })
  t.match(requests[3], { route: null, status: 404 })
  t.match(requests[5], { status: 401, route: '/tools' })
  t.match(requests[6], { level: 20, route: '/health/live', status: 200 })
  t.equal(logs.length, 7)
})
