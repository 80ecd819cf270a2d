import { iso } from '../core/draft.js'
import type { State } from '../core/state.js'
import { waitingFor, type Waiting, type WaitingCall } from '../core/waiting.js'
import type { Conversation } from '../schemas/conversation.js'
import type { Row } from '../store/store.js'

/** A conversation as clients see it. */
export function conversationView ({ version, epoch, state }: Row, now: number): Conversation {
  return {
    id: state.id,
    version,
    epoch,
    turn: state.turn,
    message_count: state.messages,
    last_seq: state.seq,
    active_run_id: state.run?.id ?? null,
    queued_run_ids: state.queue.map((run) => run.id),
    waiting_for: waitingView(state, now),
    metadata: state.metadata,
    created_at: iso(state.created_at)
  }
}

/** What a conversation waits for, in words a person can act on. */
function waitingView (state: State, now: number): Conversation['waiting_for'] {
  const waiting = waitingFor(state, now)
  if (waiting === null) return null
  const { kind, run, since, due_at: due, worker, calls } = waiting
  const behind = run === null || state.queue.length === 0 ? '' : `; ${state.queue.length === 1 ? 'one more run waits' : `${state.queue.length} more runs wait`} behind ${run.id}`
  return {
    kind,
    detail: inWords(state, waiting) + behind,
    since: since === null ? null : iso(since),
    due_at: due === null ? null : iso(due),
    run_id: run?.id ?? null,
    worker,
    calls: calls.map(({ call, for: reason, behind: others, due_at: at }) => ({
      call_id: call.id, name: call.name, waits_for: reason, behind: others, attempt: call.attempt, worker: call.worker, due_at: at === null ? null : iso(at)
    }))
  }
}

function inWords (state: State, { kind, run, calls, due_at: due }: Waiting): string {
  const phase = run?.phase
  const named = (...reasons: WaitingCall['for'][]) => calls.filter((one) => reasons.includes(one.for)).map(({ call }) => `${call.id} (${call.name})`).join(', ')
  switch (kind) {
    case 'due_time': return `the ${state.queue.some((one) => one.due_at === due) ? 'next run, which may not start' : 'next message, which is not delivered'} before its time`
    case 'model': return phase?.type === 'turn' ? `the answer of ${run?.models[phase.model]} to turn ${phase.turn}, attempt ${phase.attempt}` : ''
    case 'action': return `decisions or outputs for ${named('approval', 'client_tool')}${phase?.type === 'batch' ? `, suspension ${phase.suspension?.id}` : ''}`
    case 'retry': return phase?.type === 'turn' ? `the time of attempt ${phase.attempt + 1} of turn ${phase.turn}` : `the time of the next try of ${named('retry')}`
    case 'worker': return `a worker that takes ${phase?.type === 'turn' ? `turn ${phase.turn}` : named('worker')}`
    case 'tools': {
      const rest = calls.filter((one) => one.for !== 'result').length
      return `the results of ${named('result') || named('call', 'resource', 'limit', 'worker')}${named('result') !== '' && rest > 0 ? `; ${rest} more of the batch are not running` : ''}`
    }
  }
}
