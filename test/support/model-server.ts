import { isUtf8 } from 'node:buffer'
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { ChatCompletionMessageParam, ChatCompletionTool } from 'openai/resources/chat/completions'
import { status, type Pause, type Reply } from './model-reply.js'
import { checkPayload, type PayloadFault } from './payload.js'

export interface RecordedRequest {
  /** The marker `conv:…` in the first user message; empty without one. */
  conversation: string
  /** Counts the requests of the conversation from 1. */
  n: number
  body: { model: string, messages: ChatCompletionMessageParam[], tools?: ChatCompletionTool[], stream?: boolean, [option: string]: unknown }
  headers: IncomingHttpHeaders
  /** `X-Client-Request-Id`. */
  requestId: string | null
  /** The client's port: the same for requests on one connection. */
  clientPort: number
  /** `performance.now()` when the request was complete, and when its response was or its connection closed; null while it is open. */
  arrivedAt: number
  endedAt: number | null
  /** The client closed the connection before it had the whole response. */
  aborted: boolean
  /** Calls of this conversation in flight when it arrived, with itself. */
  inFlight: number
  /** Resolves with `endedAt`. */
  ended: Promise<RecordedRequest>
}

export interface Violation extends Omit<PayloadFault, 'rule'> { rule: PayloadFault['rule'] | 'script', conversation: string, n: number }

/** Decides the reply to a request; `n` is its number within the conversation. */
export type Script = (request: RecordedRequest, n: number) => Reply | Promise<Reply>

export interface ModelServer {
  /** For the openai client: ends in `/v1`. */
  baseUrl: string
  port: number
  /** How a conversation (`conv:…`) is answered: by these replies in turn, or by a function. One request more than replies is a violation. */
  script: (conversation: string, script: Reply[] | Script) => void
  /** How all others are answered. */
  otherwise: (script: Reply[] | Script) => void
  requests: (conversation?: string) => RecordedRequest[]
  /** The first request, past or future, that the predicate accepts. Rejects after `timeoutMs`, default 10,000. */
  waitForRequest: (predicate: (request: RecordedRequest) => boolean, timeoutMs?: number) => Promise<RecordedRequest>
  /** Calls of one conversation in flight at once, at most; without one, of the conversation with the most. */
  maxInFlight: (conversation?: string) => number
  /** All requests a provider would have refused; each was answered with 400. A test ends by asserting that there are none. */
  violations: Violation[]
  stats: () => ModelServerStats
  /** Forgets the requests so far, so that a long run does not fill the memory. */
  forget: () => void
  close: () => Promise<void>
}

export interface ModelServerStats {
  requests: number
  conversations: number
  aborted: number
  /** Of all conversations together, and of the one with the most. */
  maxInFlight: number
  maxInFlightPerConversation: number
  /** The conversations that ever had more than one. */
  overlapping: Record<string, number>
  /** The newest requests, oldest first, in milliseconds since 1970: a clock that other processes of this machine share. */
  newest: { arrived: number, ended: number | null }[]
  violations: number
  firstViolations: Violation[]
}

interface Conversation { count: number, inFlight: number, max: number }

/** Requests whose times are kept for `stats`. */
const NEWEST = 500

const MARKER = /\bconv:[\w-]+/

/**
 * A model server that records everything, answers by script and refuses invalid payloads the way OpenAI does. Each caller has its own, on its own port.
 *
 * `keep: false` keeps counts and violations but no requests, for benchmarks.
 */
