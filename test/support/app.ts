import { createHash } from 'node:crypto'
import { connect, type AddressInfo } from 'node:net'
import { Ajv2020 } from 'ajv/dist/2020.js'
import addFormats from 'ajv-formats'
import { EventSourceParserStream } from 'eventsource-parser/stream'
import type { FastifyInstance, LightMyRequestResponse } from 'fastify'
import { pino } from 'pino'
import type { Test } from 'tap'
import { buildApp, type HttpConfig } from '../../src/app.js'
import type { Problem } from '../../src/errors.js'
import { fakeServices, type FakeServices } from './fake-services.js'

export interface TestApp {
  app: FastifyInstance
  fake: FakeServices
  /** What was logged, line by line. */
  logs: Record<string, unknown>[]
}

export const KEY_A = 'key-of-tenant-a-0123456789'
export const KEY_B = 'key-of-tenant-b-0123456789'

/** Two tenants with a key each. */
export const twoTenants = {
  apiKeys: [{ key: KEY_A, tenant: 'a' }, { key: KEY_B, tenant: 'b' }].map(({ key, tenant }) => ({ sha256: createHash('sha256').update(key).digest('hex'), tenant }))
}

/** The app on fake services, closed when the test ends. */
export async function testApp (t: Test, config: Partial<HttpConfig> = {}): Promise<TestApp> {
  const fake = fakeServices()
  const logs: Record<string, unknown>[] = []
  const logger = pino({ level: 'debug' }, { write: (line: string) => { logs.push(JSON.parse(line) as Record<string, unknown>) } })
  const app = await buildApp({ services: fake.services, config: { apiKeys: [], host: '127.0.0.1', ...config }, logger })
  t.teardown(() => app.close())
  await app.ready()
  return { app, fake, logs }
}

/** Listens on a port of its own. */
export async function listening (app: FastifyInstance): Promise<{ origin: string, port: number }> {
  const origin = await app.listen({ host: '127.0.0.1', port: 0 })
  return { origin, port: (app.server.address() as AddressInfo).port }
}

/** Posts JSON. */
export function post (app: FastifyInstance, url: string, body: unknown, headers: Record<string, string> = {}): Promise<LightMyRequestResponse> {
  const payload = typeof body === 'string' || Buffer.isBuffer(body) ? body : JSON.stringify(body)
  return app.inject({ method: 'POST', url, headers: { 'content-type': 'application/json', ...headers }, payload })
}

/** A run, created over HTTP. */
export async function newRun (
  app: FastifyInstance, body: Record<string, unknown> = {}, headers: Record<string, string> = {}
): Promise<{ id: string, conversation_id: string }> {
  return (await post(app, '/runs', { input: 'hello', ...body }, headers)).json()
}

/** Asserts that an answer is a problem (RFC 9457) in every respect, and returns it. */
export function problemOf (t: Test, answer: { status: number, type: string | undefined, text: string }, status: number, code: string): Problem {
  const problem = JSON.parse(answer.text) as Problem
  t.match(answer.type, /^application\/problem\+json/, 'says that it is a problem')
  t.strictSame({ status: answer.status, body: problem.status, code: problem.code }, { status, body: status, code }, `is ${status} ${code}`)
  t.equal(problem.type, `urn:interlock:problem:${code}`)
  t.ok(problem.title !== '' && problem.detail !== '', 'has words')
  t.type(problem.retryable, 'boolean')
  return problem
}

export const refused = (t: Test, response: LightMyRequestResponse, status: number, code: string): Problem =>
  problemOf(t, { status: response.statusCode, type: response.headers['content-type'] as string | undefined, text: response.body }, status, code)

/** The whole answer to bytes on a raw connection, once the server has closed it. */
export function raw (port: number, request: string | Buffer): Promise<{ status: number, headers: string, type: string | undefined, text: string }> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1', () => socket.write(request))
    let answer = ''
    socket.setEncoding('utf8')
    socket.on('data', (text: string) => { answer += text })
    socket.on('error', reject)
    socket.on('close', () => {
      const [headers = '', text = ''] = answer.split(/\r\n\r\n([\s\S]*)/)
      resolve({ status: Number(headers.split(' ')[1]), headers, type: /^content-type: (.*)$/im.exec(headers)?.[1], text })
    })
  })
}

export interface Frame { id: string | undefined, event: string | undefined, data: Record<string, unknown> }

export interface Reader {
  response: Response
  /** Resolves with this many further frames; with fewer when the stream ends before. */
  take: (count: number) => Promise<Frame[]>
  /** All that comes until the stream ends. */
  rest: () => Promise<Frame[]>
  leave: () => Promise<void>
}

/** Reads an event stream with a parser that is not ours. */
export async function read (url: string, options: RequestInit = {}): Promise<Reader> {
  const leaving = new AbortController()
  const response = await fetch(url, { ...options, headers: { accept: 'text/event-stream', ...options.headers }, signal: leaving.signal })
  const frames = response.body?.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream()).getReader()
  const take = async (count: number): Promise<Frame[]> => {
    const taken: Frame[] = []
    while (taken.length < count) {
      const { value, done } = await frames?.read() ?? { done: true }
      if (done || value === undefined) break
      taken.push({ id: value.id, event: value.event, data: JSON.parse(value.data) as Record<string, unknown> })
    }
    return taken
  }
  return { response, take, rest: () => take(Infinity), leave: async () => leaving.abort() }
}

/** Asserts that an answer is what openapi.yaml promises for this operation and status. */
export function conforms (t: Test, app: FastifyInstance, operationId: string, response: LightMyRequestResponse): void {
  const document = app.swagger() as unknown as { paths: Record<string, Record<string, Operation>> }
  const ajv = new Ajv2020({ strict: false, allErrors: true })
  addFormats.default(ajv)
  ajv.addSchema(document, 'openapi')
  const operation = Object.values(document.paths).flatMap((item) => Object.values(item)).find((one) => one.operationId === operationId)
  const described = operation?.responses[response.statusCode]
  t.ok(described, `${operationId} documents ${response.statusCode}`)
  const type = (response.headers['content-type'] as string).split(';')[0] as string
  const schema = described?.$ref === undefined ? described?.content?.[type]?.schema : { $ref: '#/components/schemas/Problem' }
  t.ok(schema, `${operationId} documents ${type}`)
  const accepts = ajv.compile(absolute(schema))
  t.ok(accepts(response.json()), `${operationId} answers as documented`, { errors: accepts.errors })
}

interface Operation { operationId: string, responses: Record<string, { $ref?: string, content?: Record<string, { schema?: object }> }> }

const absolute = (schema: unknown): object => JSON.parse(JSON.stringify(schema).replaceAll('"#/', '"openapi#/')) as object

/** Resolves once `condition` holds, looked at on every turn of the event loop; the test's own timeout ends a wait in vain. */
export async function until (condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setImmediate(resolve))
}
