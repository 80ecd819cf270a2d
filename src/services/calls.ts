import { docNames, iso } from '../core/draft.js'
import type { LedgerCall } from '../core/message.js'
import type { CallError, CallStatus } from '../core/run.js'
import type { CallState, RunEnd } from '../core/state.js'
import { noCursor, notFound } from '../errors.js'
import type { Call } from '../schemas/run.js'
import type { Reads, Row } from '../store/store.js'
import type { Context } from './context.js'
import type { Page } from './services.js'

/** What stands beside the row of a turn's batch, and of a settled call. */
interface BatchDoc { run_id: string, batch_id: string, calls: string[] }
interface DoneDoc {
  run_id: string
  turn: number
  batch_id: string
  status: CallStatus
  attempt: number
  started_at: number | null
  ended_at: number
  duration_ms: number
  output?: unknown
  error?: CallError
  reason?: string
}

/** Every call of a run, turn by turn, in request order. */
export async function listCalls (
  { store, reads }: Pick<Context, 'store' | 'reads'>, conversation: string, runId: string, { cursor, limit }: { cursor?: string, limit: number }
): Promise<Page<Call>> {
  const [row, [end]] = await Promise.all([store.load(conversation), store.docs(conversation, [docNames.end(runId)])])
  if (row === null) throw notFound('run')
  const turns = turnsOf(row, runId, end == null ? null : JSON.parse(end) as RunEnd)
  const batches = await store.docs(conversation, turns.map(docNames.batch))
  const ids = batches.flatMap((json) => json === null ? [] : (JSON.parse(json) as BatchDoc).calls)
  const from = cursor === undefined ? 0 : ids.indexOf(cursor) + 1
  if (cursor !== undefined && from === 0) throw noCursor()
  const page = ids.slice(from, from + limit)
  const data = await readCalls(reads, conversation, row, page)
  return { data, next_cursor: from + limit < ids.length ? page.at(-1) ?? null : null }
}

/** One call of a run, as it is now. Throws `not_found`. */
export async function readCall ({ store, reads }: Pick<Context, 'store' | 'reads'>, conversation: string, runId: string, callId: string): Promise<Call> {
  const row = await store.load(conversation)
  const [call] = row === null ? [] : await readCalls(reads, conversation, row, [callId])
  if (call?.run_id !== runId) throw notFound('call')
  return call
}

async function readCalls (reads: Pick<Reads, 'docs'>, conversation: string, row: Row, ids: string[]): Promise<Call[]> {
  const texts = await reads.docs(conversation, ids.flatMap((id) => [docNames.call(id), docNames.done(id)]))
  const run = row.state.run
  return ids.flatMap((id, i): Call[] => {
    const asked = texts[2 * i]
    if (asked == null) return []
    const { name, arguments: args } = JSON.parse(asked) as LedgerCall
    const done = texts[2 * i + 1]
    if (done != null) return [settled(id, name, args, JSON.parse(done) as DoneDoc)]
    const phase = run?.phase.type === 'batch' ? run.phase : null
    const open = phase?.calls.find((call) => call.id === id)
    if (run === null || phase === null || open === undefined) return []
    return [pending(open, args, run.id, phase.turn, phase.id)]
  })
}

function settled (callId: string, name: string, args: unknown, done: DoneDoc): Call {
  return {
    call_id: callId,
    run_id: done.run_id,
    turn: done.turn,
    batch_id: done.batch_id,
    name,
    arguments: args,
    status: done.status,
    attempt: done.attempt,
    started_at: done.started_at === null ? null : iso(done.started_at),
    ended_at: iso(done.ended_at),
    duration_ms: done.duration_ms,
    output: done.output ?? null,
    error: done.error ?? null,
    reason: done.reason ?? null
  }
}

function pending (call: CallState, args: unknown, runId: string, turn: number, batchId: string): Call {
  return {
    call_id: call.id,
    run_id: runId,
    turn,
    batch_id: batchId,
    name: call.name,
    arguments: args,
    status: call.status,
    attempt: call.attempt,
    started_at: call.started_at === null ? null : iso(call.started_at),
    ended_at: null,
    duration_ms: null,
    output: null,
    error: null,
    reason: null
  }
}

/** The turns of a run: a conversation has one active run, so they follow each other. */
function turnsOf ({ state }: Row, runId: string, end: RunEnd | null): number[] {
  const [last, count] = end !== null ? [end.turn ?? 0, end.turns] : state.run?.id === runId ? [state.turn, state.run.turns] : [0, 0]
  return Array.from({ length: count }, (_, i) => last - count + 1 + i)
}
