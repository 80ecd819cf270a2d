import type { CompleteCall } from '../core/command.js'
import type { RunTool } from '../core/tool.js'
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
