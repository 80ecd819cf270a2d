import type { CallError, Limits, RunError, ToolPolicy } from './run.js'
import type { CallRules } from './state.js'

/**
 * Orders to a conversation. Each carries the one fact it is about, the time, and every id it needs: `transition` has no clock and
 * mints nothing. A worker that is able to take work on adds itself as `executor`, and what becomes due is claimed for it in the
 * same commit.
 */
export type Command =
  | CreateConversation | StartRun | Advance | RetryTurn | CompleteTurn | FailTurn | PlaceCall | CompleteCall | ProgressCall | CancelRun | Lapse | Recover
  | PostMessage | EditMessage | WithdrawMessage | Decide | SubmitOutputs | KeepOrphan | DiscardOrphan | AttachOrphan | Repair

interface Timed {
  /** Milliseconds since 1970. */
  at: number
  executor?: Executor
}

/** A worker with room. */
export interface Executor {
  worker: string
  /** Whether it can take on a turn. */
  turn: boolean
  /** How many calls it can take on now. */
  calls: number
  /** Whether it came for the work of others: then it also takes calls that ask to be spread. */
  spread: boolean
}

/** A message from outside, with the id it will have in the ledger. */
export interface NewMessage {
  id: string
  role: 'system' | 'user' | 'assistant' | 'tool'
  content: unknown
  tool_calls?: unknown[]
  tool_call_id?: string
  name?: string
}

export interface CreateConversation extends Timed {
  type: 'CreateConversation'
  conversation_id: string
  /** Names the request, so that it is recognised when it is repeated. */
  operation: string
  tenant: string
  metadata: Record<string, string>
  messages: NewMessage[]
  has_system: boolean
}

export interface StartRun extends Timed {
  type: 'StartRun'
  conversation_id: string
  run_id: string
  /** Whose conversation it is, or will be. */
  tenant: string
  /** The conversation is made by this command; otherwise it must exist. */
  new_conversation: boolean
  due_at: number | null
  models: string[]
  limits: Limits
  policy: ToolPolicy
  metadata: Record<string, string>
  on_active_run: 'queue' | 'interrupt' | 'rollback' | 'reject'
  messages: NewMessage[]
  /** What `run.created` says of the input. */
  input: unknown
  /** The whole request as JSON, kept beside the row for whoever performs the run's turns. */
  spec: string
}

/** Nothing new: draw what follows, and claim what is due for the executor. */
export interface Advance extends Timed { type: 'Advance' }

export interface TokenCount { input_tokens: number, output_tokens: number, total_tokens: number }

/** The LLM call gave no answer but may be tried again. */
export interface RetryTurn extends Timed {
  type: 'RetryTurn'
  fence: number
  reason: string
  delay_ms: number
  /** Go on with the next of the run's models. */
  next_model: boolean
  /** The provider was asked and failed: one of the model's tries is used up. */
  tried: boolean
  usage: TokenCount | null
}

export interface ModelCall {
  call_id: string
  /** The name as the model wrote it, made printable. */
  name: string
  /** Validated arguments; what the ledger shows. Empty when they did not validate. */
  arguments: Record<string, unknown>
  provider_id: string
  /** What the model wrote, when it is not the JSON of `arguments`. */
  raw: string | null
  rules: CallRules
  /** What the arguments refer to, as written there (`referencesIn`). */
  references: string[]
  /** Set when the call cannot run: unknown tool, invalid arguments. */
  fault: CallError | null
}

export interface CompleteTurn extends Timed {
  type: 'CompleteTurn'
  fence: number
  text: string
  finish_reason: string
  calls: ModelCall[]
  usage: TokenCount | null
  message_id: string
  batch_id: string
}

/** The LLM call failed for good. */
export interface FailTurn extends Timed {
  type: 'FailTurn'
  fence: number
  error: RunError
  usage: TokenCount | null
}

/** What a rate limit said to the worker that asked for a call: begin now, or come back. Only now is the call started. */
export interface PlaceCall extends Timed {
  type: 'PlaceCall'
  call_id: string
  /** How often the call was started before. */
  attempt: number
  worker: string
  /** Milliseconds until its place comes; 0: it has come, and the worker begins. */
  wait_ms: number
}

export interface CompleteCall extends Timed {
  type: 'CompleteCall'
  call_id: string
  attempt: number
  /** `text`: what the model is told, never empty. `output`: the whole; events get `text` instead when that had to be cut. */
  outcome: CallOutcome
  /** What it was called with: without it a failed call is not tried again. */
  arguments?: Record<string, unknown>
}

export type CallOutcome = { status: 'completed', output: unknown, text: string, truncated: boolean } | { status: 'failed', error: CallError, text: string }

