import { append, appendWaiting, docNames, drop, emit, iso, put, recordEnd, type Draft, type Piece } from './draft.js'
import type { CallError, CallStatus, EndStatus, RunError, StopReason, Usage } from './run.js'
import { room } from './schedule.js'
import { isOpen, type ActiveRun, type BatchPhase, type CallState, type QueuedRun, type TurnPhase, type WaitingMessage } from './state.js'

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
  /** Messages whose run is over enter the ledger as soon as no turn is in the way, for the next run to see. */
  function releaseLeftMessages (draft) {
    const { state } = draft
    const left = state.run === null ? state.waiting.filter((message) => message.run_id === null && message.due_at === null) : []
    deliver(draft, null, left)
    return left.length > 0
  },

  /** The first waiting run whose time has come becomes the active one; its input enters the ledger. */
  function activateRun (draft) {
    const { state, now } = draft
    if (state.run !== null) return false
    const next = state.queue.find((run) => run.due_at === null || run.due_at <= now)
    if (next === undefined) return false
    state.queue = state.queue.filter((run) => run !== next)
    const { inputs, ...facts } = next
    const turn = state.turn + 1
    const start = state.messages
    for (const id of inputs) appendWaiting(draft, id, turn, next.id)
    const usage: Usage = { input_tokens: 0, output_tokens: 0, total_tokens: 0, llm_calls: 0, tool_calls: 0 }
    state.run = {
      ...facts, status: 'queued', started_at: null, ledger_start: start, usage, turns: 0, answers: 0, phase: dueTurn(turn, now, [next.cause]), final: null
    }
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
    if (run.final === null && first !== undefined && run.policy.on_error === 'fail_run') {
      endRun(draft, run, 'failed', [closed], {
        error: {
          code: 'tool_failed',
          message: `tool call ${first.id} (${first.name}) failed: ${first.error?.message ?? ''}`,
          retryable: false,
          failures: failures.map((call) => ({ call_id: call.id, name: call.name, code: call.error?.code ?? '', message: call.error?.message ?? '' }))
        }
      })
    } else {
      concludeTurn(draft, run, [closed], run.final)
    }
    return true
  },

  /** A turn that would pass a limit does not become one, whatever made it due: the run ends instead. */
  function keepLimits (draft) {
    const { run } = draft.state
    if (run?.phase.type !== 'turn' || run.phase.attempt > 0) return false
    const { max_turns: maxTurns, max_total_tokens: maxTokens } = run.limits
    const reached = run.answers >= maxTurns ? 'max_turns' : maxTokens !== null && run.usage.total_tokens >= maxTokens ? 'max_total_tokens' : null
    if (reached !== null) endRun(draft, run, 'incomplete', run.phase.caused_by, { stop_reason: reached })
    return reached !== null
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
    // From here on it may have to be paid for, whatever becomes of it.
    run.usage.llm_calls++
    phase.worker = executor.worker
    phase.fence = ++state.fence
    phase.ready_at = now
    if (phase.attempt === 1) {
      const messages = state.waiting.filter((message) => message.run_id === run.id && message.mode === 'steer' && message.due_at === null)
      const delivered = deliver(draft, run, messages)
      state.turn = phase.turn
      run.turns++
      phase.caused_by = [emit(draft, run, 'turn.started', { turn: phase.turn, caused_by: [...phase.caused_by, ...delivered] }, {
        attempt: phase.attempt, model: run.models[phase.model], message_count: state.messages
      })]
    }
    executor.turn = false
    draft.effects.push({ type: 'call_model', turn: phase.turn, attempt: phase.attempt, fence: phase.fence })
    return true
  }
]

/**
 * Delayed messages whose time has come are there to steer from now on: the active run, if there is one. Done before a command is
 * recorded, so that what was due earlier comes before what happens now.
 */
export function releaseDelayedMessages ({ state, now }: Draft): boolean {
  const due = state.waiting.filter((message) => message.due_at !== null && message.due_at <= now).sort((a, b) => (a.due_at as number) - (b.due_at as number))
  if (due.length === 0) return false
  state.waiting = [...state.waiting.filter((message) => !due.includes(message)), ...due]
  for (const message of due) {
    message.due_at = null
    message.mode = 'steer'
    // One that was posted to a run which still waits stays with it.
    if (!state.queue.some((run) => run.id === message.run_id)) message.run_id = state.run?.id ?? null
  }
  return true
}

