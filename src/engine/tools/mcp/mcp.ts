import { setMaxListeners } from 'node:events'
import type { Egress } from '../egress.js'
import { ToolError, type ToolContext } from '../tool.js'
import type { Connection } from './connection.js'
import { callOutput } from './result.js'
import { headerFault, type McpServer } from './servers.js'
import { SessionGone } from './session-gone.js'

const LIST_MS = 30_000
/** How long a list of tools is taken for current, unless the server says that it changed. */
const FRESH_MS = 30_000

/** Which server a tool is of: a configured name, or a URL a run named. */
export type McpRef = { server: string } | { server_url: string, headers?: Record<string, string> }

/** A tool as its server describes it. */
export interface McpListing {
  name: string
  description: string
  /** The server's `inputSchema`, not checked: see `Parameters.check`. */
  parameters: Record<string, unknown>
  effects: 'read' | 'write'
  idempotent: boolean
}

/** The MCP servers that tools may come from. Safe to share between runs. */
export interface Mcp {
  /** The configured servers. */
  names: () => string[]
  /** What is wrong with a reference, without connecting: an unknown name, a URL that may not be called, a forbidden header. */
  refusal: (ref: McpRef) => { pointer: string, detail: string, code?: 'blocked_url' } | null
  /**
   * The server's tools, of all pages, without those that can only be run as tasks. Rejects with a ToolError `tool_error`, in one
   * sentence, when there is no answer within `timeoutMs` (default 30 s). Kept for 30 s, unless the server says that they changed: do
   * not change what is returned.
   */
  list: (ref: McpRef, timeoutMs?: number) => Promise<McpListing[]>
  /**
   * Runs one call. Resolves with its output, any JSON value; rejects with a ToolError, or with the signal's reason when aborted, of which
   * the server is told. Nothing but the signal limits the time. Never runs a call twice: one whose connection is lost fails.
   */
  call: (ref: McpRef, tool: string, args: Record<string, unknown>, context: ToolContext) => Promise<unknown>
  /** Ends all sessions and processes; calls under way fail. Resolves when the processes are gone. */
  close: () => Promise<void>
}

export interface McpOptions {
  servers: Map<string, McpServer>
  /** Guards every request to a URL, configured ones as well. */
  egress: Egress
  /** Bytes of one answer of a server. */
  maxResponseBytes: number
  /** Servers named by URL that are connected at once; a call to a further one waits until one is idle. Default: 32. */
  maxConnections?: number
  /** Milliseconds after which an idle connection to a server named by URL is closed. Default: 300,000. */
  idleMs?: number
}

/** A server, and what is known of it while it is connected. */
interface Slot {
  /** How errors call it. */
  label: string
  server: McpServer
  /** Named by a run, so it does not stay. */
  passing: boolean
  connection: Promise<Connection> | null
  tools: { list: McpListing[], until: number } | null
  /** Counts the times its tools changed. */
  changes: number
  /** Calls and lists under way. */
  users: number
  idle: NodeJS.Timeout | undefined
}

