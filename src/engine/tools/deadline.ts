import { createContext, Script } from 'node:vm'

const box: { work: (() => void) | null } = { work: null }
const context = createContext(box)
const script = new Script('work()')

export class DeadlineExceeded extends Error {
  override name = 'DeadlineExceeded'
}

/**
 * Runs synchronous work and stops it after `ms` of wall time, in the middle of a loop or of a regular expression, with a
 * DeadlineExceeded. Costs about 0.1 ms (a thread keeps the time). This is a deadline and nothing else: the work runs with all rights,
 * and what it was changing when it was stopped must be thrown away.
 */
export function within<T> (ms: number, work: () => T): T {
  let result: { value: T } | undefined
  box.work = () => { result = { value: work() } }
  try {
    script.runInContext(context, { timeout: ms })
  } catch (error) {
    // Not `instanceof Error`: it is an error of the context's own realm.
    const timedOut = typeof error === 'object' && error !== null && 'code' in error && error.code === 'ERR_SCRIPT_EXECUTION_TIMEOUT'
    throw timedOut ? new DeadlineExceeded(`not done within ${ms} ms`) : error
  } finally {
    box.work = null
  }
  return (result as unknown as { value: T }).value
}
