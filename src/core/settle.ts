import { append, drop, docNames, emit, iso, put, recordEnd, type Draft, type Piece } from './draft.js'
import type { CallError, CallStatus, EndStatus, RunError, StopReason, Usage } from './run.js'
import { room } from './schedule.js'
import { isOpen, type ActiveRun, type BatchPhase, type CallState, type QueuedRun, type TurnPhase } from './state.js'

/**
 * Draws the consequences of what was recorded, rule by rule, until none has anything left to do. Order of arrival stops mattering
 * here: a result records a result, and a rule sees that the batch has settled. Every rule looks at the state alone, so drawing them
 * again changes nothing.
 */
export function settle (draft: Draft): boolean {
  let changed = false
  while (RULES.some((rule) => rule(draft))) changed = true
  return changed
}

type Rule = (draft: Draft) => boolean

const RULES: Rule[] = [
  /** The first waiting run whose time has come becomes the active one; its input enters the ledger. */
  function activateRun (draft) {
    const { state, now } = draft
    if (state.run !== null) return false
    const next = state.queue.find((run) => run.due_at === null || run.due_at <= now)
    if (next === undefined) return false
    state.queue = state.queue.filter((run) => run !== next)
    const { inputs, ...facts } = next
    const turn = state.turn + 1
    inputs.forEach((id, index) => {
      const name = docNames.input(next.id, index)
      const head = JSON.stringify({ id, role: 'user', turn, run_id: next.id, created_at: iso(now) })
      append(draft, [head.slice(0, -1) + ',"content":', { doc: name }, '}'])
      drop(draft, name)
    })
    const usage: Usage = { input_tokens: 0, output_tokens: 0, total_tokens: 0, llm_calls: 0, tool_calls: 0 }
    state.run = { ...facts, status: 'queued', started_at: null, usage, turns: 0, phase: dueTurn(turn, now, [next.cause]), final: null }
    return true
  },

  /** All calls that may start now are dispatched, in request order, before any of them works. */
  function dispatchCalls (draft) {
    const phase = openBatch(draft)
    if (phase === null) return false
    const run = draft.state.run as ActiveRun
    const ready = phase.calls.filter((call) => call.status === 'pending' && call.fault === null).slice(0, room(run, phase))
    for (const call of ready) {
      call.status = 'running'
      call.attempt++
      call.since = draft.now
      call.started_at ??= draft.now
      call.cause = emit(draft, run, 'tool.started', { turn: phase.turn, batch_id: phase.id, call_id: call.id, caused_by: [call.cause] }, {
        name: call.name, arguments: call.arguments ?? {}, attempt: call.attempt
      })
      call.arguments = null
    }
    return ready.length > 0
  },

  /** Calls that cannot run at all fail, once those that can have been dispatched. */
  function failFaultyCalls (draft) {
    const phase = openBatch(draft)
    if (phase === null) return false
    const faulty = phase.calls.filter((call) => call.status === 'pending' && call.fault !== null)
    for (const call of faulty) failCall(draft, draft.state.run as ActiveRun, phase, call, call.fault as CallError)
    return faulty.length > 0
  },

  /** Dispatched calls that nobody runs yet are given to the executor, as far as it has room. */
  function claimCalls (draft) {
    const { executor } = draft
    const phase = openBatch(draft)
    if (phase === null || executor === null || executor.calls <= 0) return false
    const free = phase.calls.filter((call) => call.status === 'running' && call.worker === null && (executor.spread || call.placement === 'local'))
    const taken = free.slice(0, executor.calls)
    if (taken.length === 0) return false
    for (const call of taken) Object.assign(call, { worker: executor.worker, since: draft.now })
    executor.calls -= taken.length
    draft.effects.push({ type: 'run_calls', calls: taken.map((call) => ({ call_id: call.id, attempt: call.attempt })) })
    return true
  },

  /** The barrier: once every call is settled, the batch enters the ledger as one, and the run goes on or ends. */
  function closeBatch (draft) {
    const phase = openBatch(draft)
    if (phase === null || phase.calls.some(isOpen)) return false
    const run = draft.state.run as ActiveRun
    link(draft, run, phase)
    const counts = { completed: 0, failed: 0, cancelled: 0 }
    for (const call of phase.calls) counts[call.status as keyof typeof counts]++
    const closed = emit(draft, run, 'batch.completed', { turn: phase.turn, batch_id: phase.id, caused_by: phase.calls.map((call) => call.cause) }, {
      duration_ms: draft.now - phase.started_at, counts
    })
    const failures = phase.calls.filter((call) => call.status === 'failed').sort((a, b) => a.settled - b.settled)
    const [first] = failures
    if (run.final !== null) {
      endRun(draft, run, 'completed', [closed], { output: run.final.output })
    } else if (first !== undefined && run.policy.on_error === 'fail_run') {
      endRun(draft, run, 'failed', [closed], {
        error: {
          code: 'tool_failed',
          message: `tool call ${first.id} (${first.name}) failed: ${first.error?.message ?? ''}`,
          retryable: false,
          failures: failures.map((call) => ({ call_id: call.id, name: call.name, code: call.error?.code ?? '', message: call.error?.message ?? '' }))
        }
      })
    } else if (run.turns >= run.limits.max_turns) {
      endRun(draft, run, 'incomplete', [closed], { stop_reason: 'max_turns' })
    } else if (run.limits.max_total_tokens !== null && run.usage.total_tokens >= run.limits.max_total_tokens) {
      endRun(draft, run, 'incomplete', [closed], { stop_reason: 'max_total_tokens' })
    } else {
      run.phase = dueTurn(phase.turn + 1, draft.now, [closed])
    }
    return true
  },

  /** A due turn is given to the executor, with a new fence. */
  function claimTurn (draft) {
    const { state, executor, now } = draft
    const { run } = state
    if (executor === null || !executor.turn || run?.phase.type !== 'turn') return false
    const { phase } = run
    if (phase.worker !== null || phase.ready_at > now) return false
    if (run.started_at === null) {
      run.started_at = now
      run.status = 'running'
      phase.caused_by = [emit(draft, run, 'run.started', { caused_by: phase.caused_by }, {})]
    }
    phase.attempt++
    phase.tries++
    phase.worker = executor.worker
    phase.fence = ++state.fence
    phase.ready_at = now
    if (phase.attempt === 1) {
      state.turn = phase.turn
      run.turns++
      phase.caused_by = [emit(draft, run, 'turn.started', { turn: phase.turn, caused_by: phase.caused_by }, {
        attempt: phase.attempt, model: run.models[phase.model], message_count: state.messages
      })]
    }
    executor.turn = false
    draft.effects.push({ type: 'call_model', turn: phase.turn, attempt: phase.attempt, fence: phase.fence })
    return true
  }
]