/** Connects to nothing yet: a server is connected when it is first needed, once for all who need it, and again after it ended. */
export function openMcp (options: McpOptions): Mcp {
  const { servers, egress, maxResponseBytes, maxConnections = 32, idleMs = 300_000 } = options
  // In the order of their last use.
  const slots = new Map<string, Slot>()
  const closed = new AbortController()
  // Every connection listens to it.
  setMaxListeners(0, closed.signal)
  const ending = new Set<Promise<unknown>>()
  const waiting: (() => void)[] = []

  function refusal (ref: McpRef): ReturnType<Mcp['refusal']> {
    if ('server' in ref) {
      const server = servers.get(ref.server)
      if (server === undefined) return { pointer: '/server', detail: `is none of the MCP servers configured here: ${[...servers.keys()].join(', ') || 'there are none'}` }
      const blocked = 'url' in server ? egress.refusal(new URL(server.url)) : null
      return blocked === null ? null : { pointer: '/server', detail: blocked, code: 'blocked_url' }
    }
    if (!URL.canParse(ref.server_url)) return { pointer: '/server_url', detail: 'is not an absolute URL' }
    const blocked = egress.refusal(new URL(ref.server_url))
    if (blocked !== null) return { pointer: '/server_url', detail: blocked, code: 'blocked_url' }
    const fault = headerFault(ref.headers ?? {})
    return fault === null ? null : { pointer: `/headers/${fault.name.replaceAll('~', '~0').replaceAll('/', '~1')}`, detail: fault.detail }
  }

  function check (ref: McpRef): void {
    const fault = refusal(ref)
    if (fault === null) return
    throw new ToolError('tool_error', `the MCP server cannot be used: ${fault.code === 'blocked_url' ? '' : `${fault.pointer.slice(1)} `}${fault.detail}`)
  }

  /** The slot for a reference, new if need be, to be given back by `release`. Waits for room if it is one too many. */
  async function reserve (ref: McpRef, signal: AbortSignal): Promise<Slot> {
    const key = keyOf(ref)
    for (;;) {
      if (closed.signal.aborted) throw new ToolError('tool_error', 'this worker is shutting down')
      signal.throwIfAborted()
      const passing = [...slots.values()].filter((slot) => slot.passing)
      let slot = slots.get(key)
      if (slot === undefined && ('server' in ref || passing.length < maxConnections)) {
        slot = newSlot(ref, servers)
        slots.set(key, slot)
      }
      if (slot !== undefined) {
        clearTimeout(slot.idle)
        slot.users++
        return slot
      }
      const idle = passing.find(({ users }) => users === 0)
      if (idle !== undefined) discard(idle)
      else await orAborted(new Promise<void>((resolve) => { waiting.push(resolve) }), signal)
    }
  }

  function discard (slot: Slot): void {
    clearTimeout(slot.idle)
    for (const [key, value] of slots) if (value === slot) slots.delete(key)
    if (slot.connection !== null) track(slot.connection.then((connection) => connection.close()).catch(() => {}))
  }

  function release (ref: McpRef, slot: Slot): void {
    slot.users--
    if (slot.users > 0 || !slot.passing || closed.signal.aborted) return
    slots.delete(keyOf(ref))
    slots.set(keyOf(ref), slot)
    // A connection that could be used again is no reason to keep the process running.
    slot.idle = setTimeout(() => discard(slot), idleMs).unref()
    for (const wake of waiting.splice(0)) wake()
  }

  function track (work: Promise<unknown>): void {
    ending.add(work)
    void work.finally(() => ending.delete(work))
  }

  function connected (slot: Slot): Promise<Connection> {
    if (slot.connection !== null) return slot.connection
    const forget = (): void => {
      if (slot.connection !== connection) return
      slot.connection = null
      slot.tools = null
    }
    const connection: Promise<Connection> = open(slot, forget)
    slot.connection = connection
    connection.catch(forget)
    return connection
  }

  async function open (slot: Slot, onClose: () => void): Promise<Connection> {
    // Loading the SDK takes a quarter of a second and 25 MB, which a server without MCP does not need.
    const { connect } = await import('./connection.js')
    return await connect(slot.server, {
      egress,
      maxBytes: maxResponseBytes,
      signal: closed.signal,
      onClose,
      onToolsChanged: () => {
        slot.changes++
        slot.tools = null
      }
    })
  }

  /** Does the work on the server's connection; once more on a new one if the server had forgotten the session and so refused it. */
  async function use<T> (ref: McpRef, signal: AbortSignal, work: (connection: Connection, slot: Slot) => Promise<T>): Promise<T> {
    const slot = await reserve(ref, signal)
    try {
      for (let tries = 1; ; tries++) {
        const opening = connected(slot)
        const connection = await orAborted(opening, signal)
        try {
          return await work(connection, slot)
        } catch (error) {
          if (!(error instanceof SessionGone)) throw error
          if (slot.connection === opening) slot.connection = null
          connection.retire()
          if (tries === 2) throw new ToolError('tool_error', 'it forgets its session at once', { cause: error })
        }
      }
    } catch (error) {
      throw error instanceof ToolError ? new ToolError('tool_error', `MCP server ${slot.label}: ${error.message}`, { cause: error }) : error
    } finally {
      release(ref, slot)
    }
  }

  return {
    names: () => [...servers.keys()],
    refusal,

    async list (ref, timeoutMs = LIST_MS) {
      check(ref)
      const known = slots.get(keyOf(ref))?.tools
      if (known != null && known.until > performance.now()) return known.list
      const signal = AbortSignal.timeout(timeoutMs)
      try {
        return await use(ref, signal, async (connection, slot) => {
          const { changes } = slot
          const list = await connection.list(signal)
          if (slot.changes === changes) slot.tools = { list, until: performance.now() + FRESH_MS }
          return list
        })
      } catch (error) {
        if (error instanceof ToolError || !signal.aborted) throw error
        throw new ToolError('tool_error', `MCP server ${labelOf(ref)}: no answer within ${timeoutMs} ms`, { cause: error })
      }
    },

    async call (ref, tool, args, context) {
      check(ref)
      return callOutput(await use(ref, context.signal, (connection) => connection.call(tool, args, context)), maxResponseBytes)
    },

    async close () {
      closed.abort()
      for (const slot of [...slots.values()]) discard(slot)
      for (const wake of waiting.splice(0)) wake()
      await Promise.all(ending)
    }
  }
}

/** The same server with other headers is another connection: they may be another person's. */
function keyOf (ref: McpRef): string {
  if ('server' in ref) return JSON.stringify([ref.server])
  const headers = Object.entries(ref.headers ?? {}).map(([name, value]) => [name.toLowerCase(), value] as const).sort(([a], [b]) => a < b ? -1 : 1)
  return JSON.stringify([new URL(ref.server_url).href, headers])
}

/** Of a URL the host alone, because its path and query may hold a key. */
function labelOf (ref: McpRef): string {
  return 'server' in ref ? ref.server : `at ${new URL(ref.server_url).host}`
}

function newSlot (ref: McpRef, servers: Map<string, McpServer>): Slot {
  const server = 'server' in ref ? servers.get(ref.server) : { url: ref.server_url, ...(ref.headers === undefined ? {} : { headers: ref.headers }) }
  if (server === undefined) throw new Error('a reference that was refused')
  return { label: labelOf(ref), server, passing: !('server' in ref), connection: null, tools: null, changes: 0, users: 0, idle: undefined }
}

/** What the promise brings, or the signal's reason as soon as it is aborted. What is behind the promise goes on. */
function orAborted<T> (promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const abort = (): void => reject(signal.reason as Error)
    if (signal.aborted) abort()
    signal.addEventListener('abort', abort, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
  })
}
