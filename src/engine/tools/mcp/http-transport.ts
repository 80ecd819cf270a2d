import { setTimeout as delay } from 'node:timers/promises'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import type { TransportSendOptions } from '@modelcontextprotocol/sdk/shared/transport.js'
import { ErrorCode, isJSONRPCErrorResponse, isJSONRPCNotification, isJSONRPCRequest, isJSONRPCResultResponse, type JSONRPCMessage } from '@modelcontextprotocol/sdk/types.js'
import { fetch, Response as FetchResponse, type RequestInit as FetchInit } from 'undici'
import type { Egress } from '../egress.js'
import { ToolError } from '../tool.js'

/** Of an answer that is an error, how much is read. */
const MAX_ERROR_BYTES = 8_192
/** How often in a row a broken answer stream is asked for again in vain. The SDK waits 1 s, then 1.5 s, or what the server says. */
const MAX_RESUMES = 2
/** A server may say that a stream should be resumed after 0 ms, and close it again at once. */
const MIN_RESUME_MS = 100
/** Until a server has taken a notification. */
const NOTIFICATION_MS = 10_000
/** How long a server may keep an answer stream open after the answer. */
const LINGER_MS = 1_000

/** The connection broke after the request was sent and before its answer came. */
export class ConnectionLost extends Error {
  override name = 'ConnectionLost'
  constructor () {
    super('the connection was lost before the answer came')
  }
}

/** The HTTP side of a request that has no answer yet: its POST, and the GETs that resume its answer stream. */
interface Exchange {
  id: number
  controller: AbortController
  /** The SDK has taken the response to the POST. */
  accepted: boolean
  /** The latest response was read to its end, or broke. */
  ended: boolean
  /** When, by the process's clock. */
  endedAt: number
  /** The latest event id: with one, the SDK asks for the rest of a stream that ended. */
  token: string | null
  /** Resumes in a row that failed. */
  failures: number
}

export interface HttpTransportOptions {
  headers: Record<string, string>
  egress: Egress
  /** Of a JSON answer, or of one event of a stream, after decompression. */
  maxBytes: number
}

/**
 * The SDK's streamable HTTP transport behind the egress guard, and with an end to every request: the SDK lets one wait for ever whose
 * answer stream ends without the answer (typescript-sdk issue 2739), and keeps the stream of a cancelled one open. Redirects are
 * followed by the SDK, within the origin only; wherever one leads, the guard judges the connection. The stream for what is no answer
 * is opened once and not again.
 */
export class HttpTransport extends StreamableHTTPClientTransport {
  readonly #options: HttpTransportOptions
  readonly #endpoint: string
  readonly #open = new Map<number, Exchange>()
  #listening = false

  constructor (url: URL, options: HttpTransportOptions) {
    const headers = Object.fromEntries(Object.entries(options.headers).map(([name, value]) => [name.toLowerCase(), value]))
    super(url, {
      requestInit: { headers: { 'user-agent': 'interlock', ...headers } },
      fetch: (input, init = {}) => this.#fetch(new URL(input), init),
      reconnectionOptions: { initialReconnectionDelay: 1_000, maxReconnectionDelay: 30_000, reconnectionDelayGrowFactor: 1.5, maxRetries: MAX_RESUMES }
    })
    this.#options = options
    this.#endpoint = url.href
    // The protocol's own handler, set later, runs after this one.
    this.onmessage = (message) => {
      if (isJSONRPCResultResponse(message) || isJSONRPCErrorResponse(message)) this.#answered(Number(message.id))
    }
  }

  override async send (message: JSONRPCMessage, options?: TransportSendOptions): Promise<void> {
    if (!isJSONRPCRequest(message)) {
      const cancels = isJSONRPCNotification(message) && message.method === 'notifications/cancelled' ? Number(message.params?.requestId) : NaN
      const cancelled = this.#open.get(cancels)
      this.#open.delete(cancels)
      // Aborted afterwards, so that the server hears of the cancellation before it loses the connection.
      await super.send(message, options).finally(() => cancelled?.controller.abort())
      return
    }
    const controller = new AbortController()
    const exchange: Exchange = { id: Number(message.id), controller, accepted: false, ended: false, endedAt: 0, token: null, failures: 0 }
    this.#open.set(exchange.id, exchange)
    try {
      await super.send(message, { ...options, onresumptiontoken: (token) => { exchange.token = token } })
      exchange.accepted = true
      this.#settle(exchange)
    } catch (error) {
      this.#open.delete(exchange.id)
      throw error
    }
  }