function openBatch ({ state }: Draft): BatchPhase | null {
  return state.run?.phase.type === 'batch' ? state.run.phase : null
}

function dueTurn (turn: number, now: number, causedBy: number[]): TurnPhase {
  return { type: 'turn', turn, attempt: 0, tries: 0, model: 0, losses: 0, worker: null, fence: 0, ready_at: now, caused_by: causedBy }
}

/** Puts a turn back: it is due again after `delayMs`, for whoever claims it then. Its old fence is worth nothing from here on. */
export function restartTurn (draft: Draft, run: ActiveRun, phase: TurnPhase, reason: string, delayMs: number): void {
  const retrying = emit(draft, run, 'turn.retrying', { turn: phase.turn, caused_by: phase.caused_by }, {
    attempt: phase.attempt + 1, reason, delay_ms: delayMs, model: run.models[phase.model]
  })
  draft.state.fence++
  Object.assign(phase, { worker: null, fence: 0, ready_at: draft.now + delayMs, caused_by: [retrying] })
}

export function abortWorker (draft: Draft, worker: string | null, fence: number | null, callIds: string[], reason: string): void {
  if (worker !== null) draft.effects.push({ type: 'abort', worker, fence, call_ids: callIds, reason })
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

/**
 * Moves a batch into the ledger: the assistant message with the calls that have a result, then their results. Calls without one
 * leave no trace; a message none of whose calls has one does not enter at all.
 */
function link (draft: Draft, run: ActiveRun, phase: BatchPhase): void {
  const kept = phase.calls.filter((call) => call.status === 'completed' || call.status === 'failed')
  if (kept.length > 0) {
    const calls = kept.flatMap((call, index): Piece[] => [index === 0 ? '"tool_calls":[' : ',', { doc: docNames.call(call.id) }])
    append(draft, [{ doc: docNames.text(phase.turn) }, ...calls, ']}'])
    const answers = run.policy.message_order === 'completion' ? [...kept].sort((a, b) => a.settled - b.settled) : kept
    for (const call of answers) append(draft, [{ doc: docNames.message(call.id) }])
  }
  for (const call of kept) drop(draft, docNames.message(call.id))
  drop(draft, docNames.text(phase.turn))
}

/** Ends the active run: whatever still works for it is stopped, what it has finished stays in the ledger, and its terminal event is its last. */
export function endRun (draft: Draft, run: ActiveRun, status: EndStatus, causedBy: number[], end: {
  output?: unknown, error?: RunError, stop_reason?: StopReason | null, reason?: string
}): void {
  const { state } = draft
  const { phase } = run
  const why = end.reason ?? end.stop_reason ?? status
  let causes = causedBy
  if (phase.type === 'turn') {
    abortWorker(draft, phase.worker, phase.fence, [], why)
    const stopped = status === 'cancelled' || end.stop_reason === 'run_timeout'
    if (stopped && phase.attempt > 0) {
      causes = [emit(draft, run, 'turn.cancelled', { turn: phase.turn, caused_by: phase.caused_by }, { reason: why })]
    }
  } else if (phase.calls.some(isOpen)) {
    causes = []
    for (const call of phase.calls.filter(isOpen)) {
      abortWorker(draft, call.worker, null, [call.id], why)
      settleCall(draft, run, phase, call, 'cancelled', { reason: why }, { reason: why }, null)
      causes.push(call.cause)
    }
    link(draft, run, phase)
  }
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
    last_seq: state.seq,
    turn: run.turns === 0 ? null : state.turn,
    turns: run.turns,
    run_seq: run.run_seq
  })
  state.run = null
  state.fence++
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
  run.inputs.forEach((_, index) => drop(draft, docNames.input(run.id, index)))
  state.queue = state.queue.filter((one) => one.id !== run.id)
}

function terminal (end: { output?: unknown, error?: RunError, stop_reason?: StopReason | null, reason?: string }, usage: Usage): Record<string, unknown> {
  return {
    output: end.output ?? null, usage, stop_reason: end.stop_reason ?? null, error: end.error ?? null,
    ...(end.reason !== undefined && { reason: end.reason })
  }
}
