import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { StreamableHTTPError } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { ErrorCode, McpError, ProgressNotificationSchema, ResultSchema, ToolListChangedNotificationSchema } from '@modelcontextprotocol/sdk/types.js'
import { BlockedAddressError, type Egress } from '../egress.js'
import { cut } from '../json.js'
import { ToolError, type ToolContext } from '../tool.js'
import { ChildTransport } from './child-transport.js'
import { ConnectionLost, HttpTransport } from './http-transport.js'
import { allTools } from './listing.js'
import type { McpListing } from './mcp.js'
import type { McpServer } from './servers.js'
import { SessionGone } from './session-gone.js'

/** Until a server has answered `initialize`. Long, because the first start of an `npx` server downloads it. */
const CONNECT_MS = 60_000
/** The longest a timer can be. The SDK's own timeout (60 s) would cut calls whose deadline the engine keeps. */
const NO_TIMEOUT_MS = 2 ** 31 - 1
/** Until a server has heard that its session is over. */
const GOODBYE_MS = 2_000
const MAX_MESSAGE_CHARS = 2_000

/** An initialised session with one server. Its requests run side by side; they reject with a ToolError, a SessionGone or the signal's reason. */
export interface Connection {
  list: (signal: AbortSignal) => Promise<McpListing[]>
  /** The result as the server gave it. */
  call: (tool: string, args: Record<string, unknown>, context: Pick<ToolContext, 'signal' | 'progress'>) => Promise<Record<string, unknown>>
  /** Takes no new requests, and closes when those under way have ended. */
  retire: () => void
  /** Ends what is under way with an error. Resolves when the process or the session is over. */
  close: () => Promise<void>
}

export interface ConnectionOptions {
  egress: Egress
  /** Of one message of the server. */
  maxBytes: number
  /** Gives up connecting. */
  signal: AbortSignal
  /** The list of tools is no longer what it was. */
  onToolsChanged: () => void
  /** The connection has ended, for whatever reason. */
  onClose: () => void
}

/** Starts the process or the session. Rejects with a ToolError. */
export async function connect (server: McpServer, options: ConnectionOptions): Promise<Connection> {
  const { egress, maxBytes } = options
  const transport = 'url' in server
    ? new HttpTransport(new URL(server.url), { headers: server.headers ?? {}, egress, maxBytes })
    : new ChildTransport({ ...server, stderr: 'ignore', maxBufferSize: maxBytes })
  const client = new Client({ name: 'interlock', version: '0.1.0' })
  const listeners = new Map<number, ToolContext['progress']>()
  let lastToken = 0
  let running = 0
  let retired = false
  let closed = false
  let tooLong = false

  client.onerror = (error) => { tooLong ||= error.message.startsWith('ReadBuffer exceeded') }
  client.setNotificationHandler(ToolListChangedNotificationSchema, options.onToolsChanged)
  // The SDK's own handler for progress forgets a request at its answer, and with it the progress told just before.
  client.setNotificationHandler(ProgressNotificationSchema, ({ params: { progressToken, progress, total, message } }) => {
    listeners.get(Number(progressToken))?.({ progress, ...(total === undefined ? {} : { total }), ...(message === undefined ? {} : { message }) })
  })

  // Without a cause: the SDK's errors quote what a server wrote, and those of a start the arguments of the command.
  function failure (error: unknown, method: string): Error {
    const cause = error instanceof McpError && error.data instanceof Error ? error.data : error
    if (cause instanceof ToolError) return cause
    if (transport instanceof HttpTransport && transport.sessionId !== undefined && method !== 'initialize' && isSessionGone(cause)) return new SessionGone()
    if (tooLong) return new ToolError('tool_error', `the answer has more than ${maxBytes} bytes`)
    if (closed && cause instanceof McpError && cause.code === ErrorCode.ConnectionClosed) return failure(new ConnectionLost(), method)
    const effect = method === 'tools/call' ? ': whether the call took effect is unknown' : ''
    return new ToolError('tool_error', cause instanceof ConnectionLost ? `${cause.message}${effect}` : explain(cause, effect))
  }

  async function request (method: string, params: Record<string, unknown>, signal: AbortSignal): Promise<Record<string, unknown>> {
    if (closed || retired) throw new SessionGone()
    signal.throwIfAborted()
    // A signal of its own: the SDK never takes its listener off, and would cancel what has long been answered.
    const cancel = new AbortController()
    const abort = (): void => cancel.abort('the client no longer waits for the answer')
    signal.addEventListener('abort', abort, { once: true })
    running++
    try {
      return await client.request({ method, params }, ResultSchema, { signal: cancel.signal, timeout: NO_TIMEOUT_MS })
    } catch (error) {
      throw signal.aborted ? signal.reason : failure(error, method)
    } finally {
      signal.removeEventListener('abort', abort)
      if (--running === 0 && retired) void close()
    }
  }

  let closing: Promise<void> | null = null
  function close (): Promise<void> {
    closing ??= (async () => {
      if (transport instanceof HttpTransport && !closed && !retired) {
        const timer = setTimeout(() => void client.close(), GOODBYE_MS)
        await transport.terminateSession().catch(() => {})
        clearTimeout(timer)
      }
      await client.close()
    })()
    return closing
  }

  const stop = (): void => { void close() }
  options.signal.addEventListener('abort', stop)
  client.onclose = () => {
    closed = true
    options.signal.removeEventListener('abort', stop)
    options.onClose()
  }
  try {
    options.signal.throwIfAborted()
    await client.connect(transport, { timeout: CONNECT_MS })
  } catch (error) {
    options.signal.removeEventListener('abort', stop)
    await transport.close()
    if (options.signal.aborted) throw new ToolError('tool_error', 'this worker is shutting down')
    throw failedStart(error, server) ?? failure(error, 'initialize')
  }

  return {
    list: (signal) => allTools((cursor) => request('tools/list', cursor === undefined ? {} : { cursor }, signal), maxBytes),

    async call (tool, args, { signal, progress }) {
      const progressToken = ++lastToken
      listeners.set(progressToken, progress)
      try {
        return await request('tools/call', { name: tool, arguments: args, _meta: { progressToken } }, signal)
      } finally {
        listeners.delete(progressToken)
      }
    },

    retire () {
      retired = true
      if (running === 0) void close()
    },

    close
  }
}

