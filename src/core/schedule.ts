import { conflict, type Holder } from './resources.js'
import { isBusy, isOpen, type ActiveRun, type BatchPhase, type CallState, type State } from './state.js'

/**
 * The calls of a batch that may start now, in the order in which the batch can be run. A call waits
 * - for the calls its arguments refer to (E10)
 * - for a call before it that holds one of its resources in another way than reading both (D12); for all before it if one of the two is `exclusive`
 * - for a person or the client (J1), and under `suspension: barrier` for those that do before it
 * - for every call before it, without `parallel` (E5)
 * - for the time of its next try, or of its place under a rate limit
 * - for room: the run's, and its tool's own (E4, E14)
 * - for being alone, once two workers have died over it: what kills workers must not take its siblings with it (FAULTS F27)
 * One under a rate limit may start as far as the batch is concerned; it is the limit that says when.
 */
export function startable (run: ActiveRun, phase: BatchPhase, now: number): CallState[] {
  const { parallel, suspension } = run.policy
  const atWork = phase.calls.filter(isBusy)
  if (atWork.some(isSuspect)) return []
  let suspect: CallState | null = null
  let room = atOnce(run) - atWork.length
  const found: CallState[] = []
  if (room <= 0) return found
  const order = inOrder(phase)
  const busy = counter(atWork)
  // Places are used up also if nobody begins: a run takes no more of them in advance than it could have at work.
  const places = counter(order.filter((call) => isOpen(call) && call.rules.rate_limited === true && (call.placed || isBusy(call))))
  for (const [i, call] of order.entries()) {
    if (room <= 0) break
    if (!isOpen(call)) continue
    if (suspension === 'barrier' && awaited(call) !== null) break
    const { max_concurrency: most, rate_limited: limited } = call.rules
    const free = call.status === 'pending' && call.worker === null && call.fault === null && call.ready_at <= now && awaited(call) === null
    if (free && Object.keys(call.after).length === 0 && !isHeldUp(order, i) && (most === undefined || busy.of(call) < most)) {
      const another = limited === true && !call.placed
      if (isSuspect(call)) {
        suspect ??= call
      } else if (!another || places.of(call) < run.limits.max_tool_concurrency) {
        busy.add(call)
        if (another) places.add(call)
        found.push(call)
        room--
      }
    }
    if (!parallel) break
  }
  return suspect !== null && atWork.length === 0 && found.length === 0 ? [suspect] : found
}

/** Whether this call may be what its workers died of. One death says nothing: it hits whatever a worker had in hand. */
export const isSuspect = (call: CallState): boolean => call.losses > 1

/**
 * The calls that are to be raised as one suspension, once all that may start (`startable`) has been started: they need a person or the client, and nothing
 * else of the batch is at work. Empty while something is.
 */
export function suspendable (run: ActiveRun, phase: BatchPhase, now: number): CallState[] {
  const { parallel, suspension } = run.policy
  if (phase.suspension !== null || phase.calls.some((call) => isBusy(call) || (call.status === 'pending' && call.ready_at > now))) return []
  if (startable(run, phase, now).length > 0) return []
  const order = inOrder(phase)
  const first = order.find(isOpen)
  const handedOut = counter([])
  const found = order.filter((call, i) => {
    if (call.status !== 'pending' || call.fault !== null || Object.keys(call.after).length > 0) return false
    // A consent can be asked for early; what the client is handed it runs at once.
    if (awaited(call) !== 'client_tool') return awaited(call) === 'approval'
    const most = call.rules.max_concurrency
    if (isHeldUp(order, i) || (!parallel && call !== first) || (most !== undefined && handedOut.of(call) >= most)) return false
    handedOut.add(call)
    return true
  })
  return suspension === 'grouped' ? found : found.slice(0, 1)
}

/** The calls whose places under a rate limit are to be asked for, and that nobody asks for yet. */
export function placeable (run: ActiveRun, phase: BatchPhase, now: number): CallState[] {
  if (!phase.calls.some((call) => call.rules.rate_limited === true && call.status === 'pending')) return []
  return startable(run, phase, now).filter((call) => call.rules.rate_limited === true)
}

/** Counts calls by the names of their tools. */
function counter (calls: CallState[]): { of: (call: CallState) => number, add: (call: CallState) => void } {
  const counts = new Map<string, number>()
  const add = ({ name }: CallState) => { counts.set(name, (counts.get(name) ?? 0) + 1) }
  calls.forEach(add)
  return { of: ({ name }) => counts.get(name) ?? 0, add }
}

/** How many calls of a run may run at once. */
export const atOnce = (run: ActiveRun): number => run.policy.parallel ? run.limits.max_tool_concurrency : 1

/** Whom a call waits for; null: nobody. */
export function awaited (call: CallState): 'approval' | 'client_tool' | null {
  if (call.rules.approval !== undefined && !call.approved) return 'approval'
  return call.rules.client === undefined ? null : 'client_tool'
}

/** The calls of a batch in the order in which they can be run. */
export function inOrder (phase: BatchPhase): CallState[] {
  return [...phase.calls].sort((a, b) => a.rank - b.rank)
}

/** Whether another unsettled call stands in the way of the one at `i`. */
const isHeldUp = (order: CallState[], i: number): boolean => inTheWay(order, i).length > 0

/**
 * The unsettled calls that hold a resource of the one at `i` in a conflicting way: those before it, and those behind it that are at work already,
 * since a person's edit may change what a call holds.
 */
export function inTheWay (order: CallState[], i: number): CallState[] {
  const own = holderOf(order[i] as CallState)
  return order.filter((call, j) => j !== i && isOpen(call) && (j < i || isBusy(call)) && conflict(holderOf(call), own))
}

