import { completeCall, failCall, isUsedUp, setArguments, startCall, usedUp } from './batch.js'
import type { Decide, Decision, SubmitOutputs } from './command.js'
import { docNames, elapsed, emit, iso, put, type Draft } from './draft.js'
import { awaited, suspendable } from './schedule.js'
import { isOpen, type ActiveRun, type BatchPhase, type CallState, type Suspension } from './state.js'
import type { Refusal } from './transition.js'

/** Raises the calls that wait for a person or the client, as one suspension (J1, J3). From here on no worker and no lock is held for them. */
export function suspend (draft: Draft, run: ActiveRun, phase: BatchPhase): boolean {
  const calls = suspendable(run, phase, draft.now)
  if (calls.length === 0) return false
  const handedOut: CallState[] = []
  for (const call of calls) {
    // Of several consents the first may be refused, and leave the last call there may be to the next: all are asked for, unless there is none left.
    const isClients = awaited(call) === 'client_tool'
    if (isUsedUp(run, phase, call, isClients ? handedOut : [])) call.fault = usedUp(call)
    else if (isClients) handedOut.push(call)
  }
  // Those that are one too many fail before anybody is asked.
  if (calls.some((call) => call.fault !== null)) return true
  const id = `susp_${phase.id.slice('batch_'.length)}${++phase.suspensions}`
  const place = { turn: phase.turn, batch_id: phase.id }
  for (const call of calls) {
    const left = awaited(call) === 'approval' ? call.rules.approval : call.rules.client
    call.expires_at = left?.expires_ms == null ? null : draft.now + left.expires_ms
    if (awaited(call) !== 'client_tool') continue
    // The client is handed it now: for a call of its own that is the start.
    const { arguments: shown } = call
    startCall(draft, run, phase, call)
    call.arguments = shown
  }
  for (const call of calls) call.status = 'suspended'
  const asking = questions(calls)
  const created = emit(draft, run, 'suspension.created', { ...place, caused_by: calls.map((call) => call.cause) }, { suspension_id: id, ...asking })
  phase.suspension = { id, created_at: draft.now, cause: created, expired: false }
  put(draft, docNames.suspension(id), JSON.stringify({ run_id: run.id, calls: calls.map((call) => call.id) }))
  run.status = 'requires_action'
  emit(draft, run, 'run.requires_action', { caused_by: [created] }, { suspension_id: id, kind: asking.kind })
  return true
}

/** What is asked of people and of the client, for calls of a suspension that are to be answered. */
export interface Questions {
  kind: 'approval' | 'client_tools' | 'mixed'
  calls: { call_id: string, name: string, arguments: Record<string, unknown>, kind: 'approval' | 'client_tool' }[]
  /** When the first of them is too late to answer; null: never. */
  expires_at: string | null
}

/** `calls`: those that are still to be answered. */
export function questions (calls: CallState[]): Questions {
  const shown = calls.map((call) => ({ call_id: call.id, name: call.name, arguments: call.arguments ?? {}, kind: awaited(call) ?? 'approval' as const }))
  const kinds = new Set(shown.map((call) => call.kind))
  const times = calls.flatMap((call) => call.expires_at ?? [])
  return {
    kind: kinds.size > 1 ? 'mixed' : kinds.has('approval') ? 'approval' : 'client_tools',
    calls: shown,
    expires_at: times.length === 0 ? null : iso(Math.min(...times))
  }
}

/** The calls that are still to be answered. */
export const unanswered = (phase: BatchPhase): CallState[] => phase.calls.filter((call) => call.status === 'suspended' && !isConsented(call))

/** Takes what a person has decided. Consents are kept until nothing is undecided any more; everything else settles its call at once. */
export function decide (draft: Draft, command: Decide): Refusal | null {
  const found = suspensionOf(draft, command.run_id)
  if (found?.suspension.id !== command.suspension_id) return 'suspension_resolved'
  const { run, phase, suspension } = found
  const calls = command.decisions.map((decision) => ({ decision, call: phase.calls.find((call) => call.id === decision.call_id) }))
  if (calls.some(({ call }) => call === undefined)) return 'not_found'
  if (calls.some(({ call }) => !isUndecided(call as CallState) || isTooLate(draft, call as CallState))) return 'call_settled'
  for (const { decision, call } of calls) {
    record(draft, call as CallState, {
      suspension_id: suspension.id, decision: decision.decision, operation: command.operation, ...('reason' in decision && { reason: decision.reason })
    })
    takeDecision(draft, run, phase, call as CallState, decision)
  }
  return null
}

