import type { CallOutcome } from './command.js'
import { abortWorker, append, docNames, drop, elapsed, emit, iso, put, type Draft, type Piece } from './draft.js'
import { asGiven, putIn } from './references.js'
import { fillResources } from './resources.js'
import type { CallError, CallStatus } from './run.js'
import { isOpen, type ActiveRun, type BatchPhase, type CallState } from './state.js'

/** The batch that is open; null: none is. */
export function openBatch ({ state }: Draft): BatchPhase | null {
  return state.run?.phase.type === 'batch' ? state.run.phase : null
}

/** Starts a call: from here on its worker, or the client, has it. */
export function startCall (draft: Draft, run: ActiveRun, phase: BatchPhase, call: CallState): void {
  // A plain assignment would lose a tool named `__proto__`.
  if (call.rules.max_calls !== undefined && call.attempt === 0) run.used = { ...run.used, [call.name]: usedOf(run, call) + 1 }
  call.attempt++
  call.since = draft.now
  call.started_at ??= draft.now
  call.placed = false
  call.status = 'running'
  call.cause = emit(draft, run, 'tool.started', { turn: phase.turn, batch_id: phase.id, call_id: call.id, caused_by: [call.cause] }, {
    name: call.name, arguments: call.arguments ?? {}, attempt: call.attempt
  })
  call.arguments = null
}

/** Whether a call would be one too many of its tool (E15). Those that wait for a rate limit will be started, and count; so do those `beside` it. */
export function isUsedUp (run: ActiveRun, phase: BatchPhase, call: CallState, beside: CallState[] = []): boolean {
  const limit = call.rules.max_calls
  if (limit === undefined || call.attempt > 0 || call.placed) return false
  const promised = phase.calls.filter((one) => one.status === 'pending' && one.attempt === 0 && (one.placed || one.worker !== null))
  return usedOf(run, call) + [...promised, ...beside].filter((one) => one.name === call.name).length >= limit
}

/** Why a call is one too many of its tool. */
export const usedUp = ({ name, rules }: CallState): CallError => {
  return { code: 'max_calls', message: `${name} can be called ${rules.max_calls} times in a run, and was; go on without it` }
}

const usedOf = ({ used }: ActiveRun, { name }: CallState): number => Object.hasOwn(used, name) ? used[name] as number : 0

/**
 * What one output may put into the arguments of one call, and all outputs of a batch into those of its calls, in characters: arguments stand in the
 * row until their call starts.
 */
const MAX_ARGUMENT_CHARS = 100_000
const MAX_FILLED_CHARS = 400_000

/** Settles a call with what came of it. Its output goes into the arguments of the calls that refer to it (E10). `operation`: the request that brought it. */
export function completeCall (draft: Draft, run: ActiveRun, phase: BatchPhase, call: CallState, outcome: CallOutcome, operation?: string): void {
  if (outcome.status === 'failed') {
    failCall(draft, run, phase, call, outcome.error, outcome.text, operation)
    return
  }
  const { output, text, truncated } = outcome
  settleCall(draft, run, phase, call, 'completed', { output: truncated ? text : output, ...(truncated && { truncated }) }, { output, operation }, text)
  for (const one of phase.calls.filter(isOpen)) {
    for (const [written, id] of Object.entries(one.after)) {
      if (id === call.id) fillIn(draft, phase, one, written, output)
    }
  }
  if (call.name === run.policy.final_answer_tool) {
    const index = (id: string) => phase.calls.findIndex((other) => other.id === id)
    if (run.final === null || index(call.id) < index(run.final.call_id)) run.final = { call_id: call.id, output }
  }
}