function openBatch ({ state }: Draft): BatchPhase | null {
  return state.run?.phase.type === 'batch' ? state.run.phase : null
}

function dueTurn (turn: number, now: number, causedBy: number[]): TurnPhase {
  return { type: 'turn', turn, attempt: 0, tries: 0, model: 0, losses: 0, worker: null, fence: 0, ready_at: now, caused_by: causedBy }
}

/** What follows a turn that is over: its answer ends the run, unless a message waits for one; else the next turn is due. */
export function concludeTurn (draft: Draft, run: ActiveRun, causedBy: number[], answer: { output: unknown } | null): void {
  const { state } = draft
  const waiting = state.waiting.filter((message) => message.run_id === run.id && message.due_at === null)
  if (answer !== null && waiting.length === 0) {
    endRun(draft, run, 'completed', causedBy, { output: answer.output })
  } else {
    run.final = null
    run.phase = dueTurn(state.turn + 1, draft.now, causedBy)
    // Delivered here and not with the turn: nobody may withdraw what an answer was not final for, or the model would be asked nothing.
    if (answer !== null) run.phase.caused_by = [...causedBy, ...deliver(draft, run, waiting)]
  }
}

/** Moves messages into the ledger, in the order given. Returns their events' `seq`s. */
export function deliver (draft: Draft, run: ActiveRun | null, messages: WaitingMessage[]): number[] {
  const { state } = draft
  if (messages.length === 0) return []
  const turn = run?.phase.type === 'turn' ? run.phase.turn : null
  state.waiting = state.waiting.filter((message) => !messages.includes(message))
  return messages.map((message) => {
    appendWaiting(draft, message.id, turn ?? state.turn, message.run_id)
    return emit(draft, run, 'message.delivered', { ...(turn !== null && { turn }), caused_by: [message.cause] }, { message_id: message.id })
  })
}

/** Messages that shall not reach the model any more. They stay readable in the log. */
export function supersede (draft: Draft, run: ActiveRun | null, messages: WaitingMessage[], causedBy: number[]): void {
  const { state } = draft
  state.waiting = state.waiting.filter((message) => !messages.includes(message))
  for (const message of messages) {
    drop(draft, docNames.input(message.id))
    emit(draft, run, 'message.superseded', { caused_by: [message.cause, ...causedBy] }, { message_id: message.id })
  }
}

/** Stops what the run is doing and makes a new turn due. Returns the calls that were cancelled. */
export function interrupt (draft: Draft, run: ActiveRun, keepCompleted: boolean, causedBy: number): string[] {
  const { phase } = run
  const cancelled: string[] = []
  let causes = [causedBy]
  if (phase.type === 'turn') {
    abortWorker(draft, phase.worker, phase.fence, [], 'interrupted')
    causes = [emit(draft, run, 'turn.cancelled', { turn: phase.turn, caused_by: [...phase.caused_by, causedBy] }, { reason: 'interrupted' })]
  } else {
    cancelled.push(...phase.calls.filter(isOpen).map((call) => call.id))
    causes.push(...closeEarly(draft, run, phase, 'interrupted', causedBy, keepCompleted))
  }
  draft.state.fence++
  run.final = null
  run.phase = dueTurn(draft.state.turn + 1, draft.now, causes)
  return cancelled
}

/** Cancels the unsettled calls of a batch and moves what stays of it into the ledger. Returns the cancellations' `seq`s. */
function closeEarly (draft: Draft, run: ActiveRun, phase: BatchPhase, reason: string, causedBy: number | null, keepCompleted: boolean): number[] {
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
function link (draft: Draft, run: ActiveRun, phase: BatchPhase, keepCompleted = true): void {
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
  for (const id of run.inputs) drop(draft, docNames.input(id))
  for (const message of state.waiting) if (message.run_id === run.id) message.run_id = null
  state.queue = state.queue.filter((one) => one.id !== run.id)
}

function terminal (end: { output?: unknown, error?: RunError, stop_reason?: StopReason | null, reason?: string }, usage: Usage): Record<string, unknown> {
  return {
    output: end.output ?? null, usage, stop_reason: end.stop_reason ?? null, error: end.error ?? null,
    ...(end.reason !== undefined && { reason: end.reason })
  }
}
