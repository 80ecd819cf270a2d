import type { BaseLogger } from 'pino'
import type { WantedJob } from '../core/schedule.js'

/** The outside world of the engine beside store, model and tools: so that a test can bring its own. */
export interface Clock {
  /** Milliseconds since 1970. */
  now: () => number
  /** Calls back after `ms`; the result cancels. */
  after: (ms: number, callback: () => void) => () => void
}

export interface Ids {
  /** A ULID: 26 characters, sortable by time, unguessable. */
  next: () => string
}

/** Where hints go: "advance this conversation". Losing one costs time, doubling one costs nothing. */
export interface Hints {
  add: (conversation: string, jobs: WantedJob[]) => Promise<void>
}

/** The right to pay for LLM calls of a conversation, for as long as `signal` has not fired. */
export interface Lease {
  /** Fires when the lease could not be renewed: whoever held it must stop. */
  signal: AbortSignal
  release: () => void
}

export interface Leases {
  /** Null: somebody else holds it. Rejects when the lock store is away. */
  acquire: (conversation: string) => Promise<Lease | null>
}

/** What the engine reports while it works: pino, or anything like it. Ids as fields, never message text or arguments. */
export type Log = Pick<BaseLogger, 'debug' | 'info' | 'warn' | 'error'>

/** How a worker works. */
export interface Settings {
  worker: string
  /** How long a claim or lease of a dead worker stands. Milliseconds. */
  leaseMs: number
  sweepMs: number
  /** Conversations advanced at once. */
  turns: number
  /** Calls run at once. */
  calls: number
  /** Calls of one batch that the worker which opened it keeps. */
  localCalls: number
  /** Tries of a turn with one model, the first included. */
  modelAttempts: number
}
