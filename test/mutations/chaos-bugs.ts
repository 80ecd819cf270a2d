import { GUARDS } from './guards.js'
import type { Bug } from './hunts.js'
import { SIMULATION_BUGS } from './simulation-bugs.js'

/** What others find as well, each in its own world. */
const SHARED = [
  'the sweep is off', 'no fence check', 'no version check in Redis', 'no finish_reason check',
  'a result of an earlier attempt counts', 'a lost call that writes is run again', 'claims of living workers lapse'
]

/** Bugs that the judge of chaos must find. */
export const CHAOS_BUGS: Bug[] = [
  ...SHARED.map((name) => {
    const known = [...GUARDS, ...SIMULATION_BUGS].find(({ bug }) => bug === name)
    if (known === undefined) throw new Error(`there is no bug named "${name}"`)
    return { ...known, by: 'chaos' }
  }),
  {
    bug: 'who repeats a request whose process died does it anew', file: 'src/services/idempotency.ts',
    edits: [['return { status: \'fresh\', operation: found.operation,', 'return { status: \'fresh\', operation,']], by: 'chaos'
  }
]
