import { cancelCall, failCall, isUsedUp, link, openBatch, startCall, usedUp } from './batch.js'
import { deliver } from './delivery.js'
import { appendWaiting, elapsed, emit, nextFence, type Draft } from './draft.js'
import { endRun } from './ending.js'
import type { CallError, Usage } from './run.js'
import { awaited, placeable, startable } from './schedule.js'
import { isOpen, type ActiveRun, type CallState } from './state.js'
import { expire, resolve, resume, suspend } from './suspension.js'
import { concludeTurn, dueTurn } from './turn.js'

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
      ...facts, status: 'queued', started_at: null, ledger_start: start, usage, turns: 0, answers: 0, phase: dueTurn(turn, now, [next.cause]), final: null,
      used: {}, paused_ms: 0
    }
    return true
  },

  /** With `on_final_answer: cancel` a final answer ends what runs beside it. */
  function stopForFinalAnswer (draft) {
    const phase = openBatch(draft)
    const run = draft.state.run as ActiveRun
    if (phase === null || run.final === null || run.policy.on_final_answer !== 'cancel') return false
    const { final } = run
    const at = phase.calls.findIndex((call) => call.id === final.call_id)
    // One that was asked for before it, and waits for nobody, may yet be the first that succeeds (H3).
    const mayCount = (call: CallState, i: number) => {
      return i < at && call.name === run.policy.final_answer_tool && call.status !== 'suspended' && awaited(call) === null
    }
    const over = phase.calls.filter((call, i) => isOpen(call) && !mayCount(call, i))
    if (over.length > 0 && phase.suspension !== null) resolve(draft, run, phase, 'superseded')
    for (const call of over) cancelCall(draft, run, phase, call, 'final_answer')
    return over.length > 0
  },

  /** What refers to a call that gave no output will not run (E11). */
  function failDependants (draft) {
    const phase = openBatch(draft)
    if (phase === null) return false
    const without = new Map(phase.calls.filter((call) => call.status === 'failed' || call.status === 'cancelled' || call.fault !== null).map((call) => [call.id, call]))
    let changed = false
    for (const call of phase.calls) {
      const source = Object.values(call.after).map((id) => without.get(id)).find((one) => one !== undefined)
      if (call.status !== 'pending' || call.fault !== null || source === undefined) continue
      call.fault = { code: 'dependency_failed', message: `not run: its arguments refer to the call of ${source.name} that gave no output` }
      changed = true
    }
    return changed
  },

  /** Everything that was asked for is there. */
  function resumeRun (draft) {
    const phase = openBatch(draft)
    return phase !== null && resume(draft, draft.state.run as ActiveRun, phase)
  },

  /** All calls that may start now are dispatched, in request order, before any of them works. */
  function dispatchCalls (draft) {
    const phase = openBatch(draft)
    if (phase === null) return false
    const run = draft.state.run as ActiveRun
    let changed = false
    for (const call of startable(run, phase, draft.now)) {
      const isOver = isUsedUp(run, phase, call)
      if (isOver) call.fault = usedUp(call)
      else if (call.rules.rate_limited !== true) startCall(draft, run, phase, call)
      else continue
      changed = true
    }
    return changed
  },

  /** Calls that cannot run at all fail, once those that can have been dispatched. */
  function failFaultyCalls (draft) {
    const phase = openBatch(draft)
    if (phase === null) return false
    const faulty = phase.calls.filter((call) => call.status === 'pending' && call.fault !== null)
    for (const call of faulty) failCall(draft, draft.state.run as ActiveRun, phase, call, call.fault as CallError)
    return faulty.length > 0
  },

  /** Nothing can go on without a person or the client. */
  function suspendCalls (draft) {
    const phase = openBatch(draft)
    return phase !== null && suspend(draft, draft.state.run as ActiveRun, phase)
  },

  /** Whoever was asked has had the time there was. */
  function expireCalls (draft) {
    const phase = openBatch(draft)
    return phase !== null && expire(draft, draft.state.run as ActiveRun, phase)
  },

  /** Dispatched calls that nobody runs yet are given to the executor, as far as it has room. */
  function claimCalls (draft) {
    const { executor } = draft
    const phase = openBatch(draft)
    if (phase === null || executor === null || executor.calls <= 0) return false
    const free = phase.calls.filter((call) => call.status === 'running' && call.worker === null && (executor.spread || call.rules.placement === 'local'))
    const taken = free.slice(0, executor.calls)
    if (taken.length === 0) return false
    for (const call of taken) Object.assign(call, { worker: executor.worker, since: draft.now })
    executor.calls -= taken.length
    draft.effects.push({ type: 'run_calls', calls: taken.map((call) => ({ call_id: call.id, attempt: call.attempt })) })
    return true
  },

  /** Whether a call under a rate limit may begin is asked by the executor. The call holds its room meanwhile, but has not started. */
  function claimPlaces (draft) {
    const { executor } = draft
    const phase = openBatch(draft)
    if (phase === null || executor === null || executor.calls <= 0) return false
    const run = draft.state.run as ActiveRun
    const taken: CallState[] = []
    for (const call of placeable(run, phase, draft.now)) {
      if (taken.length === executor.calls) break
      if (!(executor.spread || call.rules.placement === 'local') || isUsedUp(run, phase, call)) continue
      Object.assign(call, { worker: executor.worker, since: draft.now })
      taken.push(call)
    }
    if (taken.length === 0) return false
    executor.calls -= taken.length
    draft.effects.push({ type: 'take_places', calls: taken.map((call) => ({ call_id: call.id, attempt: call.attempt })) })
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
      duration_ms: elapsed(draft, phase.started_at), counts
    })
    const failures = phase.calls.filter((call) => call.status === 'failed').sort((a, b) => a.settled - b.settled)
    const [first] = failures
    if (run.final === null && first !== undefined && run.policy.on_error === 'fail_run') {
      endRun(draft, run, 'failed', [closed], {
        error: {
          code: 'tool_failed',
          message: `tool call ${first.id} (${first.name}) failed, and tool_policy.on_error is fail_run; with "continue" the model is told instead: ${first.error?.message ?? ''}`,
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
    // From here on it may have to be paid for, whatever becomes of it.
    run.usage.llm_calls++
    phase.worker = executor.worker
    phase.fence = nextFence(draft)
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
