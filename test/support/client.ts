import { randomUUID } from 'node:crypto'
import { request, type IncomingHttpHeaders, type IncomingMessage } from 'node:http'
import { text as textOf } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { createParser } from 'eventsource-parser'
import type { Event } from '../../src/core/event.js'
import type { Message } from '../../src/core/message.js'
import type { Problem } from '../../src/errors.js'
import type { Conversation } from '../../src/schemas/conversation.js'
import type { Call, CreateRun, Run } from '../../src/schemas/run.js'

/** Milliseconds a test waits for what must come. Generous: a slow machine is no failure, and what comes is waited for, not slept for. */
const PATIENCE_MS = 30_000

export interface Answer { status: number, headers: IncomingHttpHeaders, text: string }

export interface RequestOptions { body?: unknown, headers?: Record<string, string>, signal?: AbortSignal }

/** One SSE frame. `id` is null where the frame has none. */
export interface Frame { id: string | null, event: string, data: string }

/** A piece of streamed text, as `turn.delta` carries it. */
export interface DeltaData { run_id: string, turn: number, attempt: number, offset: number, text: string }

/** An open event stream, read as fast as it comes. */
export interface EventStream {
  /** What was asked for, for whoever compares the stream with the log; `after` is the `seq` of the cursor. */
  path: string
  after: number
  status: number
  headers: IncomingHttpHeaders
  frames: Frame[]
  comments: number
  /** Values of the `retry:` fields, in order. */
  retries: number[]
  /** Every byte so far. */
  raw: () => string
  /** The first frame, past or future, that the predicate accepts. Rejects when the stream ends without one. */
  until: (predicate: (frame: Frame) => boolean) => Promise<Frame>
  /** As `until`, for the first stored event of a type. */
  event: (type: Event['type'], fits?: (event: Event) => boolean) => Promise<Event>
  /** Resolves when `n` stored events have come. */
  count: (n: number) => Promise<void>
  /** Resolves when it is over, whoever ended it; `clean`: as HTTP wants it, not by a lost connection. */
  ended: Promise<{ clean: boolean }>
  /** Leaves, as a client that loses interest does. */
  close: () => void
  /** The stored events so far. */
  events: () => Event[]
  types: () => string[]
  /** The text of a turn as a reader rebuilds it: `text = text.slice(0, offset) + delta`. Null: no delta of it came. */
  text: (turn: number) => string | null
}

export interface OpenOptions { after?: number | string, lastEventId?: string, headers?: Record<string, string>, method?: string, body?: unknown }

export interface Client {
  url: string
  /** Every conversation this client has made a run or a conversation in, and every stream it has opened. */
  seen: { conversations: Set<string>, streams: EventStream[] }
  request: (method: string, path: string, options?: RequestOptions) => Promise<Answer>
  get: <T>(path: string) => Promise<T>
  /** `POST /runs`. Throws unless the answer is 201. */
  start: (body: CreateRun, headers?: Record<string, string>) => Promise<Run>
  /** Opens a stream of whatever path; throws unless it is one. */
  open: (path: string, options?: OpenOptions) => Promise<EventStream>
  /** The stream of a run. */
  follow: (run: Run | string, after?: number | string) => Promise<EventStream>
  /** Posts a run and reads its stream to the end. */
  finish: (body: CreateRun) => Promise<{ run: Run, stream: EventStream }>
  /** The run once it has ended. */
  ended: (run: Run | string) => Promise<Run>
  run: (id: string) => Promise<Run>
  conversation: (id: string) => Promise<Conversation>
  messages: (conversation: string) => Promise<Message[]>
  calls: (run: string) => Promise<Call[]>
  /** The whole log of a run or of a conversation, by pages. */
  log: (where: { run: string } | { conversation: string }) => Promise<Event[]>
  cancel: (run: string, query?: string) => Promise<Run>
}

export interface ClientOptions {
  apiKey?: string
  /** Does what a refusal that is `retryable` asks for, as a client in earnest would: waits and repeats, every POST under a key of its own. */
  patient?: boolean
}

