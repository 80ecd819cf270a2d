import { join } from 'node:path'
import fc from 'fast-check'
import type { InjectOptions } from 'fastify'
import t from 'tap'
import { problemCodes, statusOf, type Problem } from '../../src/errors.js'
import { newRun, testApp, twoTenants, KEY_A } from '../support/app.js'

/** In every value that is sent, and in no answer. */
const CANARY = 'c4n4ry'

const leaf = fc.oneof(
  fc.string({ unit: 'binary', maxLength: 20 }).map((text) => CANARY + text), fc.integer(), fc.double(), fc.boolean(), fc.constant(null),
  fc.constantFrom('', 'user', 'system', 'http', 'builtin', 'http_fetch', 'auto', 'queue', 'text', 'http://a.example/', 'run_01KAG6XN3Q8V5T2M7R4C9B1DZH0H')
)
const name = fc.oneof(fc.string({ maxLength: 10 }), fc.constantFrom(
  'input', 'role', 'content', 'type', 'text', 'tools', 'kind', 'name', 'url', 'headers', 'limits', 'max_turns', 'model', 'model_options', 'stop', 'tool_choice', 'metadata',
  'conversation_id', 'on_active_run', 'after_seconds', 'messages', 'id', 'tool_calls', 'arguments', 'constructor', 'toString', 'hasOwnProperty', '$ref', ''
))
const { value } = fc.letrec((tie) => ({
  value: fc.oneof({ maxDepth: 6 }, leaf, fc.array(tie('value'), { maxLength: 4 }), fc.dictionary(name, tie('value'), { maxKeys: 5 }))
}))

/** What has become of a valid body: one part of it is another value. */
const nearlyRun = fc.tuple(fc.dictionary(name, value, { maxKeys: 3 }), value, value)
  .map(([extra, tools, limits]) => ({ input: CANARY, tools: [tools], limits, ...extra }))

const id = fc.oneof(
  fc.constantFrom('run_01KAG6XN3Q8V5T2M7R4C9B1DZH0H', 'conv_1', 'call_01KAG6XN3Q8V5T2M7R4C9B1DZH', '%00', '..', '%2e%2e%2f', '*', ':id', '%', '%zz', '%ff', '{a}'),
  fc.string({ unit: 'grapheme', maxLength: 30 }).map(encodeURIComponent), fc.string({ maxLength: 120 }).map(encodeURIComponent)
)
const path = fc.oneof(
  fc.constantFrom('/runs', '/conversations', '/tools', '/models', '/metrics', '/health/ready', '/docs', '/docs/json', '/openapi.yaml', '/', '//', '/runs/'),
  fc.tuple(
    fc.constantFrom('/runs/', '/conversations/', '/docs/', '/x/'), id, fc.constantFrom('', '/events', '/calls', '/cancel', '/messages', '/state', '/nothing')
  ).map((parts) => parts.join('')),
  fc.tuple(id, id).map(([run, call]) => `/runs/${run}/calls/${call}`)
)
const queryValue = fc.oneof(fc.string({ unit: 'binary', maxLength: 12 }), fc.constantFrom('0', '1', '-1', '100', '101', 'queued', 'true', '9007199254740993', `${CANARY}`)).map((text) => encodeURIComponent(Buffer.from(text).toString()))
const query = fc.array(fc.tuple(fc.constantFrom('limit', 'cursor', 'status', 'after', 'wait', 'metadata.a', 'conversation_id', 'x', '__proto__', 'metadata.'), queryValue), { maxLength: 3 })
  .map((pairs) => pairs.length === 0 ? '' : `?${pairs.map((pair) => pair.join('=')).join('&')}`)
const headers = fc.record({
  accept: fc.constantFrom('application/json', '*/*', 'text/event-stream', 'text/html', ';q=', ''),
  'content-type': fc.constantFrom('application/json', 'application/json', 'application/json', 'text/plain', 'application/json;', ''),
  'last-event-id': fc.constantFrom('1', '0', 'x', '-1', '99999999999999999999', ''),
  'idempotency-key': fc.string({ maxLength: 5 }),
  'if-none-match': fc.constantFrom('"1"', '*', 'x'),
  prefer: fc.constantFrom('wait=0', 'wait=x', ',;=')
}, { requiredKeys: [] })