  override async close (): Promise<void> {
    await super.close()
    for (const { controller } of this.#open.values()) controller.abort()
    this.#open.clear()
  }

  async #fetch (url: URL, init: RequestInit): Promise<Response> {
    const begins = url.href === this.#endpoint
    if (init.method === 'GET') {
      const token = new Headers(init.headers).get('last-event-id')
      if (token !== null) return await this.#resume(url, init, token)
      // Behind a redirect it is the same attempt.
      if (begins && this.#listening) return notOffered()
      this.#listening = true
    }
    if (init.method !== 'POST') return await this.#exchange(url, init, init.signal)
    const message = JSON.parse(init.body as string) as { id?: number, method?: string }
    // An answer to a request of the server has an id too, but one of the server's.
    if (message.id !== undefined && message.method !== undefined) {
      const exchange = this.#open.get(message.id)
      if (exchange === undefined) throw new Error('cancelled before it was sent')
      return await this.#exchange(url, init, exchange.controller.signal, exchange)
    }
    const patience = AbortSignal.timeout(NOTIFICATION_MS)
    return await this.#exchange(url, init, init.signal == null ? patience : AbortSignal.any([init.signal, patience]))
  }

  async #resume (url: URL, init: RequestInit, token: string): Promise<Response> {
    const exchange = [...this.#open.values()].find((one) => one.ended && one.token === token)
    if (exchange === undefined) return notOffered()
    const { signal } = exchange.controller
    const early = MIN_RESUME_MS - (performance.now() - exchange.endedAt)
    if (early > 0) await delay(early, undefined, { signal })
    const response = await this.#exchange(url, init, signal, exchange).catch((error: unknown) => {
      this.#notResumed(exchange, 0)
      throw error
    })
    if (response.ok) {
      exchange.failures = 0
      // The SDK forgets it too: without a new one it cannot resume again.
      exchange.token = null
    } else {
      this.#notResumed(exchange, response.status)
    }
    return response
  }

  #notResumed (exchange: Exchange, status: number): void {
    exchange.failures++
    if ((status >= 400 && status < 500) || exchange.failures === MAX_RESUMES) this.#giveUp(exchange, new ConnectionLost())
  }

  async #exchange (url: URL, init: RequestInit, signal: AbortSignal | null | undefined, exchange?: Exchange): Promise<Response> {
    const response = await fetch(url, { ...init as FetchInit, signal: signal ?? null, dispatcher: this.#options.egress.dispatcher })
    return this.#guarded(response as unknown as Response, exchange)
  }

  /** The response with a bound on its size. The exchange, if it is one of a request, learns of its end. */
  #guarded (response: Response, exchange: Exchange | undefined): Response {
    const { body, ok, status, statusText, headers } = response
    if (exchange !== undefined) exchange.ended = body === null
    if (body === null) return response
    const stream = ok && /^\s*text\/event-stream\b/i.test(headers.get('content-type') ?? '')
    const limit = ok ? this.#options.maxBytes : MAX_ERROR_BYTES
    const reader = body.getReader()
    let size = 0
    const ended = (): void => {
      if (exchange === undefined) return
      exchange.ended = true
      exchange.endedAt = performance.now()
      this.#settle(exchange)
    }
    const guarded = new ReadableStream<Uint8Array>({
      pull: async (controller) => {
        try {
          const { done, value } = await reader.read()
          if (done) {
            controller.close()
            ended()
            return
          }
          size = stream ? sizeOfEvent(size, value) : size + value.length
          if (size > limit) throw new ToolError('tool_error', `the answer has more than ${limit} bytes`)
          controller.enqueue(value)
        } catch (error) {
          if (error instanceof ToolError) {
            reader.cancel().catch(() => {})
            if (stream && exchange !== undefined) this.#giveUp(exchange, error)
          }
          ended()
          throw error
        }
      },
      cancel: async (reason) => {
        ended()
        await reader.cancel(reason)
      }
    }, { highWaterMark: 0 })
    return new FetchResponse(guarded, { status, statusText, headers: [...headers] }) as unknown as Response
  }

  /** Gives up a request whose answer can no longer come. */
  #settle (exchange: Exchange): void {
    if (!exchange.accepted || !exchange.ended) return
    // What was read is still on its way through the SDK's parsers, which wait for promises only.
    setImmediate(() => { if (exchange.token === null) this.#giveUp(exchange, new ConnectionLost()) })
  }

  #giveUp (exchange: Exchange, error: Error): void {
    if (this.#open.get(exchange.id) !== exchange) return
    exchange.controller.abort()
    this.onmessage?.({ jsonrpc: '2.0', id: exchange.id, error: { code: ErrorCode.ConnectionClosed, message: error.message, data: error } })
  }

  #answered (id: number): void {
    const exchange = this.#open.get(id)
    this.#open.delete(id)
    // Not at once: the end of the stream follows, and keeps the connection usable for the next request.
    if (exchange?.ended === false) setTimeout(() => { if (!exchange.ended) exchange.controller.abort() }, LINGER_MS).unref()
  }
}

/** The SDK takes this status as a stream that the server does not have, and asks no further. */
function notOffered (): Response {
  return new FetchResponse(null, { status: 405 }) as unknown as Response
}

/** Bytes since the last end of an event, an empty line. An event whose end is split between two chunks counts on, until the next end. */
function sizeOfEvent (before: number, chunk: Uint8Array): number {
  const bytes = Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)
  const end = Math.max(bytes.lastIndexOf('\n\n'), bytes.lastIndexOf('\n\r\n'), bytes.lastIndexOf('\r\r'))
  return end === -1 ? before + bytes.length : bytes.length - end
}
