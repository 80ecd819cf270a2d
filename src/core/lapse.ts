import { failCall } from './batch.js'
import type { Lapse } from './command.js'
import { abortWorker, type Draft } from './draft.js'
import { endRun } from './ending.js'
import { timeoutAt } from './schedule.js'
import { isBusy, type ActiveRun, type CallState } from './state.js'
import type { Refusal } from './transition.js'
import { restartTurn } from './turn.js'

/** A worker that dies over the same call this often takes it along: something in it kills workers (FAULTS F27). */
export const MAX_LOSSES = 5

/** Twice that for a turn: a call that kills its worker five times takes the turns down that other conversations have there, and ends before they do. */
export const MAX_TURN_LOSSES = 2 * MAX_LOSSES

type Reason = 'worker_lost' | 'handed_over' | 'repair'

/** Gives up claims whose workers are gone, and ends a run that is out of time. */
export function lapse (draft: Draft, command: Lapse): Refusal | null {
  const { run } = draft.state
  if (run === null) return 'nothing_due'
  const timeout = timeoutAt(run)
  if (timeout !== null && command.at >= timeout) {
    endRun(draft, run, 'incomplete', [run.cause], { stop_reason: 'run_timeout' })
    return null
  }
  return giveUp(draft, run, command, command.handed_over ? 'handed_over' : 'worker_lost', null) ? null : 'nothing_due'
}

/**
 * Takes claims away from their workers: the turn is tried again, as is a call that only reads or is idempotent; any other fails, because nobody knows
 * whether it took effect. Claims that have moved on meanwhile are left alone; false: all have.
 */
export function giveUp (draft: Draft, run: ActiveRun, { fence, calls }: Pick<Lapse, 'fence' | 'calls'>, reason: Reason, causedBy: number | null): boolean {
  const loss = reason === 'handed_over' ? 0 : 1
  const { phase } = run
  if (phase.type === 'turn') {
    if (phase.worker === null || phase.fence !== fence) return false
    phase.losses += loss
    abortWorker(draft, phase.worker, phase.fence, [], reason)
    if (causedBy !== null) phase.caused_by = [...phase.caused_by, causedBy]
    phase.worker = null
    if (phase.losses >= MAX_TURN_LOSSES) {
      const message = `${MAX_TURN_LOSSES} workers were lost during this LLM call; look into their logs, then post a new run`
      endRun(draft, run, 'failed', phase.caused_by, { error: { code: 'worker_lost', message, retryable: true } })
    } else {
      restartTurn(draft, run, phase, reason, 0)
    }
    return true
  }
  let changed = false
  for (const { call_id: callId, attempt, arguments: args } of calls) {
    const call = phase.calls.find((one) => one.id === callId)
    if (call === undefined || !isBusy(call) || call.worker === null || call.attempt !== attempt) continue
    changed = true
    abortWorker(draft, call.worker, null, [call.id], reason)
    if (causedBy !== null) call.cause = causedBy
    if (call.status === 'pending') {
      // It had only asked for its place.
      Object.assign(call, { worker: null, since: draft.now })
    } else if ((call.rules.effects === 'read' || call.rules.idempotent) && (call.losses += loss) < MAX_LOSSES) {
      Object.assign(call, { status: 'pending', worker: null, since: draft.now, arguments: args })
    } else {
      failCall(draft, run, phase, call, { code: 'outcome_unknown', message: unknown(call, reason) })
    }
  }
  return changed
}

/** What the model is told: what is true of this call. */
function unknown ({ rules, losses }: CallState, reason: Reason): string {
  const what = losses >= MAX_LOSSES ? `${losses} workers were lost while they ran this call, so it is not tried again` : {
    worker_lost: 'the worker that ran this call was lost',
    handed_over: 'the worker that ran this call was told to stop before it was done',
    repair: 'an operator has taken this call from the worker that ran it'
  }[reason]
  return rules.effects === 'write' ? `${what}, and nobody knows whether it took effect; check before calling again` : `${what}; go on without it`
}