const anything = fc.tuple(fc.constantFrom('GET', 'POST', 'DELETE', 'PATCH', 'PUT', 'HEAD', 'OPTIONS'), path, query, headers, fc.oneof(
  value.map((body) => JSON.stringify(body)), nearlyRun.map((body) => JSON.stringify(body)), fc.string({ unit: 'binary', maxLength: 50 }), fc.constant(undefined)
))

/** Near enough to what is accepted to get further than the door. */
const plausible = fc.tuple(
  fc.constant('POST'), fc.constantFrom('/runs', '/conversations', '/runs'), fc.constant(''),
  fc.record({ 'content-type': fc.constant('application/json'), prefer: fc.constantFrom('wait=0', 'x') }, { requiredKeys: ['content-type'] }),
  fc.oneof(nearlyRun, fc.record({ input: leaf }), fc.record({ id: leaf, messages: fc.array(value, { maxLength: 2 }) }, { requiredKeys: [] }))
    .map((body) => JSON.stringify(body))
)

const request = fc.oneof({ weight: 4, arbitrary: anything }, { weight: 1, arbitrary: plausible })

const root = join(import.meta.dirname, '..', '..')

t.test('4.2: whatever is sent, an error is a problem with its own status, never a 5xx, and repeats nothing', async (t) => {
  const { app, fake, logs } = await testApp(t, twoTenants)
  await newRun(app, {}, { authorization: `Bearer ${KEY_A}` })
  const seen = new Map<number, number>()
  // A stream would go on until its reader leaves, which inject cannot do.
  fake.services.events.live = async function* () { /* nothing */ }
  await fc.assert(fc.asyncProperty(request, async ([method, path, query, headers, body]) => {
    const sendable = Object.fromEntries(Object.entries(headers).filter(([, text]) => text !== undefined))
    const payload = method === 'GET' || method === 'HEAD' ? undefined : body
    const response = await app.inject({
      method: method as 'GET', url: path + query, headers: { ...sendable, authorization: `Bearer ${KEY_A}`, 'x-canary': CANARY }, ...(payload === undefined ? {} : { payload })
    } satisfies InjectOptions)
    const { statusCode: status } = response
    seen.set(status, (seen.get(status) ?? 0) + 1)
    if (status >= 500) throw new Error(`${method} ${path} is ${status}`)
    if (status < 400 || method === 'HEAD') return
    const problem = response.json<Problem>()
    if (problem.status !== status || !problemCodes.includes(problem.code) || statusOf(problem.code) !== status) throw new Error(`${status} says ${problem.status} ${problem.code}`)
    if (!(response.headers['content-type'] as string).startsWith('application/problem+json')) throw new Error(`${status} is ${response.headers['content-type'] as string}`)
    // Pointers name fields as they were sent; values stay out.
    const { errors = [], ...rest } = problem
    // The id that is taken is a fact of its own, and the only value that comes back.
    const facts = problem.code === 'conversation_exists' ? { ...rest, conversation_id: null } : rest
    const told = JSON.stringify([facts, errors.map(({ detail }) => detail)])
    if (told.includes(CANARY) || told.includes(KEY_A) || told.includes(root) || /\bat .*:\d+|node_modules|\.ts\b/.test(told)) throw new Error(told)
  }), { numRuns: 3000 })
  for (const status of [200, 201, 400, 404, 405, 415, 422]) t.ok((seen.get(status) ?? 0) > 0, `${status}: ${seen.get(status)} times`)
  t.notMatch(JSON.stringify(logs.filter(({ level }) => level as number >= 40)), CANARY)
  t.equal(({} as Record<string, unknown>).a, undefined)
})

t.test('A1: a body that is accepted is accepted by the schema, and one that is refused has a reason', async (t) => {
  const { app, fake } = await testApp(t)
  const accepted: number[] = []
  await fc.assert(fc.asyncProperty(nearlyRun, async (body) => {
    const before = fake.count().runs
    const response = await app.inject({ method: 'POST', url: '/runs', payload: JSON.stringify(body), headers: { 'content-type': 'application/json' } })
    if (response.statusCode === 201) accepted.push(1)
    else if (response.statusCode === 422 && (response.json<Problem>().errors ?? []).length === 0) throw new Error('no reason')
    if (fake.count().runs !== before + (response.statusCode === 201 ? 1 : 0)) throw new Error('a refused run exists')
  }), { numRuns: 1000 })
  t.pass(`${accepted.length} of 1000 were valid`)
})
