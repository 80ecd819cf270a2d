import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { pipeline, Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'
import { createGzip } from 'node:zlib'

/** One request, as it arrived. Times are milliseconds since the epoch, with fractions, comparable between processes. */
export interface Attempt {
  /** 1, 2, 3 … in order of arrival. */
  number: number
  /** First segment of the path: what the server was asked to do. */
  route: string
  method: string
  headers: IncomingHttpHeaders
  args: Record<string, unknown>
  /** Which connection it came by, counted from 1 since the start. */
  connection: number
  arrived_at: number
  /** When the answer was sent or the connection closed; null while under way. */
  ended_at: number | null
  /** The client went away before it had the whole answer. */
  aborted: boolean
}

export interface ToolServer {
  port: number
  /** `http://127.0.0.1:<port>`, no slash at the end. */
  url: string
  /** Every request since the start or the last `reset`. */
  attempts: Attempt[]
  /** How many requests ran the route; of all routes without a name. */
  count: (route?: string) => number
  /** The most requests that were under way at the same time. */
  maxOverlap: (route?: string) => number
  /** Resolves once the attempts are as wanted; looks again whenever one arrives or ends. */
  waitFor: (wanted: (attempts: Attempt[]) => boolean) => Promise<void>
  /** Lets those on `/hold` with this key answer, and all that come later. */
  release: (key?: string) => void
  /** Forgets all attempts and closes the latches again. */
  reset: () => void
  close: () => Promise<void>
}

const now = (): number => performance.timeOrigin + performance.now()

/**
 * A tool server that records every attempt and does what the arguments (JSON body, or query with JSON values) say:
 *
 * | route | arguments | does |
 * | --- | --- | --- |
 * | `/echo` | `value` | answers it |
 * | `/sleep` | `ms, value` | the same, later |
 * | `/fail` | `status, message` | answers that status (500) with `{"message"}` |
 * | `/hang` | | never answers |
 * | `/hold` | `key, value, status` | answers after `release(key)` |
 * | `/barrier` | `n, key, value` | answers when `n` requests wait here at the same time |
 * | `/bomb` `/gzip_bomb` | `bytes` | that many zeros, the second gzipped |
 * | `/drip` | `every_ms` | one byte at a time, without end |
 * | `/redirect` | `to, times, status` | redirects to itself until `times` is used up, then to `to` or, without one, answers "arrived" |
 * | `/close` `/cut` | | closes the connection without an answer, or in the middle of one |
 * | `/raw` | `status, headers, text` or `base64` | exactly that answer |
 *
 * From another process: `GET /attempts`, `POST /release {key}`, `POST /reset`; these three are not recorded.
 */
export async function startToolServer (options: { port?: number, host?: string } = {}): Promise<ToolServer> {
  const { host = '127.0.0.1' } = options
  let attempts: Attempt[] = []
  const watchers = new Set<() => void>()
  const changed = (): void => { for (const watch of [...watchers]) watch() }

  let held = new Map<string, { open: boolean, waiting: (() => void)[] }>()
  const latch = (key: string): { open: boolean, waiting: (() => void)[] } => {
    const found = held.get(key) ?? { open: false, waiting: [] }
    held.set(key, found)
    return found
  }
  const release = (key = ''): void => {
    const opened = latch(key)
    opened.open = true
    for (const answer of opened.waiting.splice(0)) answer()
  }
  const atBarrier = new Map<string, Set<() => void>>()
  const reset = (): void => {
    attempts = []
    held = new Map()
    changed()
  }

  const routes: Record<string, (args: Record<string, unknown>, response: ServerResponse, request: IncomingMessage) => unknown> = {
    echo: ({ value }, response) => json(response, 200, value),
    async sleep ({ ms, value }, response) {
      const gone = new AbortController()
      response.on('close', () => gone.abort())
      await sleep(Number(ms ?? 0), undefined, { signal: gone.signal }).then(() => json(response, 200, value), () => {})
    },
    fail: ({ status, message }, response) => json(response, Number(status ?? 500), { message: message ?? 'failed as asked' }),
    hang: () => {},
    hold ({ key, value, status }, response) {
      const { open, waiting } = latch(String(key ?? ''))
      const answer = (): void => json(response, Number(status ?? 200), value)
      if (open) answer()
      else waiting.push(answer)
    },
    barrier ({ n, key, value }, response) {
      const name = String(key ?? '')
      const waiting = atBarrier.get(name) ?? new Set()
      atBarrier.set(name, waiting)
      const answer = (): void => json(response, 200, value)
      waiting.add(answer)
      response.on('close', () => waiting.delete(answer))
      if (waiting.size < Number(n ?? 2)) return
      for (const each of waiting) each()
      waiting.clear()
    },
    bomb ({ bytes }, response) {
      response.writeHead(200, { 'content-type': 'text/plain' })
      pipeline(zeros(Number(bytes)), response, () => {})
    },
    gzip_bomb ({ bytes }, response) {
      response.writeHead(200, { 'content-type': 'text/plain', 'content-encoding': 'gzip' })
      pipeline(zeros(Number(bytes)), createGzip({ level: 1 }), response, () => {})
    },
    drip ({ every_ms }, response) {
      response.writeHead(200, { 'content-type': 'text/plain' })
      const timer = setInterval(() => response.write('.'), Number(every_ms ?? 50))
      response.write('.')
      response.on('close', () => clearInterval(timer))
    },
    redirect ({ to, times, status }, response) {
      const left = Number(times ?? 1)
      if (left <= 0 && to === undefined) {
        json(response, 200, 'arrived')
        return
      }
      const again = `/redirect?times=${left - 1}&status=${Number(status ?? 302)}${to === undefined ? '' : `&to=${encodeURIComponent(String(to))}`}`
      response.writeHead(Number(status ?? 302), { location: left > 1 || to === undefined ? again : String(to) }).end()
    },
    close: (_args, _response, request) => request.socket.destroy(),
    twice ({ value, again }, _response, request) {
      const whole = (body: unknown): string => {
        const text = JSON.stringify(body)
        return `HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(text)}\r\n\r\n${text}`
      }
      request.socket.write(whole(value) + whole(again))
    },
    cut (_args, response, request) {
      response.writeHead(200, { 'content-type': 'application/json', 'content-length': '100' })
      response.write('{"half":', () => request.socket.destroy())
    },
    raw ({ status, headers, text: body, base64 }, response) {
      response.writeHead(Number(status ?? 200), headers as Record<string, string> | undefined)
      response.end(typeof base64 === 'string' ? Buffer.from(base64, 'base64') : String(body ?? ''))
    }
  }

  const connections = new Map<object, number>()
  const server = createServer((request, response) => {
    void (async () => {
      const url = new URL(request.url ?? '/', 'http://tool.test')
      const route = url.pathname.split('/')[1] ?? ''
      const arrivedAt = now()
      const args = await argumentsOf(request, url)
      if (route === 'attempts') return json(response, 200, attempts)
      if (route === 'release') return json(response, 200, release(typeof args.key === 'string' ? args.key : undefined))
      if (route === 'reset') return json(response, 200, reset())

      const attempt: Attempt = {
        number: attempts.length + 1,
        route,
        method: request.method ?? '',
        headers: request.headers,
        args,
        connection: connections.get(request.socket) ?? 0,
        arrived_at: arrivedAt,
        ended_at: null,
        aborted: false
      }
      attempts.push(attempt)
      response.on('close', () => {
        attempt.ended_at = now()
        attempt.aborted = !response.writableFinished
        changed()
      })
      changed()
      const act = routes[route]
      if (act === undefined) json(response, 404, { message: `no route ${route}` })
      else await act(args, response, request)
    })()
  })
  let connected = 0
  server.on('connection', (socket) => {
    connections.set(socket, ++connected)
    socket.on('close', () => connections.delete(socket))
  })
  server.listen(options.port ?? 0, host)
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const of = (route?: string): Attempt[] => route === undefined ? attempts : attempts.filter((attempt) => attempt.route === route)

  return {
    port,
    url: `http://${host}:${port}`,
    get attempts () { return attempts },
    count: (route) => of(route).length,
    maxOverlap: (route) => maxOverlap(of(route)),
    waitFor: (wanted) => new Promise((resolve) => {
      const watch = (): void => {
        if (!wanted(attempts)) return
        watchers.delete(watch)
        resolve()
      }
      watchers.add(watch)
      watch()
    }),
    release,
    reset,
    async close () {
      server.closeAllConnections()
      if (server.listening) await new Promise((resolve) => server.close(resolve))
    }
  }
}

/** The most of these attempts that were under way at one moment; one that ends when another begins does not overlap it. */
export function maxOverlap (attempts: Attempt[]): number {
  const edges = attempts.flatMap(({ arrived_at: from, ended_at: to }) => [{ at: from, step: 1 }, { at: to ?? Infinity, step: -1 }])
  let open = 0
  let most = 0
  for (const { step } of edges.sort((a, b) => a.at - b.at || a.step - b.step)) {
    open += step
    most = Math.max(most, open)
  }
  return most
}

async function argumentsOf (request: IncomingMessage, url: URL): Promise<Record<string, unknown>> {
  if (request.method === 'GET' || request.method === 'DELETE') {
    return Object.fromEntries([...url.searchParams].map(([name, value]) => [name, jsonOr(value)]))
  }
  const body = jsonOr(await text(request))
  return typeof body === 'object' && body !== null ? body as Record<string, unknown> : {}
}

function jsonOr (value: string): unknown {
  try {
    return JSON.parse(value)
  } catch {
    return value
  }
}

function json (response: ServerResponse, status: number, value: unknown): void {
  const body = JSON.stringify(value ?? null)
  response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) }).end(body)
}

function zeros (bytes: number): Readable {
  let left = bytes
  return new Readable({
    read (size) {
      const length = Math.min(size, left)
      left -= length
      this.push(length === 0 ? null : Buffer.alloc(length, '0'))
    }
  })
}