/** A client of the HTTP API at `url`. Each request has its own connection, so nothing outlives the server it was sent to. */
export function createClient (url: string, { apiKey, patient = false }: ClientOptions = {}): Client {
  const seen: Client['seen'] = { conversations: new Set(), streams: [] }

  async function send (method: string, path: string, options: RequestOptions): Promise<IncomingMessage> {
    if (!patient) return await sendOnce(method, path, options)
    const headers = { ...(method === 'POST' && { 'idempotency-key': randomUUID() }), ...options.headers }
    for (;;) {
      const response = await sendOnce(method, path, { ...options, headers })
      const retryAfter = Number(response.headers['retry-after'])
      if (!(retryAfter > 0)) return response
      response.resume()
      await sleep(1000 * retryAfter)
    }
  }

  function sendOnce (method: string, path: string, { body, headers, signal }: RequestOptions): Promise<IncomingMessage> {
    const bytes = body === undefined ? undefined : Buffer.from(typeof body === 'string' ? body : JSON.stringify(body))
    return new Promise((resolve, reject) => {
      const sent = request(url + path, {
        method,
        agent: false,
        signal,
        headers: {
          ...(bytes && { 'content-type': 'application/json', 'content-length': bytes.length }),
          ...(apiKey !== undefined && { authorization: `Bearer ${apiKey}` }),
          ...headers
        }
      }, resolve)
      sent.on('error', reject)
      sent.end(bytes)
    })
  }

  const client: Client = {
    url,
    seen,

    async request (method, path, options = {}) {
      const response = await send(method, path, options)
      const text = await textOf(response)
      const { id, conversation_id: conversation } = method === 'POST' && (response.statusCode ?? 0) < 300 ? JSON.parse(text) as Partial<Run> : {}
      if (conversation !== undefined) seen.conversations.add(conversation)
      else if (path === '/conversations' && id !== undefined) seen.conversations.add(id)
      return { status: response.statusCode ?? 0, headers: response.headers, text }
    },

    async get (path) {
      const answer = await client.request('GET', path)
      if (answer.status !== 200) throw new Error(`GET ${path}: ${answer.status} ${answer.text}`)
      return JSON.parse(answer.text)
    },

    async start (body, headers) {
      const answer = await client.request('POST', '/runs', { body, headers })
      if (answer.status !== 201) throw new Error(`POST /runs: ${answer.status} ${answer.text}`)
      return JSON.parse(answer.text) as Run
    },

    async open (path, { after, lastEventId, headers, method = 'GET', body } = {}) {
      const response = await send(method, after === undefined ? path : `${path}?after=${after}`, {
        body,
        headers: { accept: 'text/event-stream', ...(lastEventId !== undefined && { 'last-event-id': lastEventId }), ...headers }
      })
      if (!(response.headers['content-type'] ?? '').startsWith('text/event-stream')) {
        throw new Error(`${method} ${path}: ${response.statusCode} ${await textOf(response)}`)
      }
      const stream = readStream(response, path, Number.parseInt(`${after ?? lastEventId ?? 0}`))
      seen.streams.push(stream)
      return stream
    },

    follow: (run, after) => client.open(`/runs/${typeof run === 'string' ? run : run.id}/events`, { after }),

    async finish (body) {
      const run = await client.start(body)
      const stream = await client.follow(run)
      await within(stream.ended, () => `the stream of ${run.id} did not end; it had ${stream.types().join(' ')}`)
      return { run: await client.run(run.id), stream }
    },

    async ended (run) {
      const id = typeof run === 'string' ? run : run.id
      const now = await client.run(id)
      if (now.ended_at !== null) return now
      const answer = await client.request('GET', `/runs/${id}/events`, { headers: { accept: 'text/event-stream' }, signal: AbortSignal.timeout(PATIENCE_MS) })
      if (answer.status !== 200 && answer.status !== 204) throw new Error(`the events of ${id}: ${answer.status}`)
      const then = await client.run(id)
      if (then.ended_at === null) throw new Error(`the stream of ${id} ended before the run: it is ${then.status}`)
      return then
    },

    run: (id) => client.get<Run>(`/runs/${id}`),
    conversation: (id) => client.get<Conversation>(`/conversations/${id}`),
    messages: (conversation) => all<Message>((cursor) => client.get(`/conversations/${conversation}/messages?limit=100${cursor}`)),
    calls: (run) => all<Call>((cursor) => client.get(`/runs/${run}/calls?limit=100${cursor}`)),

    async log (where) {
      const path = 'run' in where ? `/runs/${where.run}/events` : `/conversations/${where.conversation}/events`
      const events: Event[] = []
      for (let after = '0'; ;) {
        const { status, text } = await client.request('GET', `${path}?limit=100&after=${after}`, { headers: { accept: 'application/json' } })
        if (status !== 200) throw new Error(`${path}: ${status} ${text}`)
        const page = JSON.parse(text) as { data: Event[], next_cursor: string | null }
        events.push(...page.data)
        if (page.next_cursor === null) return events
        after = page.next_cursor
      }
    },

    async cancel (run, query = '') {
      const answer = await client.request('POST', `/runs/${run}/cancel${query}`)
      if (answer.status !== 200) throw new Error(`cancel ${run}: ${answer.status} ${answer.text}`)
      return JSON.parse(answer.text) as Run
    }
  }
  return client
}