function fillIn (draft: Draft, phase: BatchPhase, call: CallState, written: string, output: unknown): void {
  if (call.fault !== null) return
  const left = MAX_FILLED_CHARS - phase.filled
  const { value, chars, fault } = putIn(call.arguments, written, Object.keys(call.after), output, left < MAX_ARGUMENT_CHARS
    ? { chars: left, otherwise: `the outputs that the calls of this batch refer to come to more than ${MAX_FILLED_CHARS} characters; refer to parts of them, or call again in the next turn` }
    : { chars: MAX_ARGUMENT_CHARS, otherwise: `the outputs that the arguments refer to come to more than ${MAX_ARGUMENT_CHARS} characters; refer to parts of them` })
  if (fault === null) phase.filled += chars
  const { [written]: _, ...others } = call.after
  call.after = others
  if (fault !== null) call.fault = { code: 'invalid_arguments', message: fault }
  else setArguments(draft, call, (Object.keys(others).length === 0 ? asGiven(value) : value) as Record<string, unknown>)
}

/** What the call is run with, where that is not what the model wrote. */
export function setArguments (draft: Draft, call: CallState, args: Record<string, unknown>): void {
  call.arguments = args
  call.holds = fillResources(call.rules.resources ?? [], args)
  put(draft, docNames.arguments(call.id), JSON.stringify(args))
}

/** Settles a failed call. The model is told `text`; without one, the error as it is. */
export function failCall (
  draft: Draft, run: ActiveRun, phase: BatchPhase, call: CallState, error: CallError, text = JSON.stringify({ error }), operation?: string
): void {
  call.error = error
  settleCall(draft, run, phase, call, 'failed', { error }, { error, operation }, text)
}

/** Settles a call: its event, its record, and the message that enters the ledger when the batch closes (`text`; null: none). */
function settleCall (
  draft: Draft, run: ActiveRun, phase: BatchPhase, call: CallState, status: Extract<CallStatus, 'completed' | 'failed' | 'cancelled'>,
  told: Record<string, unknown>, kept: { output?: unknown, error?: CallError, reason?: string, operation?: string | undefined }, text: string | null
): void {
  const duration = call.started_at === null ? 0 : elapsed(draft, call.started_at)
  call.status = status
  call.worker = null
  call.arguments = null
  call.settled = 1 + phase.calls.filter((one) => one.settled > 0).length
  call.cause = emit(draft, run, `tool.${status}`, { turn: phase.turn, batch_id: phase.id, call_id: call.id, caused_by: [call.cause] }, {
    name: call.name, duration_ms: duration, ...told
  })
  put(draft, docNames.done(call.id), JSON.stringify({
    run_id: run.id, turn: phase.turn, batch_id: phase.id, status, attempt: call.attempt,
    started_at: call.started_at, ended_at: draft.now, duration_ms: duration, seq: call.cause, ...kept
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
    if (causedBy !== null) call.cause = causedBy
    cancelCall(draft, run, phase, call, reason)
    causes.push(call.cause)
  }
  link(draft, run, phase, keepCompleted)
  return causes
}

/** Stops a call. One that must not be stopped is left alone, and its result will come too late. */
export function cancelCall (draft: Draft, run: ActiveRun, phase: BatchPhase, call: CallState, reason: string): void {
  // What has only asked for its place has not begun: there is nothing to leave to finish.
  if (call.rules.uncancellable !== true || call.status === 'pending') abortWorker(draft, call.worker, null, [call.id], reason)
  settleCall(draft, run, phase, call, 'cancelled', { reason }, { reason }, leavesTombstone(run, call) ? TOMBSTONE : null)
}

const TOMBSTONE = JSON.stringify({ error: { code: 'cancelled', message: 'this call was cancelled before it gave a result; what it had started may have taken effect' } })

/** Whether a cancelled call keeps its place in the ledger (`tool_policy.cancelled_calls`). */
function leavesTombstone ({ policy }: ActiveRun, call: CallState): boolean {
  return policy.cancelled_calls === 'tombstone' || (policy.cancelled_calls === 'tombstone_started' && call.rules.effects === 'write' && call.started_at !== null)
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
