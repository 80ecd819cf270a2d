import type { CallRules } from '../../src/core/state.js'
import type { RunTool } from '../../src/core/tool.js'
import { ToolError, type Tools } from '../../src/engine/tools/tool.js'
import type { Machine } from './machine.js'
import { createRandom } from './random.js'
import type { Timeline } from './timeline.js'

/** One execution of a tool, as the outside world has seen it. */
export interface Execution {
  run_id: string
  turn: number
  call_id: string
  attempt: number
  name: string
  args: unknown
  machine: Machine
  start: number
  /** Newest event of the conversation when it began. */
  seq: number
  /** What it said, if it came to that. */
  result: { output: unknown } | { code: string, message: string } | null
}

type Facts = Omit<CallRules, 'timeout_ms'>

const read: Facts = { effects: 'read', idempotent: false, placement: 'local' }
export const TOOLS: Record<string, Facts> = {
  look: read,
  write: { ...read, effects: 'write' },
  pay: { ...read, effects: 'write', idempotent: true },
  far: { ...read, placement: 'spread' },
  ship: { ...read, effects: 'write', placement: 'spread' }
}

/** Whether a started call may be run again after its worker is gone. */
export const mayRepeat = (name: string): boolean => TOOLS[name]?.effects === 'read' || TOOLS[name]?.idempotent === true

export interface ToolboxOptions {
  seed: number
  timeline: Timeline
  leaseMs: number
  seqOf: (runId: string) => number
  trace: ((who: string, what: string) => void) | null
}

/** Tools that do what the seed says, and remember every execution. */
export function createToolbox ({ seed, timeline, leaseMs, seqOf, trace }: ToolboxOptions): { executions: Execution[], toolsOf: (machine: Machine) => Tools } {
  const executions: Execution[] = []

  function toolsOf (machine: Machine): Tools {
    return {
      listings: async () => [],
      expand: async () => ({ tools: [], faults: [] }),
      check: async () => [],
      describe: ({ name }: RunTool) => ({ type: 'function', function: { name, parameters: { type: 'object' } } }),
      rules: ({ name }, timeoutMs) => ({ ...(TOOLS[name] ?? read), timeout_ms: timeoutMs }),
      validate: () => { /* nothing is wrong with it */ },
      parse (_, raw) {
        try {
          return JSON.parse(raw) as Record<string, unknown>
        } catch {
          throw new ToolError('invalid_arguments', 'the arguments are no JSON')
        }
      },
      run: ({ name }, args, { run_id, turn, call_id, attempt, signal, progress }) => new Promise((resolve, reject) => {
        if (signal.aborted) {
          reject(signal.reason as Error)
          return
        }
        const random = createRandom(seed, `tool ${JSON.stringify(args)} ${attempt}`)
        const execution: Execution = { run_id, turn, call_id, attempt, name, args, machine, start: timeline.now(), seq: seqOf(run_id), result: null }
        executions.push(execution)
        trace?.(machine.name, `tool ${name} runs for ${call_id}, attempt ${attempt}`)
        const kind = random.next()
        const hangs = kind < 0.04
        const ms = hangs ? Infinity : kind < 0.08 ? leaseMs * 1.5 * random.next() : 1 + 30 * random.next() ** 2
        const timers = hangs ? [] : [machine.deliver(timeline.now() + ms, () => {
          signal.removeEventListener('abort', abort)
          if (kind > 0.9) {
            execution.result = { code: 'tool_error', message: `${call_id} broke` }
            reject(new ToolError('tool_error', `${call_id} broke`))
          } else {
            const output = kind > 0.87 ? null : kind > 0.8 ? { of: call_id, attempt } : `${name} of ${call_id}.${attempt}`
            execution.result = { output }
            resolve(output)
          }
        })]
        if (!hangs && random.chance(0.1)) timers.push(machine.deliver(timeline.now() + ms * random.next(), () => progress({ half: call_id })))
        // Some go on all the same: that is nobody's business here, but what they have done is done.
        const abort = (): void => {
          for (const timer of timers) timer.cancel()
          reject(signal.reason as Error)
        }
        signal.addEventListener('abort', abort, { once: true })
      }),
      close: async () => {}
    }
  }
  return { executions, toolsOf }
}
