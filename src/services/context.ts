import { notFound, unavailable, versionConflict } from '../errors.js'
import { ConflictError, UnavailableError, type Executed } from '../engine/execute.js'
import type { Clock, Hints, Ids, Settings } from '../engine/ports.js'
import type { Tools } from '../engine/tools/tool.js'
import type { Keys } from '../store/keys.js'
import type { Feed, Presence, Reads, Row, Store } from '../store/store.js'
import type { Upkeep } from '../store/upkeep.js'
import type { Caller } from './services.js'

/** What the services are made of. */
export interface Context {
  store: Store
  /** Reads for whoever has time: they may be large, and last longer than a request can wait. */
  reads: Reads
  feed: Feed
  keys: Keys
  executed: Executed
  presence: Presence
  upkeep: Upkeep
  hints: Hints
  settings: Pick<Settings, 'leaseMs'>
  tools: Tools
  clock: Clock
  ids: Ids
  /** The model of runs that name none; null: they must name one. */
  defaultModel: string | null
  /** `false`: every run's calls go one at a time (FEATURE_PARALLEL_TOOLS). */
  parallelTools: boolean
}

/** Turns the engine's errors into what a client is told. Anything else is ours, and passes as it is. */
export async function answering<T> (task: () => Promise<T>): Promise<T> {
  try {
    return await task()
  } catch (error) {
    if (error instanceof ConflictError) throw versionConflict()
    if (error instanceof UnavailableError || isConnectionError(error)) throw unavailable({ cause: error })
    throw error
  }
}

/** ioredis says in many ways that Redis is not there. */
function isConnectionError (error: unknown): boolean {
  if (!(error instanceof Error)) return false
  return /^(MaxRetriesPerRequestError|ReplyError|AbortError|ClusterAllFailedError)$/.test(error.name) ||
    /Connection is closed|Command timed out|isn't writeable|Stream isn't|ECONNREFUSED|ECONNRESET|EPIPE|ENOENT|Socket closed|Socket timeout|LOADING|CLUSTERDOWN/i.test(error.message)
}

/** The row of a conversation, if it is the caller's. */
export async function rowOf ({ store }: Pick<Context, 'store'>, caller: Caller, conversation: string): Promise<Row> {
  const row = await store.load(conversation)
  if (row === null || row.state.tenant !== caller.tenant) throw notFound('conversation')
  return row
}

/** The conversation a run belongs to, if it is the caller's. */
export async function conversationOf ({ store }: Pick<Context, 'store'>, caller: Caller, runId: string): Promise<string> {
  const conversation = await store.findRun(caller.tenant, runId)
  if (conversation === null) throw notFound('run')
  return conversation
}
