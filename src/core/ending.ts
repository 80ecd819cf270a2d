import { closeEarly } from './batch.js'
import { deliver, supersede } from './delivery.js'
import { abortWorker, docNames, drop, emit, nextFence, recordEnd, type Draft } from './draft.js'
import type { EndStatus, RunError, StopReason, Usage } from './run.js'
import { isOpen, type ActiveRun, type QueuedRun } from './state.js'
import { resolve } from './suspension.js'

/** Ends the active run: whatever still works for it is stopped, what it has finished stays in the ledger, and its terminal event is its last. */
export function endRun (draft: Draft, run: ActiveRun, status: EndStatus, causedBy: number[], end: {
  output?: unknown, error?: RunError, stop_reason?: StopReason | null, reason?: string
}): void {
  const { state } = draft
  const { phase } = run
  const why = end.reason ?? end.stop_reason ?? status
  const workers = phase.type === 'turn' ? [phase.worker] : phase.calls.map((call) => isOpen(call) ? call.worker : null)
  const busy = [...new Set(workers.filter((worker) => worker !== null))]
  let causes = causedBy
  if (phase.type === 'turn') {
    abortWorker(draft, phase.worker, phase.fence, [], why)
    const stopped = status === 'cancelled' || end.stop_reason === 'run_timeout'
    if (stopped && phase.attempt > 0) {
      causes = [emit(draft, run, 'turn.cancelled', { turn: phase.turn, caused_by: phase.caused_by }, { reason: why })]
    }
  } else if (phase.calls.some(isOpen)) {
    if (phase.suspension !== null) resolve(draft, run, phase, 'superseded')
    causes = closeEarly(draft, run, phase, why, null, true)
  }
  // Whatever was accepted reaches the model: with the next run, if not with this one.
  deliver(draft, run, state.waiting.filter((message) => message.run_id === run.id && message.due_at === null))
  for (const message of state.waiting) if (message.run_id === run.id) message.run_id = null
  emit(draft, run, `run.${status}`, { caused_by: causes }, terminal(end, run.usage))
  recordEnd(draft, run.id, {
    status,
    started_at: run.started_at,
    ended_at: draft.now,
    output: end.output ?? null,
    usage: run.usage,
    error: end.error ?? null,
    stop_reason: end.stop_reason ?? null,
    reason: end.reason ?? null,
    ...(busy.length > 0 && { workers: busy }),
    last_seq: state.seq,
    turn: run.turns === 0 ? null : state.turn,
    turns: run.turns,
    run_seq: run.run_seq
  })
  state.run = null
  nextFence(draft)
}

/** Ends a run that never became active. */
export function endQueuedRun (draft: Draft, run: QueuedRun, reason: string): void {
  const { state } = draft
  const usage: Usage = { input_tokens: 0, output_tokens: 0, total_tokens: 0, llm_calls: 0, tool_calls: 0 }
  emit(draft, run, 'run.cancelled', { caused_by: [run.cause] }, terminal({ reason }, usage))
  recordEnd(draft, run.id, {
    status: 'cancelled', started_at: null, ended_at: draft.now, output: null, usage, error: null, stop_reason: null, reason,
    last_seq: state.seq,
    turn: null, turns: 0, run_seq: run.run_seq
  })
  for (const id of run.inputs) drop(draft, docNames.input(id))
  for (const message of state.waiting) if (message.run_id === run.id) message.run_id = null
  state.queue = state.queue.filter((one) => one.id !== run.id)
}

/** Ends a run as if it had never been: the ledger is cut back to where it began. */
export function rollBack (draft: Draft, run: ActiveRun, causedBy: number): void {
  const { state } = draft
  supersede(draft, run, state.waiting.filter((message) => message.run_id === run.id), [causedBy])
  endRun(draft, run, 'cancelled', [causedBy], { reason: 'rolled_back' })
  draft.messages = []
  draft.rewind = run.ledger_start
  state.messages = run.ledger_start
  state.rewinds++
}

function terminal (end: { output?: unknown, error?: RunError, stop_reason?: StopReason | null, reason?: string }, usage: Usage): Record<string, unknown> {
  return {
    output: end.output ?? null, usage, stop_reason: end.stop_reason ?? null, error: end.error ?? null,
    ...(end.reason !== undefined && { reason: end.reason })
  }
}
