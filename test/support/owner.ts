import type { Test } from 'tap'

/** Whoever ends what was started for it: a test, or a script that keeps a list. */
export type Owner = Pick<Test, 'teardown'>
