import { pipeline, type Readable } from 'node:stream'
import { toUSVString } from 'node:util'
import { createBrotliDecompress, createGunzip } from 'node:zlib'
import type { Dispatcher } from 'undici'
import { cut, parseJson } from './json.js'
import { BlockedAddressError, type Egress } from './egress.js'
import { ToolError } from './tool.js'

const MAX_REDIRECTS = 5
/** How much of an error's body is read, and how much of that the model is told: so much less that a secret in it is not cut before it is found. */
const EXCERPT_BYTES = 20_000
const EXCERPT_CHARS = 2_000

export interface HttpRequest {
  url: URL
  method: string
  /** JSON text; null: no body. */
  body: string | null
  /** Sent on every hop. Lower-case names. */
  headers: Record<string, string>
  /** Sent only to the origin of `url`: they may hold credentials. Lower-case names. */
  declaredHeaders: Record<string, string>
  /** More headers for the origin of `url`, made for the body that is sent, '' when there is none. They win over the declared ones. Lower-case names. */
  sign?: (body: string) => Record<string, string>
}

export interface ExchangeOptions {
  signal: AbortSignal
  /** Of the answer, after decompression. */
  maxBytes: number
  /** Takes out of an answer or an error's body what nobody may see. Default: nothing is taken out. */
  redact?: <T>(value: T) => T
}

/**
 * One HTTP exchange, redirects included. Resolves with the body of a 2xx answer: null when empty, parsed when the content type says
 * JSON, else text; what says JSON and is none is handed on as the text it is. Everything else is a ToolError `http_error`.
 * Redirects follow the rules of fetch, at most five, each judged by `egress` as the first URL was. An abort closes the connection.
 */
export async function exchange (egress: Egress, request: HttpRequest, options: ExchangeOptions): Promise<unknown> {
  let { url, method, body, declaredHeaders, sign } = request
  for (let redirects = 0; ; redirects++) {
    const refusal = egress.refusal(url)
    if (refusal !== null) throw new ToolError('http_error', refusal)
    try {
      const response = await egress.dispatcher.request({
        origin: url.origin,
        path: url.pathname + url.search,
        method,
        body,
        signal: options.signal,
        headers: {
          accept: 'application/json, text/*;q=0.9, */*;q=0.5',
          'user-agent': 'interlock',
          ...(body === null ? {} : { 'content-type': 'application/json' }),
          ...declaredHeaders,
          ...request.headers,
          ...sign?.(body ?? ''),
          'accept-encoding': 'gzip, br'
        }
      })
      const status = response.statusCode
      const location = isRedirect(status) ? header(response, 'location') : null
      if (location === null) return await outcome(response, options)

      // Reads a short body to its end, which keeps the connection; a long one costs it.
      await response.body.dump({ limit: EXCERPT_BYTES })
      if (redirects === MAX_REDIRECTS) throw new ToolError('http_error', `HTTP ${status}: more than ${MAX_REDIRECTS} redirects`)
      if (!URL.canParse(location, url.href)) throw new ToolError('http_error', `HTTP ${status}: redirects to something that is not a URL`)
      const next = new URL(location, url)
      if (next.origin !== url.origin) [declaredHeaders, sign] = [{}, undefined]
      if (status === 303 || ((status === 301 || status === 302) && method === 'POST')) {
        method = 'GET'
        body = null
        declaredHeaders = Object.fromEntries(Object.entries(declaredHeaders).filter(([name]) => !name.startsWith('content-')))
      }
      url = next
    } catch (error) {
      throw failure(error)
    }
  }
}

function isRedirect (status: number): boolean {
  return [301, 302, 303, 307, 308].includes(status)
}

