import type { Content, Message } from '../core/message.js'
import type { Receipt } from '../core/messages.js'
import type { Decisions, Orphan, ToolOutputs } from '../schemas/action.js'
import type { Conversation, CreateConversation } from '../schemas/conversation.js'
import type { PostedMessage, PostMessage } from '../schemas/message.js'
import type { Repair, RepairReport } from '../schemas/repair.js'
import type { Call, CreateRun, Run } from '../schemas/run.js'
import type { ToolListing } from '../engine/tools/tool.js'
import type { StoredEvent } from '../store/store.js'

export type { StoredEvent }

/** Who asks. Another tenant's things do not exist for it. */
export interface Caller {
  tenant: string
  /** ULID of this request, or of the first one with the same `Idempotency-Key`: what it creates is named after it, so a repeat creates nothing new. */
  operation: string
  /** An earlier request of this operation was given no answer: whatever it made may be there already. */
  repeated?: boolean
}

/** `next_cursor` is a position as the service understands it; routes make it opaque. */
export interface Page<T> { data: T[], next_cursor: string | null }

/** What a live reader is handed, in order. `delta` is already JSON. */
export type LiveItem =
  | { kind: 'event', event: StoredEvent }
  | { kind: 'delta', json: string }
  /** The cursor is not good any more: the text says what holds now, and from where the stream goes on. */
  | { kind: 'reset', json: string }

/**
 * How far a reader has come: `epoch` is that of the event `seq`, or a later one in which `seq` was the newest. `seq` 0: nowhere yet. It is good as
 * long as the log still holds that event, and not another one of a later epoch in its place.
 */
export interface EventCursor { seq: number, epoch: number }

export interface LiveOptions {
  /** Deliver what has a greater `seq`. */
  after: EventCursor
  /** What is known to come first: it is delivered before anything is read. */
  head?: StoredEvent[]
  signal: AbortSignal
}

/** What is wrong with a cursor: the log ends before it; another event has its number by now; what follows it is no longer kept. */
export type CursorFault = 'cursor_ahead' | 'events_lost' | 'events_trimmed'

/** `data` is empty when there is a `fault`. `first_seq`, `last_seq`: from where to where the log goes then. `epoch` is the one it was read in. */
export interface EventPage { data: StoredEvent[], fault: CursorFault | null, first_seq: number, last_seq: number, epoch: number }

/** Whose events: a conversation's, or a run's alone; both together spare looking the run's conversation up. A run's stream ends with it. */
export interface EventSource { conversation_id?: string, run_id?: string }

/** Which runs: all that fit, newest first. */
export interface RunQuery {
  status?: string[]
  conversation_id?: string
  metadata?: Record<string, string>
  cursor?: string
  limit: number
}

/**
 * Everything the routes can ask for. Errors are `ProblemError`s (src/errors.ts), thrown before anything has changed, but for `call_settled` of `submit`;
 * after `unavailable` nobody knows.
 * Unknown ids, and other tenants' ids, give `not_found`.
 */
