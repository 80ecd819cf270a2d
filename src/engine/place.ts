import { createHash } from 'node:crypto'
import type { RunTool } from '../core/tool.js'
import type { Limiter } from '../store/store.js'
import type { Clock } from './ports.js'

/** A wait so short that it is not worth a commit, in milliseconds: a call keeps its room for it. */
const SHORT_WAIT_MS = 50

export interface PlaceTask {
  tenant: string
  tool: RunTool
  /** It was given a place before, and comes back for it. */
  placed: boolean
  signal: AbortSignal
}

/**
 * Asks for a call's place under its tool's `rate_limit`. Resolves with 0 when the call may begin, and must at once; otherwise with the milliseconds to
 * come back after. Null: it was stopped.
 */
export async function takePlace ({ limiter, clock }: { limiter: Limiter, clock: Clock }, { tenant, tool, placed, signal }: PlaceTask): Promise<number | null> {
  const { max, per_ms: perMs } = (tool.kind === 'client' ? undefined : tool.rate_limit) ?? { max: 1, per_ms: 1 }
  const name = createHash('sha256').update(JSON.stringify([tenant, ...toolName(tool), max, perMs])).digest('base64url')
  const wait = (ms: number) => new Promise<void>((resolve) => {
    const done = () => {
      cancel()
      signal.removeEventListener('abort', done)
      resolve()
    }
    const cancel = clock.after(ms, done)
    signal.addEventListener('abort', done)
  })
  for (let held = placed; !signal.aborted;) {
    // Without the store nobody knows whose turn it is: not ours.
    const ms = await limiter.reserve(name, max, perMs, held).catch(() => null)
    if (signal.aborted) break
    if (ms === 0 || (ms !== null && ms > SHORT_WAIT_MS)) return ms
    held ||= ms !== null
    await wait(ms ?? 250)
  }
  return null
}

/** What makes a tool the same one in another run: not what a run calls it, where it comes from a server. */
function toolName (tool: RunTool): (string | undefined)[] {
  switch (tool.kind) {
    case 'http': return [tool.kind, tool.name, tool.url]
    case 'mcp': return [tool.kind, tool.tool, tool.server === undefined ? 'url' : 'server', tool.server ?? tool.server_url]
    default: return [tool.kind, tool.name]
  }
}
