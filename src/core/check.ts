import type { Message } from './message.js'
import { isOpen, type State } from './state.js'

/**
 * What a state row, and the ledger beside it, must agree on whatever has happened: registry, queue and real state are one, and no
 * reference dangles in either direction (seed 002, R7). Returns one sentence per disagreement; empty, as it always should be, when
 * there is none. Checked in tests after every step and in production before every LLM call.
 */
export function checkState (state: State): string[] {
  const wrong: string[] = []
  const must = (holds: boolean, otherwise: string) => { if (!holds) wrong.push(otherwise) }
  const { run, queue, waiting } = state

  const runs = [...run === null ? [] : [run.id], ...queue.map((one) => one.id)]
  must(isUnique(runs), 'a run is both active and queued, or queued twice')
  must(isUnique(waiting.map((message) => message.id)), 'a message waits twice')
  for (const message of waiting) {
    must(message.run_id === null || runs.includes(message.run_id), `message ${message.id} waits for run ${message.run_id}, which is over`)
    must(run !== null || message.run_id !== null || message.due_at !== null, `message ${message.id} waits for nothing`)
  }
  if (run === null) return wrong

  must((run.status === 'queued') === (run.started_at === null), `run ${run.id} is ${run.status}, but its start says otherwise`)
  must(run.turns >= run.answers, `run ${run.id} has more answers than turns`)
  const { phase } = run
  if (phase.type === 'turn') {
    must(phase.turn === state.turn + (phase.attempt === 0 ? 1 : 0), `turn ${phase.turn} does not follow turn ${state.turn}`)
    must((phase.worker === null) === (phase.fence === 0), `turn ${phase.turn} has a worker without a fence, or a fence without a worker`)
    must(phase.fence <= state.fence, `turn ${phase.turn} has a fence from the future`)
    must(run.models[phase.model] !== undefined, `turn ${phase.turn} has no model`)
    return wrong
  }
  must(phase.turn === state.turn, `batch ${phase.id} does not belong to turn ${state.turn}`)
  const suspended = phase.calls.some((call) => call.status === 'suspended')
  must((phase.suspension !== null) === suspended, `batch ${phase.id} ${suspended ? 'has suspended calls but no suspension' : 'has a suspension of nothing'}`)
  must((run.status === 'requires_action') === suspended, `run ${run.id} is ${run.status}, but its calls say otherwise`)
  must(phase.calls.some(isOpen), `batch ${phase.id} is settled but has not closed`)
  must(isUnique(phase.calls.map((call) => call.id)), `batch ${phase.id} has a call twice`)
  for (const call of phase.calls) {
    const settled = call.status === 'completed' || call.status === 'failed' || call.status === 'cancelled'
    must(settled === !isOpen(call), `call ${call.id} is ${call.status}, but its place in the order of settling says otherwise`)
    must(call.status !== 'running' || call.attempt > 0, `call ${call.id} runs without having been started`)
    must(call.worker === null || call.status === 'running' || (call.status === 'pending' && call.rules.rate_limited === true), `call ${call.id} is ${call.status} but has a worker`)
  }
  return wrong
}

/** As `checkState`, of the row and its ledger together. */
export function checkLedger (state: State, ledger: Message[]): string[] {
  const wrong: string[] = []
  if (ledger.length !== state.messages) wrong.push(`the ledger has ${ledger.length} messages, the row says ${state.messages}`)
  const ids = new Set(ledger.map((message) => message.id))
  if (ids.size !== ledger.length) wrong.push('a message is in the ledger twice')
  for (const message of state.waiting) if (ids.has(message.id)) wrong.push(`message ${message.id} still waits, but is in the ledger`)
  const phase = state.run?.phase
  const open = new Set(phase?.type === 'batch' ? phase.calls.map((call) => call.id) : [])
  for (const message of ledger) {
    for (const call of message.tool_calls ?? []) if (open.has(call.call_id)) wrong.push(`call ${call.call_id} is in the ledger before its batch has closed`)
  }
  return wrong
}

const isUnique = (ids: string[]): boolean => new Set(ids).size === ids.length