export async function startModelServer ({ keep = true, models = ['test'] }: { keep?: boolean, models?: string[] } = {}): Promise<ModelServer> {
  const scripts = new Map<string, Script>()
  const conversations = new Map<string, Conversation>()
  const requests: RecordedRequest[] = []
  const violations: Violation[] = []
  const waiting = new Set<(request: RecordedRequest) => void>()
  const newest: ModelServerStats['newest'] = []
  const total = { requests: 0, aborted: 0, inFlight: 0, maxInFlight: 0 }
  let fallback: Script | undefined

  const server = createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
    if (request.method === 'GET') return get(request, response)
    const chunks: Buffer[] = []
    request.on('data', (chunk: Buffer) => chunks.push(chunk))
    request.on('end', () => {
      complete(request, response, chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks)).catch((error: unknown) => {
        violate('', 0, { rule: 'script', at: '', message: `the script failed: ${String(error)}` })
        response.destroy()
      })
    })
  })
  // More than the default 511: a thousand runs may connect in one instant.
  await new Promise<void>((resolve) => server.listen({ port: 0, host: '127.0.0.1', backlog: 4096 }, resolve))
  const { port } = server.address() as AddressInfo

  function get (request: IncomingMessage, response: ServerResponse) {
    const found = request.url === '/v1/models' ? { object: 'list', data: models.map((id) => ({ id, object: 'model', created: 0, owned_by: 'test' })) }
      : request.url === '/_stats' ? stats() : null
    response.writeHead(found === null ? 404 : 200, { 'content-type': 'application/json' }).end(JSON.stringify(found))
  }

  async function complete (request: IncomingMessage, response: ServerResponse, bytes: Buffer) {
    const arrivedAt = performance.now()
    const { body, faults } = read(bytes)
    const name = marker(body)
    const conversation = conversations.get(name) ?? { count: 0, inFlight: 0, max: 0 }
    conversations.set(name, conversation)
    // A client that aborts one call and then makes the next has closed the first connection by now, but we may hear of it second.
    if (conversation.inFlight > 0) await new Promise((resolve) => setImmediate(resolve))

    conversation.count += 1
    conversation.inFlight += 1
    conversation.max = Math.max(conversation.max, conversation.inFlight)
    total.requests += 1
    total.inFlight += 1
    total.maxInFlight = Math.max(total.maxInFlight, total.inFlight)
    let settle = (_: RecordedRequest) => {}
    const record: RecordedRequest = {
      conversation: name,
      n: conversation.count,
      body: body as RecordedRequest['body'],
      headers: request.headers,
      requestId: header(request.headers['x-client-request-id']),
      clientPort: request.socket.remotePort ?? 0,
      arrivedAt,
      endedAt: null,
      aborted: false,
      inFlight: conversation.inFlight,
      ended: new Promise((resolve) => { settle = resolve })
    }
    let cutByUs = false
    const time: ModelServerStats['newest'][0] = { arrived: performance.timeOrigin + arrivedAt, ended: null }
    newest.push(time)
    if (newest.length > NEWEST) newest.shift()
    const over = () => {
      response.off('close', over)
      request.socket.off('end', over)
      conversation.inFlight -= 1
      total.inFlight -= 1
      record.endedAt = performance.now()
      time.ended = performance.timeOrigin + record.endedAt
      record.aborted = !response.writableFinished && !cutByUs
      if (record.aborted) total.aborted += 1
      settle(record)
    }
    response.once('close', over)
    // A client that has gone is heard of here first: until `close` come some more turns of a loop that may be busy.
    request.socket.once('end', over)
    if (keep) requests.push(record)
    for (const look of waiting) look(record)

    for (const fault of faults) violate(name, record.n, fault)
    const first = faults[0]
    const reply = first !== undefined ? status(400, { message: first.message, type: 'invalid_request_error' })
      : await (scripts.get(name) ?? fallback ?? unscripted)(record, record.n)
    await send(response, reply, record.body?.stream === true, () => { cutByUs = true })
  }

  function violate (conversation: string, n: number, fault: Omit<Violation, 'conversation' | 'n'>) {
    violations.push({ ...fault, conversation, n })
  }

  function unscripted ({ conversation, n }: RecordedRequest): Reply {
    violate(conversation, n, { rule: 'script', at: '', message: `request ${n} of ${conversation || 'an unmarked conversation'} has no reply in the script` })
    return status(400, { message: 'no reply in the script', type: 'invalid_request_error' })
  }

  function asScript (script: Reply[] | Script): Script {
    return Array.isArray(script) ? (request, n) => script[n - 1] ?? unscripted(request) : script
  }

  function maxInFlight (conversation?: string): number {
    if (conversation !== undefined) return conversations.get(conversation)?.max ?? 0
    let max = 0
    for (const one of conversations.values()) max = Math.max(max, one.max)
    return max
  }

  function stats (): ModelServerStats {
    return {
      requests: total.requests,
      conversations: conversations.size,
      aborted: total.aborted,
      maxInFlight: total.maxInFlight,
      maxInFlightPerConversation: maxInFlight(),
      overlapping: Object.fromEntries([...conversations].filter(([, { max }]) => max > 1).map(([name, { max }]) => [name, max])),
      newest,
      violations: violations.length,
      firstViolations: violations.slice(0, 20)
    }
  }

  return {
    baseUrl: `http://127.0.0.1:${port}/v1`,
    port,
    script: (conversation, script) => { scripts.set(conversation, asScript(script)) },
    otherwise: (script) => { fallback = asScript(script) },
    requests: (conversation) => conversation === undefined ? requests : requests.filter((request) => request.conversation === conversation),
    waitForRequest: (predicate, timeoutMs = 10_000) => {
      const past = requests.find(predicate)
      if (past !== undefined) return Promise.resolve(past)
      return new Promise((resolve, reject) => {
        const look = (request: RecordedRequest) => {
          if (!predicate(request)) return
          stop()
          resolve(request)
        }
        const timer = setTimeout(() => {
          stop()
          reject(new Error(`no such request within ${timeoutMs} ms; ${total.requests} others came`))
        }, timeoutMs)
        const stop = () => {
          clearTimeout(timer)
          waiting.delete(look)
        }
        waiting.add(look)
      })
    },
    maxInFlight,
    violations,
    stats,
    forget: () => { requests.splice(0) },
    close: () => new Promise((resolve) => {
      server.close(() => resolve())
      server.closeAllConnections()
    })
  }
}