function takeDecision (draft: Draft, run: ActiveRun, phase: BatchPhase, call: CallState, decision: Decision): void {
  switch (decision.decision) {
    case 'approve':
      Object.assign(call, { approved: true, expires_at: null })
      return
    case 'edit':
      Object.assign(call, { approved: true, expires_at: null })
      setArguments(draft, call, decision.arguments)
      // What the model is told it asked for is what was done.
      put(draft, docNames.call(call.id), JSON.stringify({
        call_id: call.id, name: call.name, arguments: decision.arguments, ...(decision.provider_id !== undefined && { provider_id: decision.provider_id })
      }))
      return
    case 'reject': {
      const because = decision.reason === null ? '' : `: ${decision.reason}`
      failCall(draft, run, phase, call, { code: 'rejected', message: `a person has rejected this call${because}` })
      return
    }
    case 'answer':
      completeCall(draft, run, phase, call, decision.outcome)
  }
}

/** Takes the results of calls that the client has run. */
export function submitOutputs (draft: Draft, command: SubmitOutputs): Refusal | null {
  const found = suspensionOf(draft, command.run_id)
  if (found === null) return 'call_settled'
  const { run, phase } = found
  const calls = command.outputs.map(({ call_id: id, outcome }) => ({ outcome, call: phase.calls.find((call) => call.id === id) }))
  const open = unanswered(phase).filter((call) => awaited(call) === 'client_tool' && !isTooLate(draft, call))
  if (calls.some(({ call }) => call === undefined || !open.includes(call))) return 'call_settled'
  for (const { call, outcome } of calls) completeCall(draft, run, phase, call as CallState, outcome, command.operation)
  return null
}

/** Calls whose time to be answered is over fail, and say that nobody answered: that is no person's no (J14). */
export function expire (draft: Draft, run: ActiveRun, phase: BatchPhase): boolean {
  const { suspension } = phase
  if (suspension === null) return false
  const late = unanswered(phase).filter((call) => isTooLate(draft, call))
  for (const call of late) {
    suspension.expired = true
    if (awaited(call) === 'approval') {
      record(draft, call, { suspension_id: suspension.id, decision: 'expired' })
      failCall(draft, run, phase, call, { code: 'rejected', message: 'nobody decided on this call in time, so it was not run' })
    } else {
      failCall(draft, run, phase, call, { code: 'timeout', message: 'the client gave no output for this call in time' })
    }
  }
  return late.length > 0
}

/** Once everything is decided, the run goes on: what was consented to starts, in the same commit (J4). */
export function resume (draft: Draft, run: ActiveRun, phase: BatchPhase): boolean {
  const { suspension } = phase
  if (suspension === null || phase.calls.some((call) => call.status === 'suspended' && !isConsented(call))) return false
  const resolved = resolve(draft, run, phase, suspension.expired ? 'expired' : 'decided')
  for (const call of phase.calls) if (call.status === 'suspended') call.status = 'pending'
  emit(draft, run, 'run.resumed', { caused_by: [resolved] }, {})
  return true
}

/** Ends a suspension. The calls in it are the caller's business. */
export function resolve (draft: Draft, run: ActiveRun, phase: BatchPhase, outcome: 'decided' | 'expired' | 'superseded'): number {
  const { id, cause, created_at: createdAt } = phase.suspension as Suspension
  phase.suspension = null
  run.status = 'running'
  run.paused_ms += elapsed(draft, createdAt)
  return emit(draft, run, 'suspension.resolved', { turn: phase.turn, batch_id: phase.id, caused_by: [cause] }, { suspension_id: id, outcome })
}

/** A consent that a person has given, and that waits for the others. */
const isConsented = (call: CallState): boolean => call.rules.approval !== undefined && call.approved && call.attempt === 0

/** Its time to be answered is over, whether or not anybody has looked since. */
const isTooLate = ({ now }: Draft, call: CallState): boolean => call.expires_at !== null && call.expires_at <= now

const isUndecided = (call: CallState): boolean => isOpen(call) && call.status === 'suspended' && awaited(call) === 'approval'

function suspensionOf ({ state }: Draft, runId: string): { run: ActiveRun, phase: BatchPhase, suspension: Suspension } | null {
  const { run } = state
  if (run?.id !== runId || run.phase.type !== 'batch' || run.phase.suspension === null) return null
  return { run, phase: run.phase, suspension: run.phase.suspension }
}

/** Keeps what was decided, for whoever decides on the same call after it. */
export function record (draft: Draft, call: CallState, decided: Record<string, unknown>): void {
  put(draft, docNames.decision(call.id), JSON.stringify({ call_id: call.id, decided_at: iso(draft.now), ...decided }))
}
