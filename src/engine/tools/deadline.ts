import { createContext, Script } from 'node:vm'

const box: { work: (() => void) | null } = { work: null }
const context = createContext(box)
const script = new Script('work()')

const MAX_TRIES = 10

export class DeadlineExceeded extends Error {
  override name = 'DeadlineExceeded'
}

/**
 * Runs synchronous work and stops it after `ms`, in the middle of a loop or of a regular expression, with a DeadlineExceeded. Costs
 * about 0.1 ms (a thread keeps the time). This is a deadline and nothing else: the work runs with all rights.
 *
 * The thread can only measure wall time. On a busy machine that may pass while the work hardly ran, so it is then begun again, until it
 * has had `ms` of processor time in all. The work must bear that: what it was changing when it was stopped is thrown away.
 */
export function within<T> (ms: number, work: () => T): T {
  const cpu = process.cpuUsage()
  for (let tries = 1; ; tries++) {
    try {
      return runOnce(ms, work)
    } catch (error) {
      if (!isTimeout(error)) throw error
      const { user, system } = process.cpuUsage(cpu)
      if (tries === MAX_TRIES || (user + system) / 1000 >= ms * 0.8) throw new DeadlineExceeded(`not done within ${ms} ms`)
    }
  }
}

function runOnce<T> (ms: number, work: () => T): T {
  const results: T[] = []
  box.work = () => { results.push(work()) }
  try {
    script.runInContext(context, { timeout: ms })
  } finally {
    box.work = null
  }
  return results[0] as T
}

// Not `instanceof Error`: it is an error of the context's own realm.
function isTimeout (error: unknown): boolean {
  return typeof error === 'object' && error !== null && 'code' in error && error.code === 'ERR_SCRIPT_EXECUTION_TIMEOUT'
}
