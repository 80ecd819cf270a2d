import { docNames, iso } from '../core/draft.js'
import type { ActiveRun, QueuedRun, RunEnd, RunRecord } from '../core/state.js'
import { questions, unanswered } from '../core/suspension.js'
import { notFound } from '../errors.js'
import type { RunSpec } from '../engine/run-spec.js'
import type { RequiredAction } from '../schemas/action.js'
import type { Run } from '../schemas/run.js'
import type { Row, Store } from '../store/store.js'

/** A run's request as it is kept: what the engine needs, and what `GET /runs` shows. */
export interface StoredRun extends RunSpec {
  model: string
  metadata: Record<string, string>
}

const NO_USAGE = { input_tokens: 0, output_tokens: 0, total_tokens: 0, llm_calls: 0, tool_calls: 0 }
const time = (ms: number | null): string | null => ms === null ? null : iso(ms)

/** Reads a run as it is now. Null: there is none of this id in the conversation. */
export async function readRun (store: Store, conversation: string, runId: string): Promise<Run | null> {
  // In this order: once the row no longer holds the run, its end is there.
  const [row, [record, end]] = await Promise.all([store.load(conversation), store.docs(conversation, [docNames.run(runId), docNames.end(runId)])])
  if (row === null || record == null) return null
  return runView(row, runId, JSON.parse(record) as RunRecord, end == null ? null : JSON.parse(end) as RunEnd)
}

/** As `readRun`, but throws `not_found`. */
export async function requireRun (store: Store, conversation: string, runId: string): Promise<Run> {
  const run = await readRun(store, conversation, runId)
  if (run === null) throw notFound('run')
  return run
}

/** What clients see of a run: from its row while it is queued or active, from its record and how it ended (`end`) after that. */
export function runView (row: Row, runId: string, record: RunRecord, end: RunEnd | null): Run {
  const { state, version } = row
  const request = record.request as StoredRun
  const base = {
    id: runId,
    conversation_id: state.id,
    version,
    created_at: iso(record.created_at),
    model: request.model,
    required_action: null,
    metadata: request.metadata
  }
  if (end !== null) {
    return {
      ...base,
      status: end.status,
      turn: end.turn,
      started_at: time(end.started_at),
      ended_at: iso(end.ended_at),
      output: end.output,
      usage: end.usage,
      error: end.error,
      stop_reason: end.stop_reason,
      current: null
    }
  }
  const open = { ended_at: null, output: null, error: null, stop_reason: null }
  if (state.run?.id === runId) {
    const { run } = state
    return {
      ...base, ...open,
      status: run.status,
      turn: run.turns === 0 ? null : state.turn,
      started_at: time(run.started_at),
      usage: run.usage,
      required_action: requiredAction(run),
      current: currentOf(run)
    }
  }
  const queued = state.queue.find((run) => run.id === runId)
  return { ...base, ...open, status: 'queued', turn: null, started_at: null, usage: NO_USAGE, current: waitingOf(queued) }
}

function requiredAction ({ phase }: ActiveRun): RequiredAction | null {
  if (phase.type !== 'batch' || phase.suspension === null) return null
  return { suspension_id: phase.suspension.id, ...questions(unanswered(phase)) }
}

function waitingOf (run: QueuedRun | undefined): Run['current'] {
  return { phase: run?.due_at == null ? 'waiting' : 'scheduled', turn: null, calls: [] }
}

function currentOf (run: ActiveRun): Run['current'] {
  const { phase } = run
  if (phase.type === 'turn') {
    const waits = phase.attempt === 0 ? 'waiting' : 'retry'
    return { phase: phase.worker === null ? waits : 'llm', turn: phase.attempt === 0 ? null : phase.turn, calls: [] }
  }
  return {
    phase: phase.suspension === null ? 'tools' : 'action',
    turn: phase.turn,
    calls: phase.calls.map(({ id, name, status, attempt }) => ({ call_id: id, name, status, attempt }))
  }
}