/** What a person says of a suspended call. `edit` and `answer` carry what they are about. */
export type Decision =
  | { call_id: string, decision: 'approve' }
  | { call_id: string, decision: 'reject', reason: string | null }
  /** `provider_id`: the call's, which the ledger keeps. */
  | { call_id: string, decision: 'edit', arguments: Record<string, unknown>, provider_id?: string }
  | { call_id: string, decision: 'answer', outcome: CallOutcome }

/** Decisions on calls that need consent: all of them are taken, or none. */
export interface Decide extends Timed {
  type: 'Decide'
  /** Names the request, so that it is recognised when it is repeated: kept with each decision. */
  operation: string
  run_id: string
  suspension_id: string
  decisions: Decision[]
}

/** What the client's own tools have given: all of it is taken, or none. */
export interface SubmitOutputs extends Timed {
  type: 'SubmitOutputs'
  /** Names the request, so that it is recognised when it is repeated: kept with each output. */
  operation: string
  run_id: string
  outputs: { call_id: string, outcome: CallOutcome }[]
}

/** A result that came after its call was settled. */
export interface KeepOrphan extends Timed {
  type: 'KeepOrphan'
  run_id: string
  turn: number
  batch_id: string
  call_id: string
  name: string
  attempt: number
  /** What its bringer knows of why it is too late (`lateBecause`); null: the state says. */
  known: 'timeout' | 'duplicate' | 'stale' | null
  /** `seq` of what it follows from: the start of its call, or its end. */
  cause: number
  /** The conversation's fence when that was read: one that was deleted and made again has nothing to do with it. */
  fence: number
  output: unknown
  /** The output as a model would be told of it. */
  text: string
  truncated: boolean
}

export interface DiscardOrphan extends Timed {
  type: 'DiscardOrphan'
  run_id: string
  call_id: string
}

/** Hands an orphan to the model, as a user message at the next turn. */
export interface AttachOrphan extends Timed {
  type: 'AttachOrphan'
  run_id: string
  call_id: string
  message_id: string
  content: string
}

export interface ProgressCall extends Timed {
  type: 'ProgressCall'
  call_id: string
  attempt: number
  data: unknown
}

export interface CancelRun extends Timed {
  type: 'CancelRun'
  run_id: string
  reason: string
}

/** Time has passed, and these claims are worth nothing any more: their workers are gone. */
export interface Lapse extends Timed {
  type: 'Lapse'
  /** Fence of a lost turn; null: none. */
  fence: number | null
  /** Lost calls. Those that are started again say their arguments once more. */
  calls: { call_id: string, attempt: number, arguments: Record<string, unknown> }[]
  /** Their worker ends in good order and lets go of them: that is no loss. */
  handed_over?: true
}

/** Row and ledger were found to disagree before an LLM call, or the transcript had to be repaired. */
export interface Recover extends Timed {
  type: 'Recover'
  fence: number
  detail: string
  /** Messages that are in the ledger. */
  messages: number
  /** Messages that wait although the ledger has them. */
  delivered: string[]
}

/** An operator steps in. */
export interface Repair extends Timed {
  type: 'Repair'
  /** Names the request, so that it is recognised when it is repeated. */
  operation: string
  action: RepairAction
  /** Why, in the operator's words; null: not said. A failed call tells the model. */
  reason: string | null
  /** What row and ledger were seen to disagree in at event `seq`, and what the ledger says; null: nothing, or nobody could look. */
  found: { seq: number, wrong: string[], messages: number, delivered: string[] } | null
}

export type RepairAction =
  /** The turn begins again at once: taken away from its worker, or without the rest of its wait. */
  | { type: 'retry_turn' }
  /** An unsettled call fails, whatever it waits for. */
  | { type: 'fail_call', call_id: string }
  /** These claims are given up, as if their workers had died. */
  | { type: 'release', fence: number | null, calls: Lapse['calls'] }

export type MessageMode = 'auto' | 'interrupt' | 'steer' | 'queue'

/** A message while a run is active (API.md "Messages while a run is active"). */
export interface PostMessage extends Timed {
  type: 'PostMessage'
  run_id: string
  message_id: string
  content: unknown
  mode: MessageMode
  /** What an interrupt does with messages that wait already. */
  queued: 'deliver' | 'supersede'
  /** What an interrupt does with the settled calls of the open batch. */
  completed_calls: 'keep' | 'discard'
  due_at: number | null
}

/** Other content for a message that still waits. */
export interface EditMessage extends Timed {
  type: 'EditMessage'
  run_id: string
  message_id: string
  content: unknown
}

export interface WithdrawMessage extends Timed {
  type: 'WithdrawMessage'
  run_id: string
  message_id: string
}