/** What a call holds, and how. */
export function holderOf ({ rules, holds }: Pick<CallState, 'rules' | 'holds'>): Holder {
  return { effects: rules.effects, exclusive: rules.exclusive === true, holds }
}

/** When a run is out of time; null: it has not begun, or waits for somebody. */
export function timeoutAt (run: ActiveRun): number | null {
  const waits = run.phase.type === 'batch' && run.phase.suspension !== null
  return run.started_at === null || waits ? null : run.started_at + run.paused_ms + run.limits.run_timeout_ms
}

/** A job that should exist: "advance this conversation". Its id says what for, so that asking twice is harmless. */
export interface WantedJob { id: string }

/** Calls that one job is for: as many as a worker takes from a batch at once. */
export const CALLS_PER_JOB = 8

/**
 * The jobs a state needs: a due turn that nobody has claimed, unclaimed calls, and calls whose rate limit nobody asks. It is a function of
 * the state, so that a job that was lost is found again by looking. After `leaseMs` (a worker's lease) without a worker the ids are others: a queue may still
 * remember an id whose worker died (see `generationOf`).
 */
export function wanted (state: State, now: number, leaseMs: number): WantedJob[] {
  const { run } = state
  if (run === null) return []
  const { phase } = run
  if (phase.type === 'turn') {
    if (phase.worker !== null || phase.ready_at > now) return []
    return [{ id: `${run.id}-t${phase.turn}-a${phase.attempt + 1}${generationOf(now - phase.ready_at, leaseMs)}` }]
  }
  const free = phase.calls.filter((call) => call.status === 'running' && call.worker === null)
  const jobs: WantedJob[] = []
  for (let i = 0; i < free.length; i += CALLS_PER_JOB) {
    const call = free[i] as BatchPhase['calls'][number]
    jobs.push({ id: `${run.id}-t${phase.turn}-${call.id}-a${call.attempt}${generationOf(now - call.since, leaseMs)}` })
  }
  const limited = placeable(run, phase, now)
  for (let i = 0; i < limited.length; i += CALLS_PER_JOB) {
    const call = limited[i] as BatchPhase['calls'][number]
    // It may be asked for more than once before it is started, so its attempt alone would not do.
    const since = Math.max(call.since, call.ready_at)
    jobs.push({ id: `${run.id}-t${phase.turn}-${call.id}-a${call.attempt + 1}-p${since}${generationOf(now - since, leaseMs)}` })
  }
  return jobs
}

/** Whether work that nobody has claimed has waited so long that its job seems to be lost: whoever has room takes it without one. */
export function isOverdue (state: State, now: number, leaseMs: number): boolean {
  const phase = state.run?.phase
  if (phase === undefined) return false
  if (phase.type === 'turn') return phase.worker === null && now - phase.ready_at >= leaseMs
  return phase.calls.some((call) => call.status === 'running' && call.worker === null && now - call.since >= leaseMs) ||
    placeable(state.run as ActiveRun, phase, now).some((call) => now - Math.max(call.since, call.ready_at) >= leaseMs)
}

/** Empty for a job that may simply still wait in the queue; then one suffix per doubling of the lease, so that a long queue is not flooded. */
function generationOf (waitedMs: number, leaseMs: number): string {
  return waitedMs < leaseMs ? '' : `-g${Math.floor(Math.log2(waitedMs / leaseMs)) + 1}`
}

/**
 * When somebody has to look at this conversation again even if nothing happens: the sweep finds it by this time. Null when nothing is
 * going on.
 * - claimed work: when its worker's sign of life, if it died this moment, has run out
 * - work nobody has claimed: soon, then ever more rarely, and every three leases at last, in case its job was lost
 * - a retry, a call's place under a rate limit, a scheduled run, a delayed message, a suspension that expires, the run's own timeout: at their time
 */
export function dueAt (state: State, now: number, { leaseMs, sweepMs }: { leaseMs: number, sweepMs: number }): number | null {
  const times: number[] = []
  for (const message of state.waiting) if (message.due_at !== null) times.push(message.due_at)
  const { run } = state
  if (run === null) {
    // While a run is active others wait for it, whether their time has come or not.
    for (const queued of state.queue) if (queued.due_at !== null) times.push(queued.due_at)
  } else {
    const timeout = timeoutAt(run)
    if (timeout !== null) times.push(timeout)
    const unclaimed = (since: number) => {
      const waited = Math.max(0, now - since)
      // Not past the moment from which a sweep may take it up itself (`isOverdue`).
      const overdue = waited < leaseMs ? Math.max(since + leaseMs, now + 1) : Infinity
      return Math.min(Math.max(since, now) + Math.max(sweepMs, Math.min(waited / 2, 3 * leaseMs)), overdue)
    }
    if (run.phase.type === 'turn') {
      const { worker, ready_at: readyAt } = run.phase
      times.push(worker === null ? (readyAt > now ? readyAt : unclaimed(readyAt)) : now + leaseMs)
    } else {
      for (const call of run.phase.calls.filter(isOpen)) {
        if (call.worker !== null) times.push(now + leaseMs)
        else if (call.status === 'running') times.push(unclaimed(call.since))
        else if (call.status === 'pending' && call.ready_at > now) times.push(call.ready_at)
        else if (call.status === 'suspended' && call.expires_at !== null) times.push(call.expires_at)
      }
      for (const call of placeable(run, run.phase, now)) times.push(unclaimed(Math.max(call.since, call.ready_at)))
    }
  }
  return times.length === 0 ? null : Math.ceil(Math.min(...times))
}
