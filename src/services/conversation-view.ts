import { iso } from '../core/draft.js'
import { dueAt } from '../core/schedule.js'
import type { State } from '../core/state.js'
import { unanswered } from '../core/suspension.js'
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
    waiting_for: waitingFor(state, now),
    metadata: state.metadata,
    created_at: iso(state.created_at)
  }
}

function waitingFor (state: State, now: number): Conversation['waiting_for'] {
  const { run } = state
  if (run === null) {
    const due = dueAt(state, now, { leaseMs: 0, sweepMs: 0 })
    return due === null ? null : { kind: 'due_time', detail: 'the next run may not start before its time', due_at: iso(due) }
  }
  const { phase } = run
  if (phase.type === 'batch') {
    if (phase.suspension !== null) {
      const waiting = unanswered(phase).map((call) => `${call.id} (${call.name})`)
      return { kind: 'action', detail: `decisions or outputs for ${waiting.join(', ')}, suspension ${phase.suspension.id}`, due_at: null }
    }
    const open = phase.calls.filter((call) => call.settled === 0).map((call) => `${call.id} (${call.name})`)
    return { kind: 'tools', detail: `the results of ${open.join(', ')}`, due_at: null }
  }
  if (phase.worker !== null) return { kind: 'model', detail: `the answer of ${run.models[phase.model]}, try ${phase.attempt}`, due_at: null }
  if (phase.ready_at > now) return { kind: 'retry', detail: `the next try of turn ${phase.turn}`, due_at: iso(phase.ready_at) }
  return { kind: 'worker', detail: `a worker that takes turn ${phase.turn}`, due_at: null }
}
