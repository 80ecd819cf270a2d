import { abortWorker, append, docNames, drop, emit, iso, put, type Draft, type Piece } from './draft.js'
import type { CallError, CallStatus } from './run.js'
import { isOpen, type ActiveRun, type BatchPhase, type CallState } from './state.js'

export function openBatch ({ state }: Draft): BatchPhase | null {
  return state.run?.phase.type === 'batch' ? state.run.phase : null
}

/** Settles a failed call. The model is told `text`; without one, the error as it is. */
export function failCall (draft: Draft, run: ActiveRun, phase: BatchPhase, call: CallState, error: CallError, text = JSON.stringify({ error })): void {
  call.error = error
  settleCall(draft, run, phase, call, 'failed', { error }, { error }, text)
}

/** Settles a call: its event, its record, and the message that enters the ledger when the batch closes (`text`; null: none). */
export function settleCall (
  draft: Draft, run: ActiveRun, phase: BatchPhase, call: CallState, status: Extract<CallStatus, 'completed' | 'failed' | 'cancelled'>,
  told: Record<string, unknown>, kept: { output?: unknown, error?: CallError, reason?: string }, text: string | null
): void {
  const duration = call.started_at === null ? 0 : draft.now - call.started_at
  call.status = status
  call.worker = null
  call.arguments = null
  call.settled = 1 + phase.calls.filter((one) => one.settled > 0).length
  call.cause = emit(draft, run, `tool.${status}`, { turn: phase.turn, batch_id: phase.id, call_id: call.id, caused_by: [call.cause] }, {
    name: call.name, duration_ms: duration, ...told
  })
  put(draft, docNames.done(call.id), JSON.stringify({
    run_id: run.id, turn: phase.turn, batch_id: phase.id, status, attempt: call.attempt,
    started_at: call.started_at, ended_at: draft.now, duration_ms: duration, ...kept
  }))
  if (text === null) return
  const message = {
    id: `msg_${call.id.slice('call_'.length)}`, role: 'tool', content: text, turn: phase.turn, run_id: run.id, created_at: iso(draft.now),
    tool_call_id: call.id, name: call.name
  }
  put(draft, docNames.message(call.id), JSON.stringify(message))
}

/** Cancels the unsettled calls of a batch and moves what stays of it into the ledger. Returns the cancellations' `seq`s. */
export function closeEarly (draft: Draft, run: ActiveRun, phase: BatchPhase, reason: string, causedBy: number | null, keepCompleted: boolean): number[] {
  const causes: number[] = []
  for (const call of phase.calls.filter(isOpen)) {
    abortWorker(draft, call.worker, null, [call.id], reason)
    if (causedBy !== null) call.cause = causedBy
    const text = leavesTombstone(run, call) ? TOMBSTONE : null
    settleCall(draft, run, phase, call, 'cancelled', { reason }, { reason }, text)
    causes.push(call.cause)
  }
  link(draft, run, phase, keepCompleted)
  return causes
}

const TOMBSTONE = JSON.stringify({ error: { code: 'cancelled', message: 'this call was cancelled before it gave a result; what it had started may have taken effect' } })

/** Whether a cancelled call keeps its place in the ledger (`tool_policy.cancelled_calls`). */
function leavesTombstone ({ policy }: ActiveRun, call: CallState): boolean {
  return policy.cancelled_calls === 'tombstone' || (policy.cancelled_calls === 'tombstone_started' && call.effects === 'write' && call.started_at !== null)
}

/**
 * Moves a batch into the ledger: the assistant message with the calls that have a result, then their results. Calls without one
 * leave no trace; a message none of whose calls has one does not enter at all.
 */
export function link (draft: Draft, run: ActiveRun, phase: BatchPhase, keepCompleted = true): void {
  const kept = phase.calls.filter((call) => call.status === 'cancelled' ? leavesTombstone(run, call) : keepCompleted)
  if (kept.length > 0) {
    const calls = kept.flatMap((call, index): Piece[] => [index === 0 ? '"tool_calls":[' : ',', { doc: docNames.call(call.id) }])
    append(draft, [{ doc: docNames.text(phase.turn) }, ...calls, ']}'])
    const answers = run.policy.message_order === 'completion' ? [...kept].sort((a, b) => a.settled - b.settled) : kept
    for (const call of answers) append(draft, [{ doc: docNames.message(call.id) }])
  }
  for (const call of phase.calls) if (call.status !== 'cancelled' || leavesTombstone(run, call)) drop(draft, docNames.message(call.id))
  drop(draft, docNames.text(phase.turn))
}
