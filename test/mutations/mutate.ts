/**
 * `npm run mutate`: shows that those who judge can fail. Plants one bug at a time into a copy of the project and lets whoever must find it look for it.
 *
 *   npm run mutate                    the named guards
 *   npm run mutate -- sweep           those with this in their name
 *   npm run mutate -- --all           also every bug the core's tables, the judges of schedules, of the simulation and of chaos are there for
 *   npm run mutate -- --of core       one list: guards, core, schedules, simulation, chaos (minutes for each of these)
 *
 * Prints what was planted, who found it and with which words. Ends with `N caught, M missed`, and with 1 unless all were caught.
 */
import { parseArgs } from 'node:util'
import { MUTATIONS } from '../support/schedule-mutations.js'
import { CHAOS_BUGS } from './chaos-bugs.js'
import { CORE_BUGS } from './core-bugs.js'
import { GUARDS } from './guards.js'
import { hunt, huntInSchedules, type Bug, type Caught } from './hunts.js'
import { SIMULATION_BUGS } from './simulation-bugs.js'
import { fileOf } from './core-file.js'

interface Quarry { bug: string, by: string, hunt: () => Promise<Caught> }

const quarry = (one: Bug): Quarry => ({ bug: one.bug, by: one.by, hunt: () => hunt(one) })

const LISTS: Record<string, () => Quarry[]> = {
  guards: () => GUARDS.map(quarry),
  simulation: () => SIMULATION_BUGS.map(quarry),
  chaos: () => CHAOS_BUGS.map(quarry),
  schedules: () => MUTATIONS.map((one) => ({ bug: one.fault, by: 'schedules', hunt: () => huntInSchedules(one) })),
  core: () => CORE_BUGS.map(({ bug, find, put }) => ({
    bug, by: 'tables', hunt: async () => await hunt({ bug, file: await fileOf(find), edits: [[find, put]], by: 'tables' })
  }))
}

const { values, positionals } = parseArgs({ allowPositionals: true, options: { all: { type: 'boolean', default: false }, of: { type: 'string', default: 'guards' } } })
const part = positionals.join(' ')
const names = values.all ? Object.keys(LISTS) : [values.of]
const wanted = names.flatMap((name) => LISTS[name]?.() ?? []).filter(({ bug }) => bug.includes(part))
const width = Math.max(...wanted.map(({ bug }) => bug.length), 0)

let caught = 0
for (const { bug, by, hunt } of wanted) {
  const said = await hunt().catch((error: Error) => error)
  const found = typeof said === 'string'
  if (found) caught++
  const words = said === null ? 'MISSED' : said instanceof Error ? `MISSED: ${said.message}` : said.split('\n')[0]?.trim().slice(0, 160) ?? ''
  process.stdout.write(`${bug.padEnd(width)}  ${by.padEnd(10)}  ${words}\n`)
}
process.stdout.write(`${caught} caught, ${wanted.length - caught} missed\n`)
if (wanted.length === 0 || caught < wanted.length) process.exitCode = 1
