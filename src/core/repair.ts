import { failCall } from './batch.js'
import type { Recover, Repair } from './command.js'
import { abortWorker, emit, remember, type Draft } from './draft.js'
import { giveUp } from './lapse.js'
import { isOpen, type ActiveRun, type BatchPhase, type CallState, type State } from './state.js'
import { record } from './suspension.js'
import type { Refusal } from './transition.js'
import { restartTurn } from './turn.js'

/**
 * What an operator does to a conversation that does not go on (API.md `POST /conversations/:id/repair`). Whatever is done is told as
 * `conversation.recovered`, and what follows from it names that as its cause. Where row and ledger disagree they are made to agree on the way (I29).
 */
export function repair (draft: Draft, command: Repair): Refusal | null {
  const { state } = draft
  const { action } = command
  if (state.seen.includes(command.operation)) return 'duplicate'
  const { run } = state
  switch (action.type) {
    case 'retry_turn': {
      if (run?.phase.type !== 'turn') return 'not_repairable'
      const told = tell(draft, command, run.phase.caused_by, `turn ${run.phase.turn} is begun again`)
      retryTurn(draft, run, told)
      return null
    }
    case 'fail_call': {
      if (run?.phase.type !== 'batch') return 'not_found'
      const call = run.phase.calls.find((one) => one.id === action.call_id)
      if (call === undefined) return 'not_found'
      if (!isOpen(call)) return 'call_settled'
      call.cause = tell(draft, command, [call.cause], `call ${call.id} (${call.name}) is failed`)
      failOpenCall(draft, run, run.phase, call, command.reason)
      return null
    }
    case 'release': {
      const cause = run?.cause ?? state.queue[0]?.cause ?? state.waiting[0]?.cause
      if (cause === undefined) return 'not_repairable'
      const told = tell(draft, command, [cause], 'all claims are given up')
      if (run !== null) giveUp(draft, run, action, 'repair', told)
      return null
    }
  }
}

/** Says what is done and why, and mends what was found wrong before it is. Returns the event's `seq`. */
function tell (draft: Draft, { operation, action, reason, found }: Repair, causedBy: number[], what: string): number {
  const { state } = draft
  remember(state, operation)
  // Whoever looked may have seen a row that has changed since: then what was found is no longer known to be so.
  const wrong = found !== null && found.seq === state.seq ? found.wrong : []
  if (found !== null && wrong.length > 0) mend(state, found)
  const detail = [`${action.type}: ${what}`, ...reason === null ? [] : [reason], ...wrong].join('; ')
  return emit(draft, state.run, 'conversation.recovered', { ...(state.run !== null && state.run.turns > 0 && { turn: state.turn }), caused_by: causedBy }, { detail })
}

/** A turn that somebody works on is taken away; one that waits for its next try need not. */
function retryTurn (draft: Draft, run: ActiveRun, causedBy: number): void {
  const { phase } = run
  if (phase.type !== 'turn') return
  phase.caused_by = [...phase.caused_by, causedBy]
  if (phase.worker === null) {
    // Its next try has been told already.
    phase.ready_at = Math.min(phase.ready_at, draft.now)
    return
  }
  abortWorker(draft, phase.worker, phase.fence, [], 'repair')
  restartTurn(draft, run, phase, 'repair', 0)
}

function failOpenCall (draft: Draft, run: ActiveRun, phase: BatchPhase, call: CallState, reason: string | null): void {
  if (call.rules.uncancellable !== true) abortWorker(draft, call.worker, null, [call.id], 'repair')
  if (call.status === 'suspended' && phase.suspension !== null) record(draft, call, { suspension_id: phase.suspension.id, decision: 'failed by an operator' })
  const because = reason === null ? '' : `: ${reason}`
  const effect = call.rules.effects === 'write' && call.started_at !== null ? ' (it had been started, and may have taken effect)' : ''
  failCall(draft, run, phase, call, { code: 'repaired', message: `an operator has ended this call${because}${effect}` })
}

/** Makes the row agree with what stands beside it. No message is lost: whose run is over waits for the present one. */
export function mend (state: State, { messages, delivered }: Pick<Recover, 'messages' | 'delivered'>): void {
  const present = state.run?.id ?? null
  const runs = [...present === null ? [] : [present], ...state.queue.map((run) => run.id)]
  state.messages = messages
  state.waiting = state.waiting.filter((message, i, all) => {
    return !delivered.includes(message.id) && all.findIndex((one) => one.id === message.id) === i
  })
  for (const message of state.waiting) if (message.run_id !== null && !runs.includes(message.run_id)) message.run_id = present
  state.queue = state.queue.filter((run, i, all) => run.id !== present && all.findIndex((one) => one.id === run.id) === i)
}
