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
  /** When it said so, if nobody listened any more. */
  late: number | null
}

export type Facts = Omit<CallRules, 'timeout_ms'> & { rate_limit?: { max: number, per_ms: number } }

const read: Facts = { effects: 'read', idempotent: false, placement: 'local' }
const write: Facts = { ...read, effects: 'write' }
export const TOOLS: Record<string, Facts> = {
  look: read,
  write,
  pay: { ...write, idempotent: true },
  far: { ...read, placement: 'spread' },
  ship: { ...write, placement: 'spread' },
  // People and clients
  sign: { ...write, approval: { expires_ms: null } },
  vote: { ...read, approval: { expires_ms: 500 }, placement: 'spread' },
  hand: { ...write, client: { expires_ms: null } },
  phone: { ...read, client: { expires_ms: 400 } },
  seal: { ...write, approval: { expires_ms: 900 }, client: { expires_ms: null } },
  // Order and limits
  fill: { ...write, resources: ['box/{box}'] },
  open: { ...read, resources: ['box/{box}'] },
  lock: { ...write, resources: ['box/{box}'], approval: { expires_ms: null } },
  alone: { ...write, exclusive: true },
  scarce: { ...read, max_calls: 2, max_concurrency: 1 },
  slow: { ...read, rate_limit: { max: 2, per_ms: 120 } },
  often: { ...write, idempotent: true, retry: { attempts: 3, backoff_ms: 30 } },
  stubborn: { ...write, uncancellable: true },
  final_answer: read
}

/** Whether a started call may be run again after its worker is gone. */
export const mayRepeat = (name: string): boolean => TOOLS[name]?.effects === 'read' || TOOLS[name]?.idempotent === true

/** A tool as a run declares it: all the engine reads of it. What else there is to know about it, `rules` says. */
export function declared (name: string): RunTool {
  const { client, rate_limit: rate } = TOOLS[name] ?? read
  const kind = name === 'final_answer' ? 'builtin' : client === undefined ? 'module' : 'client'
  return { kind, name, ...(rate !== undefined && { rate_limit: rate }) } as RunTool
}

export interface ToolboxOptions {
  seed: number
  timeline: Timeline
  leaseMs: number
  seqOf: (runId: string) => number
  trace: ((who: string, what: string) => void) | null
}

export interface Toolbox {
  executions: Execution[]
  toolsOf: (machine: Machine) => Tools
  /** Some tool may still give a result that comes too late. */
  goesOn: () => boolean
}

/** Tools that do what the seed says, and remember every execution. */
export function createToolbox ({ seed, timeline, leaseMs, seqOf, trace }: ToolboxOptions): Toolbox {
  const executions: Execution[] = []
  /** What still goes on although nobody waits for it. */
  const going = new Set<Execution>()

  function toolsOf (machine: Machine): Tools {
    return {
      listings: async () => [],
      expand: async () => ({ tools: [], faults: [] }),
      check: async () => [],
      describe: ({ name }: RunTool) => ({ type: 'function', function: { name, parameters: { type: 'object' } } }),
      rules: ({ name }, timeoutMs) => {
        const { rate_limit: rate, ...rules } = TOOLS[name] ?? read
        return { ...rules, ...(rate !== undefined && { rate_limited: true }), timeout_ms: timeoutMs }
      },
      validate: () => { /* nothing is wrong with it */ },
      parse (_, raw) {
        try {
          return JSON.parse(raw) as Record<string, unknown>
        } catch {
          throw new ToolError('invalid_arguments', 'the arguments are no JSON')
        }
      },
      run: ({ name }, args, { run_id, turn, call_id, attempt, signal, progress, late }) => new Promise((resolve, reject) => {
        if (signal.aborted) {
          reject(signal.reason as Error)
          return
        }
        const random = createRandom(seed, `tool ${JSON.stringify(args)} ${attempt}`)
        const execution: Execution = { run_id, turn, call_id, attempt, name, args, machine, start: timeline.now(), seq: seqOf(run_id), result: null, late: null }
        executions.push(execution)
        trace?.(machine.name, `tool ${name} runs for ${call_id}, attempt ${attempt}`)
        const kind = random.next()
        const hangs = kind < 0.04
        const ms = hangs ? Infinity : kind < 0.09 ? leaseMs * 1.5 * random.next() : 1 + 30 * random.next() ** 2
        // Some go on all the same when they are told to stop: what they give then is an orphan.
        const deaf = random.chance(0.4)
        let left = false
        const timers = hangs ? [] : [machine.deliver(timeline.now() + ms, () => {
          signal.removeEventListener('abort', abort)
          going.delete(execution)
          if (kind > (name === 'often' ? 0.6 : 0.9)) {
            execution.result = { code: 'tool_error', message: `${call_id} broke` }
            reject(new ToolError('tool_error', `${call_id} broke`))
          } else {
            const output = kind > 0.87 ? null : kind > 0.7 ? { of: call_id, attempt } : `${name} of ${call_id}.${attempt}`
            execution.result = { output }
            if (left) {
              execution.late = timeline.now()
              trace?.(machine.name, `tool ${name} gives its result for ${call_id} too late`)
              late?.(output)
            }
            resolve(output)
          }
        })]
        if (!hangs && random.chance(0.1)) timers.push(machine.deliver(timeline.now() + ms * random.next(), () => { if (!left) progress({ half: call_id }) }))
        const abort = (): void => {
          left = true
          if (!deaf) for (const timer of timers) timer.cancel()
          else if (!hangs) going.add(execution)
          reject(signal.reason as Error)
        }
        signal.addEventListener('abort', abort, { once: true })
      }),
      close: async () => {}
    }
  }
  return { executions, toolsOf, goesOn: () => [...going].some(({ machine }) => machine.alive()) }
}
