import { isOpen, type ActiveRun, type BatchPhase, type State } from './state.js'

/** How many more calls of a batch may start now. */
export function room (run: ActiveRun, phase: BatchPhase): number {
  const limit = run.policy.parallel ? run.limits.max_tool_concurrency : 1
  return limit - phase.calls.filter((call) => call.status === 'running').length
}

/** A job that should exist: "advance this conversation". Its id says what for, so that asking twice is harmless. */
export interface WantedJob { id: string }

/** Calls that one job is for: as many as a worker takes from a batch at once. */
export const CALLS_PER_JOB = 8

/**
 * The jobs a state needs: a due turn that nobody has claimed, and unclaimed calls. It is a function of the state, so that a job that
 * was lost is found again by looking. `generation` makes ids of their own when the first job seems to be lost for good (see
 * `generationOf`): a queue may still remember an id whose worker died.
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
  return jobs
}

/** Empty for a job that may simply still wait in the queue; then one suffix per doubling of the lease, so that a long queue is not flooded. */
function generationOf (waitedMs: number, leaseMs: number): string {
  return waitedMs < leaseMs ? '' : `-g${Math.floor(Math.log2(waitedMs / leaseMs)) + 1}`
}

/**
 * When somebody has to look at this conversation again even if nothing happens: the sweep finds it by this time. Null when nothing is
 * going on.
 * - claimed work: when its worker's life sign, if it died this moment, has run out
 * - work nobody has claimed: soon, and then ever more rarely, in case its job was lost
 * - a retry, a scheduled run, a delayed message, the run's own timeout: at their time
 */
export function dueAt (state: State, now: number, { leaseMs, sweepMs }: { leaseMs: number, sweepMs: number }): number | null {
  const times: number[] = []
  for (const message of state.waiting) if (message.due_at !== null) times.push(message.due_at)
  const { run } = state
  if (run === null) {
    // While a run is active others wait for it, whether their time has come or not.
    for (const queued of state.queue) if (queued.due_at !== null) times.push(queued.due_at)
  } else {
    if (run.started_at !== null) times.push(run.started_at + run.limits.run_timeout_ms)
    const unclaimed = (since: number) => Math.max(since, now) + Math.max(sweepMs, (now - since) / 2)
    if (run.phase.type === 'turn') {
      const { worker, ready_at: readyAt } = run.phase
      times.push(worker === null ? (readyAt > now ? readyAt : unclaimed(readyAt)) : now + leaseMs)
    } else {
      for (const call of run.phase.calls.filter(isOpen)) {
        if (call.worker !== null) times.push(now + leaseMs)
        else if (call.status === 'running') times.push(unclaimed(call.since))
      }
    }
  }
  return times.length === 0 ? null : Math.ceil(Math.min(...times))
}