async function all<T> (page: (cursor: string) => Promise<{ data: T[], next_cursor: string | null }>): Promise<T[]> {
  const items: T[] = []
  for (let cursor = ''; ;) {
    const { data, next_cursor: next } = await page(cursor)
    items.push(...data)
    if (next === null) return items
    cursor = `&cursor=${encodeURIComponent(next)}`
  }
}

/** The problem in an answer, with its status: what most refusals are compared with. */
export function problemIn ({ status, headers, text }: Answer): Problem {
  if (!/^application\/problem\+json/.test(headers['content-type'] ?? '')) throw new Error(`not a problem: ${status} ${text.slice(0, 200)}`)
  return { ...JSON.parse(text) as Problem, status }
}

/** Rejects when what must happen does not. `what` is asked only then. */
export async function within<T> (promise: Promise<T>, what: () => string, ms = PATIENCE_MS): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what()} (waited ${ms} ms)`)), ms)
  })
  return await Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

function readStream (response: IncomingMessage, path: string, after: number): EventStream {
  const chunks: string[] = []
  const watchers = new Set<() => void>()
  const notify = () => { for (const look of [...watchers]) look() }
  let over = false
  const stream: Pick<EventStream, 'frames' | 'comments' | 'retries'> = { frames: [], comments: 0, retries: [] }
  const parser = createParser({
    onEvent: ({ id, event, data }) => { stream.frames.push({ id: id ?? null, event: event ?? 'message', data }) },
    onComment: () => { stream.comments++ },
    onRetry: (ms) => { stream.retries.push(ms) },
    onError: (error) => { throw error }
  })
  response.setEncoding('utf8')
  response.on('data', (chunk: string) => {
    chunks.push(chunk)
    parser.feed(chunk)
    notify()
  })
  const ended = new Promise<{ clean: boolean }>((resolve) => {
    response.on('error', () => { /* `close` follows */ })
    response.once('close', () => {
      over = true
      resolve({ clean: response.complete })
      notify()
    })
  })

  /** What `find` finds, now or as soon as more has come. */
  function wait<T> (find: () => T | undefined, what: string): Promise<T> {
    const has = () => `of ${path} had ${stream.frames.map((frame) => frame.event).join(' ')}`
    return within(new Promise<T>((resolve, reject) => {
      const look = () => {
        const found = find()
        if (found === undefined && !over) return
        watchers.delete(look)
        if (found === undefined) reject(new Error(`the stream ended without ${what}; it ${has()}`))
        else resolve(found)
      }
      watchers.add(look)
      look()
    }), () => `no ${what}; the stream ${has()}`)
  }

  const stored = (): Frame[] => stream.frames.filter((frame) => frame.id !== null)
  const events = (): Event[] => stored().map((frame) => JSON.parse(frame.data) as Event)
  return Object.assign(stream, {
    path,
    after,
    status: response.statusCode ?? 0,
    headers: response.headers,
    raw: () => chunks.join(''),
    until: (predicate: (frame: Frame) => boolean) => wait(() => stream.frames.find(predicate), 'such frame'),
    async event (type: Event['type'], fits: (event: Event) => boolean = () => true) {
      const frame = await wait(() => stream.frames.find((one) => one.event === type && fits(JSON.parse(one.data) as Event)), type)
      return JSON.parse(frame.data) as Event
    },
    count: async (n: number) => { await wait(() => stored().length >= n || undefined, `${n} events`) },
    ended,
    close: () => { response.destroy() },
    events,
    types: () => stored().map((frame) => frame.event),
    text (turn: number) {
      let text: string | null = null
      for (const frame of stream.frames) {
        if (frame.event !== 'turn.delta') continue
        const delta = JSON.parse(frame.data) as DeltaData
        if (delta.turn === turn) text = (text ?? '').slice(0, delta.offset) + delta.text
      }
      return text
    }
  })
}
