import type { Executor, NewMessage } from './command.js'
import type { Event, EventType } from './event.js'
import type { RunEnd, RunFacts, State } from './state.js'

/** A message, in pieces: literal JSON text, or the name of a text that stands beside the row. The store joins them; nobody parses them. */
export type Piece = string | { doc: string }

/** A text beside the row: `value` null removes it once the messages of the same commit are joined. */
export interface Doc { name: string, value: string | null }

/** What the outside must do now, because this very transition made it so. Everything else that is due is in `wanted(state)`. */
export type Effect =
  | { type: 'call_model', turn: number, attempt: number, fence: number }
  | { type: 'run_calls', calls: { call_id: string, attempt: number }[] }
  /** Ask for the places of these calls under their rate limits, in this order (`PlaceCall`). `attempt`: how often they were started before. */
  | { type: 'take_places', calls: { call_id: string, attempt: number }[] }
  /** The named worker works for nothing now. It is a courtesy: whatever it still writes is refused. */
  | { type: 'abort', worker: string, fence: number | null, call_ids: string[], reason: string }

/** All that one transition changes. Rules write here and nowhere else. */
export interface Draft {
  state: State
  now: number
  executor: Executor | null
  events: Event[]
  messages: Piece[][]
  docs: Doc[]
  effects: Effect[]
  /** Runs that came into being: they enter the index. */
  created: string[]
  /** Cut the ledger back to this length before the messages are appended; null: leave it. */
  rewind: number | null
}

export interface EventFields {
  turn?: number
  batch_id?: string
  call_id?: string
  caused_by?: number[]
}

/** Adds an event and returns its `seq`. The order of fields is the order in the stored JSON. */
export function emit (draft: Draft, run: RunFacts | null, type: EventType, fields: EventFields, data: Record<string, unknown>): number {
  const { state } = draft
  const seq = ++state.seq
  const event: Event = {
    seq,
    ...(run && { run_seq: ++run.run_seq }),
    type,
    ...(run && { run_id: run.id }),
    conversation_id: state.id,
    time: iso(draft.now),
    ...(fields.turn !== undefined && { turn: fields.turn, lane: 'main' }),
    ...(fields.batch_id !== undefined && { batch_id: fields.batch_id }),
    ...(fields.call_id !== undefined && { call_id: fields.call_id }),
    caused_by: fields.caused_by ?? [],
    ...data
  }
  draft.events.push(event)
  return seq
}

/** Appends a message to the ledger. */
export function append (draft: Draft, pieces: Piece[]): void {
  draft.messages.push(pieces)
  draft.state.messages++
}

/** Puts a text beside the row. */
export function put (draft: Draft, name: string, value: string): void {
  draft.docs.push({ name, value })
}

/** Removes a text from beside the row, once the messages of the commit are joined. */
export function drop (draft: Draft, name: string): void {
  draft.docs.push({ name, value: null })
}

/** Appends a user message whose content waits beside the row. */
export function appendWaiting (draft: Draft, messageId: string, turn: number, runId: string | null): void {
  const name = docNames.input(messageId)
  const head = JSON.stringify({ id: messageId, role: 'user', turn, run_id: runId, created_at: iso(draft.now) })
  append(draft, [head.slice(0, -1) + ',"content":', { doc: name }, '}'])
  drop(draft, name)
}

/** Ids of outside commands that are remembered. More than can be under way at once for one conversation. */
const SEEN = 32

/** Keeps the id of a command from outside, to know it when it is repeated. */
export function remember (state: State, id: string): void {
  state.seen = [...state.seen.slice(1 - SEEN), id]
}

/** The JSON of a message whose content is at hand. */
export function messageJson (draft: Draft, message: NewMessage, turn: number | null, runId: string | null): string {
  const { id, role, content, ...rest } = message
  return JSON.stringify({ id, role, content, turn, run_id: runId, created_at: iso(draft.now), ...rest })
}

/** The names of the texts beside the row, in one place. */
export const docNames = {
  /** The request a run was created with. */
  run: (runId: string) => `run/${runId}`,
  /** How it ended: a `RunEnd`. */
  end: (runId: string) => `end/${runId}`,
  /** Content of a message that waits to enter the ledger. */
  input: (messageId: string) => `input/${messageId}`,
  /** What the sender of a message was told: a `Receipt`. */
  receipt: (messageId: string) => `receipt/${messageId}`,
  /** `{run_id, batch_id, calls: [ids]}` of a turn that asked for tools. */
  batch: (turn: number) => `batch/${turn}`,
  /** The assistant message of an open batch, up to where its tool calls go. */
  text: (turn: number) => `text/${turn}`,
  /** A call as the ledger shows it. */
  call: (callId: string) => `call/${callId}`,
  /** What a call is run with, where that is not what the model wrote: references filled in, or a person's edit. */
  arguments: (callId: string) => `args/${callId}`,
  /** How a call was settled, with its whole output. */
  done: (callId: string) => `done/${callId}`,
  /** The tool message of a settled call, until its batch closes. */
  message: (callId: string) => `message/${callId}`,
  /** `{run_id, calls: [ids]}` of a suspension. */
  suspension: (id: string) => `suspension/${id}`,
  /** What a person decided on a call, and when. */
  decision: (callId: string) => `decision/${callId}`,
  /** A result that came too late. */
  orphan: (callId: string) => `orphan/${callId}`
}

/** Keeps how a run has ended. */
export function recordEnd (draft: Draft, runId: string, end: RunEnd): void {
  put(draft, docNames.end(runId), JSON.stringify(end))
}

/** RFC 3339, in UTC, from milliseconds since 1970. */
export const iso = (ms: number): string => new Date(ms).toISOString()

/**
 * A fence nobody has been given before, and the one that counts from now on. Not just the next number: when Redis has lost what it had stored, the
 * row counts again from where it was, and whoever works for the part that was lost must not hold what is given out then (FAULTS F61).
 */
export function nextFence (draft: Draft): number {
  draft.state.fence = Math.max(draft.state.fence + 1, draft.now)
  return draft.state.fence
}

/** Milliseconds since a moment that another process may have told, whose clock can be a little ahead of ours: never less than none. */
export const elapsed = (draft: Draft, since: number): number => Math.max(0, draft.now - since)

/** Has the worker told that it works for nothing; null: there is none. */
export function abortWorker (draft: Draft, worker: string | null, fence: number | null, callIds: string[], reason: string): void {
  if (worker !== null) draft.effects.push({ type: 'abort', worker, fence, call_ids: callIds, reason })
}