async function outcome (response: Dispatcher.ResponseData, { maxBytes, redact = (value) => value }: ExchangeOptions): Promise<unknown> {
  const status = response.statusCode
  if (status >= 200 && status < 300) {
    const { bytes, whole } = await read(response, maxBytes)
    if (!whole) throw new ToolError('http_error', `HTTP ${status}: the answer has more than ${maxBytes} bytes`)
    if (bytes.length === 0) return null
    const text = decode(response, bytes)
    return redact(isJson(response) ? parsedOrText(text) : text)
  }
  // An error that cannot be read is still an error with a status.
  const excerpt = await read(response, EXCERPT_BYTES).then(({ bytes }) => cut(redact(toUSVString(decode(response, bytes)).trim()), EXCERPT_CHARS), () => '')
  throw new ToolError('http_error', excerpt === '' ? `HTTP ${status}` : `HTTP ${status}: ${excerpt}`)
}

function parsedOrText (text: string): unknown {
  try {
    return parseJson(text)
  } catch {
    return text
  }
}

/** The first `limit` bytes of the body, and whether that was all. What is not read is not waited for: the connection is closed. */
async function read (response: Dispatcher.ResponseData, limit: number): Promise<{ bytes: Buffer, whole: boolean }> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of decompressed(response) as AsyncIterable<Buffer>) {
    chunks.push(chunk)
    size += chunk.length
    if (size > limit) return { bytes: Buffer.concat(chunks, limit), whole: false }
  }
  return { bytes: Buffer.concat(chunks, size), whole: true }
}

function decompressed (response: Dispatcher.ResponseData): Readable {
  // Leaving the loop in `read` early destroys the body, which then emits an error that nobody waits for any more.
  response.body.on('error', () => {})
  const encoding = header(response, 'content-encoding')?.trim().toLowerCase() ?? 'identity'
  const empty = response.statusCode === 204 || header(response, 'content-length') === '0'
  if (encoding === 'identity' || encoding === '' || empty) return response.body
  if (encoding === 'gzip' || encoding === 'x-gzip') return pipeline(response.body, createGunzip(), () => {})
  if (encoding === 'br') return pipeline(response.body, createBrotliDecompress(), () => {})
  response.body.destroy()
  throw new ToolError('http_error', `HTTP ${response.statusCode}: the answer is encoded in a way that was not asked for`)
}

function decode (response: Dispatcher.ResponseData, bytes: Buffer): string {
  const charset = /charset="?([^\s";]+)/i.exec(header(response, 'content-type') ?? '')?.[1] ?? 'utf-8'
  try {
    return new TextDecoder(charset).decode(bytes)
  } catch {
    return new TextDecoder().decode(bytes)
  }
}

function isJson (response: Dispatcher.ResponseData): boolean {
  return /^\s*(application|text)\/([\w.-]+\+)?json\s*(;|$)/i.test(header(response, 'content-type') ?? '')
}

function header (response: Dispatcher.ResponseData, name: string): string | null {
  const value = response.headers[name]
  return (Array.isArray(value) ? value[0] : value) ?? null
}

const CAUSES: Record<string, string> = {
  ECONNREFUSED: 'the connection was refused',
  ENOTFOUND: 'the host name does not exist',
  EAI_AGAIN: 'the host name could not be resolved',
  UND_ERR_CONNECT_TIMEOUT: 'no connection within 10 s',
  ECONNRESET: 'the connection was closed before the answer was complete',
  EPIPE: 'the connection was closed before the answer was complete',
  UND_ERR_SOCKET: 'the connection was closed before the answer was complete',
  UND_ERR_RES_CONTENT_LENGTH_MISMATCH: 'the connection was closed before the answer was complete',
  Z_BUF_ERROR: 'the answer is compressed and cut off',
  Z_DATA_ERROR: 'the answer is said to be compressed and is not',
  UND_ERR_HEADERS_OVERFLOW: 'the answer has too many headers'
}

/** Error texts of sockets and of TLS hold addresses and names of our network: the model is told what kind of error it was. */
function failure (error: unknown): ToolError {
  if (error instanceof ToolError) return error
  if (error instanceof BlockedAddressError) return new ToolError('http_error', error.message, { cause: error })
  const code = error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : ''
  return new ToolError('http_error', CAUSES[code] ?? `the request failed (${/^[A-Z0-9_]{1,60}$/.test(code) ? code : 'no code'})`, { cause: error })
}