function read (bytes: Buffer): { body: unknown, faults: PayloadFault[] } {
  if (!isUtf8(bytes)) return { body: null, faults: [{ rule: 'schema', at: '', message: 'The body is not UTF-8.' }] }
  let body: unknown
  try {
    body = JSON.parse(bytes.toString('utf8'))
  } catch {
    return { body: null, faults: [{ rule: 'schema', at: '', message: 'We could not parse the JSON body of your request.' }] }
  }
  return { body, faults: checkPayload(body) }
}

function marker (body: unknown): string {
  const messages = (body as { messages?: unknown } | null)?.messages
  if (!Array.isArray(messages)) return ''
  const first = messages.find((message: { role?: unknown } | null) => message?.role === 'user')?.content
  return MARKER.exec(typeof first === 'string' ? first : JSON.stringify(first ?? ''))?.[0] ?? ''
}

function header (value: string | string[] | undefined): string | null {
  return typeof value === 'string' ? value : null
}

async function send (response: ServerResponse, reply: Reply, streaming: boolean, onCut: () => void): Promise<void> {
  for (const pause of reply.before) if (!await paused(pause, response)) return
  if (!streaming && reply.completion !== null && reply.ending === 'end') {
    response.writeHead(reply.status, { ...reply.headers, 'content-type': 'application/json' }).end(reply.completion)
    return
  }
  response.writeHead(reply.status, reply.headers)
  if (reply.whole !== null) {
    response.end(reply.whole)
    return
  }
  response.flushHeaders()
  for (const part of reply.parts) {
    if (Buffer.isBuffer(part)) await new Promise<void>((resolve) => response.write(part, () => resolve()))
    else if (!await paused(part, response)) return
  }
  if (reply.ending === 'end') response.end()
  if (reply.ending === 'fin' || reply.ending === 'rst') {
    onCut()
    if (reply.ending === 'fin') response.socket?.destroySoon()
    else response.socket?.resetAndDestroy()
  }
}

/** False when the client has gone while we waited. */
function paused (pause: Pause, response: ServerResponse): Promise<boolean> {
  if (response.closed) return Promise.resolve(false)
  return new Promise((resolve) => {
    let timer: NodeJS.Timeout | undefined
    const go = () => {
      clearTimeout(timer)
      response.off('close', go)
      resolve(!response.closed)
    }
    response.once('close', go)
    if (typeof pause === 'number') timer = setTimeout(go, pause)
    else void pause.opened.then(go)
  })
}
