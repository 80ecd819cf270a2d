import { createHash } from 'node:crypto'
import type { CompleteCall } from '../core/command.js'
import type { RunTool } from '../core/tool.js'
import type { Limiter } from '../store/limiter.js'
import type { Clock, Log } from './ports.js'
import { errorForModel, forModel } from './tools/output.js'
import { ToolError, type Tools } from './tools/tool.js'

export interface CallTask {
  conversation: string
  run_id: string
  turn: number
  call_id: string
  attempt: number
  tool: RunTool
  arguments: Record<string, unknown>
  /** They are not what was validated when the model wrote them. */
  changed: boolean
  timeout_ms: number
  max_chars: number
  /** Interrupt, cancel, takeover, shutdown. */
  signal: AbortSignal
}

/** What a call tells beside its end. */
export interface CallNews {
  progress: (data: unknown) => void
  /** The tool gave this after it was given up; `timedOut`: because it took too long. */
  late: (output: unknown, timedOut: boolean) => void
}

/**
 * Runs one tool call and says in a command what came of it. Null: it was stopped, and says nothing. It never throws: whatever a tool
 * does fails only its own call (F7).
 */
export async function performCall (
  { tools, clock, log }: { tools: Tools, clock: Clock, log: Log }, task: CallTask, { progress, late }: CallNews
): Promise<CompleteCall | null> {
  const { call_id, attempt, tool, signal } = task
  const head = { type: 'CompleteCall', call_id, attempt, arguments: task.arguments } as const
  if (signal.aborted) return null
  const deadline = new AbortController()
  const cancel = clock.after(task.timeout_ms, () => {
    deadline.abort(new ToolError('timeout', `the tool did not answer within ${task.timeout_ms} ms`))
  })
  try {
    if (task.changed) tools.validate(tool, task.arguments)
    const output = await tools.run(tool, task.arguments, {
      conversation_id: task.conversation, run_id: task.run_id, call_id, turn: task.turn, attempt, signal: AbortSignal.any([signal, deadline.signal]), progress,
      late: (given) => late(given, deadline.signal.aborted && !signal.aborted)
    })
    if (signal.aborted) return null
    const { text, truncated } = forModel(output, task.max_chars)
    return { ...head, at: clock.now(), outcome: { status: 'completed', output, text, truncated } }
  } catch (thrown) {
    if (signal.aborted) return null
    if (!(thrown instanceof ToolError)) log.error({ run_id: task.run_id, call_id, err: thrown }, 'tool call failed in an unexpected way')
    const { code, message } = thrown instanceof ToolError ? thrown : new ToolError('tool_error', 'the tool failed unexpectedly')
    const error = { code, message }
    return { ...head, at: clock.now(), outcome: { status: 'failed', error, text: errorForModel(error) } }
  } finally {
    cancel()
  }
}

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
