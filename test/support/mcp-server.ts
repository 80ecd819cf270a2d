import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { text } from 'node:stream/consumers'
import { Server } from '@modelcontextprotocol/sdk/server/index.js'
import { StreamableHTTPServerTransport, type EventStore } from '@modelcontextprotocol/sdk/server/streamableHttp.js'
import { CallToolRequestSchema, EmptyResultSchema, ListToolsRequestSchema, type CallToolResult, type JSONRPCMessage } from '@modelcontextprotocol/sdk/types.js'

/** One HTTP request, as it arrived. */
export interface McpRequest {
  http: string
  /** The JSON-RPC method of a POST. */
  method: string | undefined
  headers: IncomingHttpHeaders
  /** What was posted, parsed. */
  message: Record<string, unknown>
  /** The connection has closed, before the answer was complete or after. */
  closed: boolean
}

export interface McpTestServer {
  port: number
  /** The endpoint. */
  url: string
  requests: McpRequest[]
  /** How many requests had this JSON-RPC method, or HTTP method. */
  count: (method: string) => number
  /** Resolves once the requests are as wanted; looks again whenever one arrives or closes. */
  waitFor: (wanted: (requests: McpRequest[]) => boolean) => Promise<void>
  /** Tells all sessions that the tools changed. */
  toolsChanged: () => Promise<void>
  /** Forgets all sessions, as a restart does. */
  forget: () => void
  close: () => Promise<void>
}

export interface CallExtra {
  signal: AbortSignal
  closeSSEStream?: () => void
  /** Asks the client whether it is there, on the stream of the call. */
  ping: () => Promise<unknown>
}

export interface McpTestServerOptions {
  port?: number
  /** The pages of `tools/list`, as they are sent. */
  pages?: () => unknown[][]
  call?: (name: string, args: Record<string, unknown>, extra: CallExtra) => Promise<CallToolResult>
  /** Answers a request itself, and says so with true. */
  intercept?: (request: McpRequest, response: ServerResponse, raw: IncomingMessage) => boolean
  /** What a session that is not known is answered with. Default: 404, as the specification says. */
  unknownSession?: number
  json?: boolean
  resumable?: boolean
}

/** A streamable HTTP server of the SDK, in this process, that records its requests and does what a test needs. */
export async function startMcpServer (options: McpTestServerOptions = {}): Promise<McpTestServer> {
  const requests: McpRequest[] = []
  const watchers = new Set<() => void>()
  const changed = (): void => { for (const watch of [...watchers]) watch() }
  const sessions = new Map<string, { server: Server, transport: StreamableHTTPServerTransport }>()

  async function newSession (): Promise<StreamableHTTPServerTransport> {
    const server = new Server({ name: 'test', version: '1' }, { capabilities: { tools: { listChanged: true } } })
    server.setRequestHandler(ListToolsRequestSchema, ({ params }) => {
      const pages = options.pages?.() ?? [[]]
      const page = Number(params?.cursor ?? 0)
      return { tools: (pages[page] ?? []) as never[], ...(page + 1 < pages.length ? { nextCursor: String(page + 1) } : {}) }
    })
    server.setRequestHandler(CallToolRequestSchema, async ({ params }, extra) =>
      await options.call?.(params.name, params.arguments ?? {}, { ...extra, ping: () => extra.sendRequest({ method: 'ping' }, EmptyResultSchema) }) ?? { content: [{ type: 'text', text: 'done' }] })
    const transport = new StreamableHTTPServerTransport({
      sessionIdGenerator: randomUUID,
      enableJsonResponse: options.json ?? false,
      ...(options.resumable === true ? { eventStore: eventStore(), retryInterval: 0 } : {}),
      onsessioninitialized: (id) => { sessions.set(id, { server, transport }) }
    })
    await server.connect(transport)
    return transport
  }

  const http = createServer((raw, response) => {
    void (async () => {
      const body = await text(raw)
      const message = (body === '' ? {} : JSON.parse(body)) as Record<string, unknown>
      const request: McpRequest = { http: raw.method ?? '', method: message.method as string | undefined, headers: raw.headers, message, closed: false }
      requests.push(request)
      response.on('close', () => {
        request.closed = true
        changed()
      })
      changed()
      if (options.intercept?.(request, response, raw) === true) return
      const id = raw.headers['mcp-session-id']
      const known = typeof id === 'string' ? sessions.get(id) : undefined
      if (known === undefined && id !== undefined) {
        response.writeHead(options.unknownSession ?? 404).end('{"error": "no valid session"}')
        return
      }
      await (known?.transport ?? await newSession()).handleRequest(raw, response, body === '' ? undefined : message)
    })()
  })
  http.listen(options.port ?? 0, '127.0.0.1')
  await once(http, 'listening')
  const { port } = http.address() as AddressInfo

  return {
    port,
    url: `http://127.0.0.1:${port}/mcp`,
    requests,
    count: (method) => requests.filter((request) => request.method === method || request.http === method).length,
    waitFor: (wanted) => new Promise((resolve) => {
      const watch = (): void => {
        if (!wanted(requests)) return
        watchers.delete(watch)
        resolve()
      }
      watchers.add(watch)
      watch()
    }),
    async toolsChanged () {
      for (const { server } of sessions.values()) await server.sendToolListChanged()
    },
    forget: () => sessions.clear(),
    async close () {
      http.closeAllConnections()
      if (http.listening) await new Promise((resolve) => http.close(resolve))
    }
  }
}

function eventStore (): EventStore {
  const events: { id: string, stream: string, message: JSONRPCMessage }[] = []
  return {
    async storeEvent (stream, message) {
      const id = String(events.length)
      events.push({ id, stream, message })
      return id
    },
    async replayEventsAfter (last, { send }) {
      const { stream } = events[Number(last)] ?? { stream: '' }
      for (const event of events.slice(Number(last) + 1)) if (event.stream === stream) await send(event.id, event.message)
      return stream
    }
  }
}
