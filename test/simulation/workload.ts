import type { StartRun } from '../../src/core/command.js'
import type { Limits, ToolPolicy } from '../../src/core/run.js'
import type { MessageMode } from '../../src/core/command.js'
import type { Decisions, ToolOutputs } from '../../src/schemas/action.js'
import type { Random } from './random.js'
import { TOOLS } from './toolbox.js'

/** Something a user does, `at` milliseconds after the user's first conversation was made. */
export type Action = { at: number } & (
  | { do: 'run', on_active_run: StartRun['on_active_run'], after: number, models: string[], tools: string[], limits: Partial<Limits>, policy: Partial<ToolPolicy> }
  | { do: 'cancel' }
  | { do: 'message', mode: MessageMode, queued: 'deliver' | 'supersede', completed: 'keep' | 'discard', after: number }
  | { do: 'edit' | 'withdraw' }
  | { do: 'delete', again: boolean }
  | Answer
)

/** What people and clients say to what a run asks them, or of what came too late. `wrong`: about calls or a suspension that are not there. */
export type Answer =
  | { do: 'decide', body: Decisions, wrong: boolean }
  | { do: 'outputs', body: ToolOutputs, wrong: boolean }
  | { do: 'attach' | 'discard', call_id: string }

/** What one user does with one conversation. The first run makes it. */
export interface Session { begins: number, actions: Action[] }

export type Role = 'both' | 'worker' | 'api'

export interface Workload {
  machines: Role[]
  /** How far the clock of each process is ahead. Milliseconds. */
  skews: number[]
  sessions: Session[]
  errorRate: number
}

/** Clocks of machines that keep their time differ by no more than this. Milliseconds. */
export const MAX_SKEW_MS = 60

export function makeWorkload (random: Random): Workload {
  const machines = random.pick<Role[]>([['both'], ['both', 'both'], ['api', 'worker'], ['api', 'worker', 'worker'], ['both', 'worker'], ['api', 'both', 'worker']])
  const sessions = Array.from({ length: random.pick([1, 1, 1, 2, 3]) }, (): Session => {
    const actions: Action[] = [run(random, 0, true)]
    const more = random.pick([0, 1, 2, 3, 5])
    for (let i = 0; i < more; i++) actions.push(action(random, Math.floor(random.next() ** 2 * 600)))
    return { begins: random.next() * 100, actions: actions.sort((a, b) => a.at - b.at) }
  })
  const skewed = random.chance(0.25)
  const skews = machines.map(() => skewed ? random.int(-MAX_SKEW_MS, MAX_SKEW_MS) : 0)
  return { machines, skews, sessions, errorRate: random.chance(0.5) ? 0 : random.pick([0.1, 0.3, 0.6]) }
}

function action (random: Random, at: number): Action {
  const kind = random.next()
  if (kind < 0.4) return run(random, at, false)
  if (kind < 0.55) return { at, do: 'cancel' }
  if (kind < 0.9) {
    return {
      at,
      do: 'message',
      mode: random.pick<MessageMode>(['auto', 'auto', 'interrupt', 'steer', 'queue']),
      queued: random.chance(0.2) ? 'supersede' : 'deliver',
      completed: random.chance(0.2) ? 'discard' : 'keep',
      after: random.chance(0.2) ? random.int(1, 400) : 0
    }
  }
  if (kind < 0.96) return { at, do: random.pick(['edit', 'withdraw']) }
  return { at, do: 'delete', again: random.chance(0.5) }
}

/** Tools of one kind together show more of what they do to each other. */
const KITS = [
  ['look', 'write', 'pay', 'far', 'ship'], ['look', 'write', 'pay', 'far', 'ship'], ['look', 'write', 'pay', 'far', 'ship', 'stubborn'],
  ['look', 'write', 'sign', 'vote', 'hand', 'phone', 'seal'], ['sign', 'vote', 'ship', 'lock'], ['hand', 'phone', 'far'],
  ['fill', 'open', 'lock', 'alone', 'look'], ['scarce', 'slow', 'often', 'write'], Object.keys(TOOLS)
]

function run (random: Random, at: number, first: boolean): Action {
  const names = random.pick(KITS)
  const final = random.chance(0.15)
  return {
    at,
    do: 'run',
    on_active_run: first ? 'queue' : random.pick<StartRun['on_active_run']>(['queue', 'queue', 'queue', 'reject', 'interrupt', 'rollback']),
    after: 0,
    models: random.chance(0.3) ? ['small', 'large'] : ['small'],
    tools: random.chance(0.1) ? [] : names.filter((name) => name !== 'final_answer' && random.chance(0.6)).concat(final ? ['final_answer'] : []),
    limits: {
      tool_timeout_ms: 300,
      ...(random.chance(0.15) && { max_turns: random.int(1, 3) }),
      ...(random.chance(0.15) && { max_tool_concurrency: random.int(1, 3) }),
      ...(random.chance(0.08) && { run_timeout_ms: random.int(50, 1500) }),
      ...(random.chance(0.05) && { max_total_tokens: random.int(1, 20) })
    },
    policy: {
      ...(random.chance(0.1) && { on_error: 'fail_run' }),
      ...(random.chance(0.15) && { message_order: 'completion' }),
      ...(random.chance(0.2) && { cancelled_calls: random.pick(['tombstone', 'tombstone_started']) }),
      ...(random.chance(0.1) && { parallel: false }),
      ...(random.chance(0.4) && { suspension: random.pick<ToolPolicy['suspension']>(['sequential', 'barrier']) }),
      ...(final && { final_answer_tool: 'final_answer' as const, on_final_answer: random.pick<ToolPolicy['on_final_answer']>(['settle', 'cancel']) })
    },
    ...(!first && random.chance(0.15) && { on_active_run: 'queue' as const, after: random.int(1, 500) })
  }
}
