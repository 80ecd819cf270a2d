import type { Event } from '../../src/core/event.js'
import type { CallState, State } from '../../src/core/state.js'

/** A conversation as somebody sees it who has read only its events, or only its row. Both must be the same: that is what resumable means. */
export interface Picture {
  seq: number
  turn: number
  running: string | null
  /** Runs that are created and have not started: the one that is next, and those behind it. */
  waiting: string[]
  /** The LLM call that is due again or under way: its number, attempt and model. */
  llm: [turn: number, attempt: number, model: string] | null
  /** The calls of the open batch, in request order. */
  calls: [id: string, status: string, attempt: number][]
  /** Messages that were accepted and not delivered, superseded or withdrawn. */
  messages: string[]
}

export interface Fold { apply: (event: Event) => void, picture: () => Picture }

export function createFold (): Fold {
  let seq = 0
  let turn = 0
  let running: string | null = null
  const waiting = new Set<string>()
  let llm: Picture['llm'] = null
  const calls = new Map<string, [status: string, attempt: number]>()
  const messages = new Set<string>()

  return {
    apply (event) {
      seq = event.seq
      const run = event.run_id as string
      const id = event.call_id as string
      switch (event.type) {
        case 'run.created': waiting.add(run); break
        case 'run.started':
          waiting.delete(run)
          running = run
          break
        case 'run.completed': case 'run.incomplete': case 'run.failed': case 'run.cancelled':
          waiting.delete(run)
          if (running !== run) break
          running = null
          llm = null
          calls.clear()
          break
        case 'turn.started':
          turn = event.turn as number
          llm = [turn, event.attempt as number, event.model as string]
          calls.clear()
          break
        case 'turn.retrying': llm = [event.turn as number, event.attempt as number, event.model as string]; break
        case 'turn.completed': case 'turn.cancelled': llm = null; break
        case 'batch.started':
          for (const call of event.calls as { call_id: string }[]) calls.set(call.call_id, ['pending', 0])
          break
        case 'batch.completed': calls.clear(); break
        case 'tool.started': calls.set(id, ['running', event.attempt as number]); break
        case 'tool.completed': case 'tool.failed': case 'tool.cancelled':
          calls.set(id, [event.type.slice('tool.'.length), calls.get(id)?.[1] ?? 0])
          // An interrupt ends a batch without a barrier: when its last call is cancelled, nothing of it is open.
          if (event.type === 'tool.cancelled' && [...calls.values()].every(([status]) => !['pending', 'running'].includes(status))) calls.clear()
          break
        case 'message.accepted': messages.add(event.message_id as string); break
        case 'message.delivered': case 'message.superseded': case 'message.withdrawn': messages.delete(event.message_id as string); break
      }
    },
    picture: () => ({
      seq,
      turn,
      running,
      waiting: [...waiting].sort(),
      llm,
      calls: [...calls].map(([id, [status, attempt]]) => [id, status, attempt]),
      messages: [...messages].sort()
    })
  }
}

/** Nobody is told that a worker was lost, only that the call begins again. */
const hasToldOf = (call: CallState): boolean => call.status === 'pending' && call.attempt > 0

export function pictureOf ({ seq, turn, run, queue, waiting }: State): Picture {
  const phase = run?.phase
  const tried = phase?.type === 'turn' && phase.attempt > 0 ? phase : null
  return {
    seq,
    turn,
    running: run === null || run.started_at === null ? null : run.id,
    waiting: [...queue.map((one) => one.id), ...run !== null && run.started_at === null ? [run.id] : []].sort(),
    llm: tried === null ? null : [tried.turn, tried.worker === null ? tried.attempt + 1 : tried.attempt, run?.models[tried.model] as string],
    calls: phase?.type === 'batch' ? phase.calls.map((call) => [call.id, hasToldOf(call) ? 'running' : call.status, call.attempt]) : [],
    messages: waiting.map((message) => message.id).sort()
  }
}