export interface Services {
  runs: {
    /** `events`: those it began with, for whoever wants to watch it; none when it had been created before. */
    create: (caller: Caller, body: CreateRun) => Promise<{ run: Run, events: StoredEvent[] }>
    get: (caller: Caller, runId: string) => Promise<Run>
    list: (caller: Caller, query: RunQuery) => Promise<Page<Run>>
    /** Idempotent: an ended run is answered as it is. With `wait` resolves once nothing of it runs any more. */
    cancel: (caller: Caller, runId: string, options: { wait: boolean }) => Promise<Run>
    /** Resolves with the ended run, or after `ms` with the run as it is then. */
    wait: (caller: Caller, runId: string, ms: number) => Promise<Run>
    calls: (caller: Caller, runId: string, query: { cursor?: string, limit: number }) => Promise<Page<Call>>
    call: (caller: Caller, runId: string, callId: string) => Promise<Call>
  }
  messages: {
    /** Interrupts, steers or queues. What it resolves with is durable: the message reaches the ledger exactly once. */
    post: (caller: Caller, runId: string, body: PostMessage) => Promise<Receipt>
    /** Those that wait for delivery, in the order in which they will be delivered. */
    list: (caller: Caller, runId: string) => Promise<Page<PostedMessage>>
    edit: (caller: Caller, runId: string, messageId: string, content: Content) => Promise<PostedMessage>
    withdraw: (caller: Caller, runId: string, messageId: string) => Promise<void>
  }
  actions: {
    /** Answers calls that need approval: all of them, or none. Resolves with the run as it is then. */
    decide: (caller: Caller, runId: string, body: Decisions) => Promise<Run>
    /** Takes outputs of client tools: all of them, or none. One that comes too late throws `call_settled` and is kept as an orphan. */
    submit: (caller: Caller, runId: string, body: ToolOutputs) => Promise<Run>
  }
  orphans: {
    list: (caller: Caller, runId: string) => Promise<Page<Orphan>>
    discard: (caller: Caller, runId: string, callId: string) => Promise<void>
    /** Makes it a message in front of the next LLM call. */
    attach: (caller: Caller, runId: string, callId: string) => Promise<Receipt>
  }
  conversations: {
    create: (caller: Caller, body: CreateConversation) => Promise<Conversation>
    get: (caller: Caller, id: string) => Promise<Conversation>
    /** The versioned row as it is, for operators; field names are not part of the contract. */
    state: (caller: Caller, id: string) => Promise<{ version: number, epoch: number, state: Record<string, unknown> }>
    messages: (caller: Caller, id: string, query: { cursor?: string, limit: number }) => Promise<Page<Message>>
    /** For operators: says why it waits, or steps in. What does not fit its state is refused, and changes nothing. */
    repair: (caller: Caller, id: string, body: Repair) => Promise<RepairReport>
    /** Deletes it with all its data; a run in progress is stopped first. */
    remove: (caller: Caller, id: string) => Promise<void>
  }
  events: {
    /** A page of stored events behind `after`, of one run when `run_id` is given (its conversation as well spares looking it up). */
    page: (caller: Caller, where: EventSource, after: EventCursor, limit: number) => Promise<EventPage>
    /**
     * Live from `after` on: first what is stored, then what comes, gapless and in order; reads from the log as fast as the consumer takes. When Redis turns
     * out to have lost what the reader has seen, a `reset` comes and the stream goes on behind it.
     */
    live: (caller: Caller, where: EventSource, options: LiveOptions) => AsyncIterable<LiveItem>
  }
  tools: () => Promise<ToolListing[]>
  models: () => Promise<{ id: string, default: boolean }[]>
  idempotency: {
    /**
     * Reserves a key for `operation`. `fresh`: go on, then `finish`. `replay`: answer with what is stored. `busy`: the first request is
     * still under way. `mismatch`: the key was used with another body. `operation` in `fresh` is the reserved one (the first request's, if that one died);
     * `reservation` is what stands under the key now.
     */
    begin: (tenant: string, key: string, fingerprint: string, operation: string) => Promise<
      | { status: 'fresh', operation: string, reservation: string }
      | { status: 'replay', code: number, headers: Record<string, string>, body: string }
      | { status: 'busy' } | { status: 'mismatch' }>
    finish: (tenant: string, key: string, reservation: string, answer: { code: number, headers: Record<string, string>, body: string }) => Promise<void>
    /** Forgets the key, unless another request has taken the place of this one: it failed in a way that changed nothing and may be tried again. */
    abandon: (tenant: string, key: string, reservation: string) => Promise<void>
  }
  health: {
    /** Whether this process can work now: Redis answers, and (a worker) its queue moves. */
    ready: () => Promise<{ ready: boolean, checks: Record<string, string> }>
  }
  /** Prometheus text. */
  metrics: () => Promise<{ contentType: string, body: string }>
}
