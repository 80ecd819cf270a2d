import type { Doc, Piece } from '../core/draft.js'
import type { Event } from '../core/event.js'
import type { State } from '../core/state.js'

/** A conversation's row. */
export interface Row extends Base {
  /** The epoch it is read in, and would be written in now: see `StoredEvent.epoch`. */
  epoch: number
  state: State
}

/**
 * Which row something was decided on: `token` is that of the commit that made it. A version is no name for it: when Redis has lost commits,
 * others get the same numbers. `born` is the token of the row's first commit: a row which was deleted and made again is another one.
 */
export interface Base { born: string, version: number, token: string }

/** One or more transitions of a conversation, to be stored all or not at all. */
export interface Commit {
  conversation: string
  /** The row this was decided on; null: there is none yet. */
  base: Base | null
  /** Of a commit that makes a row: the removal of a former one under this name that it knows of, as a conflict told it. Null: it knows of none. */
  removal: number | null
  /**
   * Made once per commit: a commit that is sent twice because its reply was lost is recognised by it. `<process>.<anything new>`: of each process (of the
   * last 32 that wrote) the store knows the newest again, so none may have two commits of a conversation under way.
   */
  token: string
  state: State
  messages: Piece[][]
  /** Cut the ledger back to this length before the messages are appended; null: leave it. */
  rewind: number | null
  events: Event[]
  docs: Doc[]
  /** Runs that came into being: they enter the index. */
  created: string[]
  /** When the sweep has to look at this conversation; null: never. Milliseconds since 1970. */
  due: number | null
}

export type Committed =
  | { status: 'committed', born: string, version: number, epoch: number }
  /**
   * Somebody else was first, or the row is gone: nothing was stored, here is what stands now. `removal`: there was a row under this name within the last
   * week. What was to make one before that was removed and is only heard now must not bring it back: to make one it must be decided again.
   */
  | { status: 'conflict', row: Row | null, removal: number | null }

/** An event as stored: `json` is the same bytes on every read. */
export interface StoredEvent {
  seq: number
  /**
   * The epoch it was stored in: 1 on a fresh Redis, and a greater one from every start of a server, or promotion of a replica, on, and in a conversation
   * that has the name of one that was deleted within the last week. What was acknowledged before may be lost then, and its numbers are given again;
   * together with its epoch a `seq` names one content (FAULTS I4b). Starts are not seen where Redis does not say whose data it has (`INFO replication`).
   */
  epoch: number
  type: string
  run_id: string | null
  json: string
}

/** A piece of streamed text, of the turn that `fence` gives the right to write for. */
export interface Delta {
  run_id: string
  turn: number
  attempt: number
  lane: string
  /** Where it belongs in the attempt's text, in UTF-16 units; `byte`: the same in bytes of UTF-8. */
  offset: number
  byte: number
  text: string
}

/** All text of the running turn so far. */
export interface Partial { run_id: string, turn: number, attempt: number, lane: string, text: string }

/** What a conversation has beside its row. It may be large. */
export interface Reads {
  /** Texts beside the row, in the order asked for; null where there is none. */
  docs: (conversation: string, names: string[]) => Promise<(string | null)[]>
  /** Messages of the ledger as JSON, from an index on; at most `limit`. */
  ledger: (conversation: string, from: number, limit?: number) => Promise<string[]>
  /** Events with `seq` > `after`, in order; at most `limit`. */
  log: (conversation: string, after: number, limit: number) => Promise<StoredEvent[]>
  partial: (conversation: string) => Promise<Partial | null>
}

/**
 * Where conversations live. `commit` is the one way to change one, and the only writer of a row. Every method may reject when the
 * store is away; a commit's outcome is unknown then, and committing again with the same token settles it.
 */
export interface Store extends Reads {
  load: (conversation: string) => Promise<Row | null>
  commit: (commit: Commit) => Promise<Committed>
  /** Adds text to the running turn and publishes it; drops what lies behind a hole. False: the fence is old, nothing was written. */
  append: (conversation: string, fence: number, delta: Delta) => Promise<boolean>
  /** Deletes a conversation with everything of it. False: there was none. */
  remove: (conversation: string) => Promise<boolean>
  /**
   * Takes up to `limit` conversations whose due time has passed (or one per partition), and makes them due again at `until`: one sweep looks at each.
   * Of a cluster it takes what the nodes that answer have.
   */
  takeDue: (now: number, until: number, limit: number) => Promise<string[]>
  /** Changes a due time without a commit. Does nothing if the conversation has none, or is not at `base` any more. */
  postpone: (conversation: string, base: Pick<Base, 'born' | 'token'>, due: number) => Promise<void>
  /** The conversation of a run, if it is this tenant's. */
  findRun: (tenant: string, runId: string) => Promise<string | null>
  /** A tenant's runs from newest to oldest, older than `before`. */
  listRuns: (tenant: string, before: string | null, limit: number) => Promise<{ run_id: string, conversation_id: string }[]>
}

/** What a reader of a conversation is told, in the order it happened. Lost when nobody listens: the log has the events. */
export type Signal =
  | { kind: 'events', events: StoredEvent[] }
  | { kind: 'delta', run_id: string, turn: number, json: string }
  | { kind: 'removed' }
  /** Nothing of this run is at work on this worker any more. */
  | { kind: 'stopped', worker: string, run_id: string }
  /** Something may have been missed (the connection was gone): read the log. */
  | { kind: 'gap' }

/** Wake-ups between processes. At most once, never needed for correctness. */
export interface Feed {
  /** Resolves once signals published from now on will arrive. The result stops them. */
  subscribe: (conversation: string, listener: (signal: Signal) => void) => Promise<() => void>
  /** Says that nothing of a run is at work on this worker any more. */
  announce: (conversation: string, runId: string, worker: string) => Promise<void>
  /** Messages to a worker process. */
  tell: (worker: string, note: WorkerNote) => Promise<void>
  listen: (worker: string, listener: (note: WorkerNote) => void) => Promise<() => void>
}

export type WorkerNote =
  /** Stop this work; its result would be refused. */
  | { type: 'abort', conversation: string, fence: number | null, call_ids: string[], reason: string }
  /** Announce it as soon as nothing of this run is at work with you any more. */
  | { type: 'report', conversation: string, run_id: string }
  /** You hold a claim on this conversation: if you do not know of it, say so by a lapse. */
  | { type: 'check', conversation: string }
  /** Notes may have been missed: the connection was gone. */
  | { type: 'missed' }

/** Who is alive. A worker's claims hold as long as its sign does. */
export interface Presence {
  /** Renews a worker's sign of life for `ttlMs`. */
  beat: (worker: string, ttlMs: number) => Promise<void>
  leave: (worker: string) => Promise<void>
  /** For each of `workers`, how many milliseconds its sign of life still holds; 0: it has none. */
  left: (workers: string[]) => Promise<number[]>
}

/** How often things may begin, over all processes. */
export interface Limiter {
  /**
   * Takes the next place of `name` in a strict sliding window: never more than `max` (1 to 10,000) begin within any `perMs` (whole
   * milliseconds, at least 1), first come first served. Resolves with how many milliseconds to wait; 0: begin now, and at once. One round
   * trip. Who has waited asks again and says that it has a place (`placed`): it keeps that however late it comes, and waits once more only as long
   * as others, who were late, still fill the window. A place that is taken is used up also if nobody begins. All who use a name give the same
   * numbers; when they change, the new ones are kept from the next place on, counting no more of the earlier places than the old ones made known.
   */
  reserve: (name: string, max: number, perMs: number, placed?: boolean) => Promise<number>
}
