import type { Held } from './resources.js'
import type { CallError, CallStatus, EndStatus, Limits, RunError, StopReason, ToolPolicy, Usage } from './run.js'

/**
 * The state row of a conversation: all that decides what may happen next, and nothing else. Texts, arguments and outputs live
 * beside it (see `Doc` in draft.ts), so the row stays a few kilobytes however long the conversation is. Only `transition`
 * changes it. Times are milliseconds since 1970, as the commands brought them.
 */
export interface State {
  id: string
  tenant: string
  created_at: number
  metadata: Record<string, string>
  /** Number of the newest event. */
  seq: number
  /** Newest turn number: the conversation's logical clock. */
  turn: number
  /** Grows whenever the right to write for a turn changes hands; no number is given twice, also when Redis has lost some (`nextFence`). */
  fence: number
  /** Messages in the ledger. */
  messages: number
  /** The ledger begins with a system message of its own. */
  has_system: boolean
  run: ActiveRun | null
  /** Runs that wait: for the active one, or for their due time. In order of arrival. */
  queue: QueuedRun[]
  /** Messages that wait for delivery, in order of acceptance. Their contents wait beside the row. */
  waiting: WaitingMessage[]
  /** How often the ledger was cut back to an earlier length (`on_active_run: rollback`); between two of these it only grows. */
  rewinds: number
  /** Ids of the last commands from outside, so that deciding one twice changes nothing twice. Newest last. */
  seen: string[]
  /** Results that came too late, oldest first. They stay beside the row until they are discarded, attached, pushed out or too old. */
  orphans: Orphan[]
}

/** A result whose call was settled without it. */
export interface Orphan { call_id: string, run_id: string, at: number, cause: number, chars: number }

/** What every run has, from its creation on. */
export interface RunFacts {
  id: string
  created_at: number
  /** Not before this time; null: at once. */
  due_at: number | null
  /** The model and, behind it, the fallbacks in their order. */
  models: string[]
  limits: Limits
  policy: ToolPolicy
  metadata: Record<string, string>
  /** Number of the run's newest event. */
  run_seq: number
  /** `seq` of its `run.created`. */
  cause: number
}

/** A message on its way into the ledger. */
export interface WaitingMessage {
  id: string
  /** The run it was posted to; null once that has ended. */
  run_id: string | null
  /** `steer`: at the next turn boundary. `queue`: when the model has given its final answer. */
  mode: 'steer' | 'queue'
  /** Not before this time, and then as `steer`; null: no such time. */
  due_at: number | null
  /** `seq` of its `message.accepted`. */
  cause: number
}

export interface QueuedRun extends RunFacts {
  /** Ids of its input messages; their contents wait beside the row. */
  inputs: string[]
}

export interface ActiveRun extends RunFacts {
  status: 'queued' | 'running' | 'requires_action'
  started_at: number | null
  /** Length of the ledger when it became the active run. */
  ledger_start: number
  usage: Usage
  /** Turns it has begun. They are the conversation's newest ones: a conversation has one active run. */
  turns: number
  /** Those that were answered; `limits.max_turns` counts these, so that interrupts use none up. */
  answers: number
  phase: TurnPhase | BatchPhase
  /** The answer a successful final-answer call gave, kept until its batch has settled. */
  final: { call_id: string, output: unknown } | null
  /** How often tools with `max_calls` were called, by name. */
  used: Record<string, number>
  /** Milliseconds it has waited for people and clients: no part of its `run_timeout_ms`. */
  paused_ms: number
}

/** One LLM call: due, running, or waiting to be tried again. */
export interface TurnPhase {
  type: 'turn'
  turn: number
  /** How often it was tried; 0 before `turn.started`. */
  attempt: number
  /** How often the provider failed with the present model, and which of `models` that is. */
  tries: number
  model: number
  /** How many workers died over it. */
  losses: number
  /** Who may write for it, and under which fence; null: nobody yet. */
  worker: string | null
  fence: number
  /** Due from here on; also when it was last claimed or put back. */
  ready_at: number
  /** What it follows from, as `seq`s; its own `turn.started` once there is one. */
  caused_by: number[]
}

/** The tool calls of one turn. Closes when every call is settled. */
export interface BatchPhase {
  type: 'batch'
  turn: number
  id: string
  /** `seq` of `batch.started`. */
  cause: number
  started_at: number
  calls: CallState[]
  /** What waits for a person or the client; null: nothing. */
  suspension: Suspension | null
  /** How many there have been. */
  suspensions: number
  /** Characters that outputs have put into the arguments of its calls. */
  filled: number
}