/** HTTP 404 by the specification; many servers, the reference server among them, answer 400 and say "session". Either way nothing was done. */
function isSessionGone (error: unknown): boolean {
  return error instanceof StreamableHTTPError && (error.code === 404 || (error.code === 400 && /session/i.test(error.message)))
}

/** What is told of a process that did not start, or of a server that does not speak. */
function failedStart (error: unknown, server: McpServer): ToolError | null {
  if (error instanceof McpError && error.code === ErrorCode.RequestTimeout) return new ToolError('tool_error', `it did not answer within ${CONNECT_MS / 1_000} s`)
  if (!('command' in server)) return null
  const code = codeOf(error)
  if (code !== null) return new ToolError('tool_error', `it cannot be started (${code}): see that its command exists`)
  if (!(error instanceof McpError) || error.code !== ErrorCode.ConnectionClosed) return null
  return new ToolError('tool_error', 'its process ended before it answered: run its command by hand to see why')
}

/** Errors of connecting: nothing was sent yet. */
const UNREACHED = new Set(['ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'EHOSTUNREACH', 'ENETUNREACH', 'UND_ERR_CONNECT_TIMEOUT'])

/** Neither a body nor a header of the exchange is in it: a server may repeat what it was sent. */
function explain (error: unknown, effect: string): string {
  if (error instanceof McpError) return cut(error.message, MAX_MESSAGE_CHARS)
  if (error instanceof StreamableHTTPError) {
    const status = error.code ?? -1
    if (status === -1) return 'it answered something that is not MCP: see that its URL is a streamable HTTP endpoint'
    if (status === 401 || status === 403) return `it answered HTTP ${status}: see that the headers hold valid credentials`
    if (status >= 300 && status < 400) return `it answered HTTP ${status}, a redirect that is not followed: use the URL it leads to`
    return `it answered HTTP ${status}${status < 500 ? ': see that its URL is a streamable HTTP endpoint' : effect}`
  }
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof BlockedAddressError || cause instanceof ToolError) return cause.message
  }
  const code = codeOf(error)
  if (code === null) return `it answered something that is not MCP${effect}`
  return UNREACHED.has(code) ? `it cannot be reached (${code}): see that it runs` : `the connection was lost before the answer came (${code})${effect}`
}

function codeOf (error: unknown): string | null {
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if ('code' in cause && typeof cause.code === 'string' && /^[A-Z][A-Z0-9_]{1,60}$/.test(cause.code)) return cause.code
  }
  return null
}
