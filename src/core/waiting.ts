import { atOnce, awaited, dueAt, inOrder, inTheWay, isSuspect, startable, timeoutAt } from './schedule.js'
import { isOpen, type ActiveRun, type BatchPhase, type CallState, type State } from './state.js'
import { unanswered } from './suspension.js'

/** What a conversation waits for, and what a call of its batch does: as much as one must know to act on it, or to see that one need not. */
export interface Waiting {
  /**
   * - `worker`: that one takes the turn, or the calls
   * - `model`: the answer to an LLM call
   * - `tools`: results of calls
   * - `action`: people or the client
   * - `retry`: the time of a next try
   * - `due_time`: the time of a run or message
   */
  kind: 'worker' | 'model' | 'tools' | 'action' | 'retry' | 'due_time'
  /** The active run; null: the conversation has none. */
  run: ActiveRun | null
  since: number | null
  /** When time ends the wait if nothing else does; null: it never does. */
  due_at: number | null
  /** Who has the LLM call; null: nobody, or it is not about one. */
  worker: string | null
  /** The unsettled calls of the batch, in request order. */
  calls: WaitingCall[]
}

export interface WaitingCall {
  call: CallState
  /**
   * - `worker`: that one takes it
   * - `result`: it runs
   * - `retry`: the time of its next try
   * - `call`: calls whose output its arguments refer to, or that must be decided on before it
   * - `resource`: calls that hold a resource of it
   * - `limit`: room under the run's or its tool's limit, or its turn where calls go one at a time
   * - `approval`, `client_tool`: a person's decision, the client's output
   */
  for: 'worker' | 'result' | 'retry' | 'call' | 'resource' | 'limit' | 'approval' | 'client_tool'
  /** The calls that stand in its way. */
  behind: string[]
  due_at: number | null
}

/** What the conversation waits for; null, and only then: nothing is going on. */
export function waitingFor (state: State, now: number): Waiting | null {
  if (state.run !== null) return ofRun(state.run, now)
  const due = dueAt(state, now, { leaseMs: 0, sweepMs: 0 })
  return due === null ? null : { kind: 'due_time', run: null, since: null, due_at: due, worker: null, calls: [] }
}

function ofRun (run: ActiveRun, now: number): Waiting {
  const { phase } = run
  const timeout = timeoutAt(run)
  if (phase.type === 'turn') {
    const head = { run, since: phase.ready_at, due_at: timeout, worker: null, calls: [] }
    if (phase.worker !== null) return { ...head, kind: 'model', worker: phase.worker }
    return phase.ready_at > now ? { ...head, kind: 'retry', since: null, due_at: phase.ready_at } : { ...head, kind: 'worker' }
  }
  const calls = phase.calls.filter(isOpen).map((call) => waitOf(run, phase, call, now))
  const head = { run, since: phase.started_at, due_at: timeout, worker: null, calls }
  if (phase.suspension !== null) return { ...head, kind: 'action', since: phase.suspension.created_at, due_at: earliest(calls) }
  const are = (kind: WaitingCall['for']) => calls.some((one) => one.for === kind)
  if (are('result')) return { ...head, kind: 'tools' }
  if (are('worker')) return { ...head, kind: 'worker', since: Math.min(...calls.flatMap((one) => one.for === 'worker' ? one.call.since : [])) }
  return are('retry') ? { ...head, kind: 'retry', due_at: earliest(calls) } : { ...head, kind: 'tools' }
}

const earliest = (calls: WaitingCall[]): number | null => {
  const times = calls.flatMap((one) => one.due_at ?? [])
  return times.length === 0 ? null : Math.min(...times)
}

/** Why a call is not settled. Asks in the order in which `startable` does. */
function waitOf (run: ActiveRun, phase: BatchPhase, call: CallState, now: number): WaitingCall {
  const on = (reason: WaitingCall['for'], behind: CallState[] = [], due: number | null = null): WaitingCall => {
    return { call, for: reason, behind: behind.map((one) => one.id), due_at: due }
  }
  const person = awaited(call)
  if (call.status === 'running') return on(call.worker === null ? 'worker' : 'result')
  if (call.status === 'suspended') {
    const asked = unanswered(phase)
    return asked.includes(call) ? on(person ?? 'approval', [], call.expires_at) : on('call', asked)
  }
  if (call.ready_at > now) return on('retry', [], call.ready_at)
  const referred = new Set(Object.values(call.after))
  if (referred.size > 0) return on('call', phase.calls.filter((one) => referred.has(one.id) && isOpen(one)))
  const order = inOrder(phase)
  const i = order.indexOf(call)
  const asking = order.slice(0, i).filter((one) => isOpen(one) && awaited(one) !== null)
  if (run.policy.suspension === 'barrier' && asking.length > 0) return on('call', asking)
  const running = phase.calls.filter((one) => one.status === 'running')
  // It is asked for once nothing else of the batch is at work.
  if (person !== null) return on(person, phase.calls.filter((one) => one !== call && (one.status === 'running' || (one.status === 'pending' && one.ready_at > now))))
  const holders = inTheWay(order, i)
  if (holders.length > 0) return on('resource', holders)
  const alike = running.filter((one) => one.name === call.name)
  if (call.rules.max_concurrency !== undefined && alike.length >= call.rules.max_concurrency) return on('limit', alike)
  const earlier = order.slice(0, i).filter(isOpen)
  if (!run.policy.parallel && earlier.length > 0) return on('limit', earlier)
  if (running.length >= atOnce(run) || running.some(isSuspect)) return on('limit', running)
  if (!isSuspect(call)) return on('worker')
  const first = running.length > 0 ? running : startable(run, phase, now).filter((one) => one !== call)
  return first.length > 0 ? on('limit', first) : on('worker')
}