/** A group of calls that wait for a person or for the client: those of the batch that are `suspended`. */
export interface Suspension {
  id: string
  created_at: number
  /** `seq` of its `suspension.created`. */
  cause: number
  /** Somebody's time to answer has run out. */
  expired: boolean
}

/** What decides when and how a call may run, beside its state. Only what its tool asks for is there. */
export interface CallRules {
  effects: 'read' | 'write'
  idempotent: boolean
  placement: 'local' | 'spread'
  timeout_ms: number
  /** Templates of the resources it reads or writes. */
  resources?: string[]
  exclusive?: true
  /** Calls of its tool that may run at once, and that may be made in one run. */
  max_concurrency?: number
  max_calls?: number
  /** It may begin only when its tool's rate limit has a place for it. */
  rate_limited?: true
  /** How often it may be started, and the milliseconds before the second start; doubled for each further one. */
  retry?: { attempts: number, backoff_ms: number }
  /** It needs a person's consent, who has `expires_ms` for it; null: as long as it takes. */
  approval?: { expires_ms: number | null }
  /** The client runs it, and has `expires_ms` for it. */
  client?: { expires_ms: number | null }
  /** It is left to finish when it is cancelled; its result then comes too late. */
  uncancellable?: true
}

export interface CallState {
  id: string
  name: string
  status: CallStatus
  /** How often it was started. */
  attempt: number
  /**
   * Whose turn it is to run it; null while `running`: dispatched, but no worker has claimed it. While `pending`: who asks for its place under a rate
   * limit; it has not been started, and whatever happens to that worker costs it nothing.
   */
  worker: string | null
  /** When it was dispatched or claimed. */
  since: number
  /** When it first began; null: never. */
  started_at: number | null
  rules: CallRules
  /** Its place in the order in which the calls of the batch can be run; request order, but for what refers to later calls. */
  rank: number
  /** What its arguments still refer to: as written there, and the call it is. */
  after: Record<string, string>
  /** What it reads or writes, as far as that is known. */
  holds: Held
  /** Not to be started before this time. */
  ready_at: number
  /** It has a place under its tool's rate limit, for `ready_at`. Used up by a start. */
  placed: boolean
  /** How often a worker died over it. */
  losses: number
  /** A person has consented. */
  approved: boolean
  /** While `suspended`: when it is too late to answer; null: never. */
  expires_at: number | null
  /** Why it cannot even start; it fails in its turn. */
  fault: CallError | null
  /** What it is called with, until it is dispatched: `tool.started` says it. Null from then on; a copy stands beside the row. */
  arguments: Record<string, unknown> | null
  /** Its newest event. */
  cause: number
  /** Position in the order of settling, from 1; 0: open. */
  settled: number
  error: CallError | null
}

/** What stands beside the row of a run from its creation on. */
export interface RunRecord {
  created_at: number
  /** `seq` of its `run.created`: its events are at or behind it. */
  created_seq: number
  /** The request, as `StartRun` brought it. */
  request: unknown
}

/** How a run ended; stands beside the row for good. */
export interface RunEnd {
  status: EndStatus
  started_at: number | null
  ended_at: number
  output: unknown
  usage: Usage
  error: RunError | null
  stop_reason: StopReason | null
  reason: string | null
  /** Who was at work for it when it ended; left out: nobody. */
  workers?: string[]
  /** `seq` of its terminal event. */
  last_seq: number
  /** Its newest turn, and how many it had. */
  turn: number | null
  turns: number
  run_seq: number
}

export const isOpen = (call: CallState): boolean => call.settled === 0

/** Whether it takes up room: it runs, or is about to. */
export const isBusy = (call: CallState): boolean => call.status === 'running' || (call.status === 'pending' && call.worker !== null)

/** What workers have claimed: a turn, or calls. */
export interface Claim { worker: string, fence: number | null, call_id: string | null, attempt: number }

/** All claims of a state: what is to be given up when their workers are gone. */
export function claimsOf (state: State): Claim[] {
  const phase = state.run?.phase
  if (phase === undefined) return []
  if (phase.type === 'turn') return phase.worker === null ? [] : [{ worker: phase.worker, fence: phase.fence, call_id: null, attempt: phase.attempt }]
  return phase.calls.flatMap((call) => {
    return isOpen(call) && call.worker !== null ? [{ worker: call.worker, fence: null, call_id: call.id, attempt: call.attempt }] : []
  })
}
