/**
 * `npm run chaos -- --minutes 30 --seed 1`: real processes under a workload while a nemesis kills, freezes and cuts them off, and Redis with them;
 * every conversation is then judged by what went in and what came out. Ends with 1 on violations; the last line names the folder with the traces.
 *
 * `--api 2 --workers 3 --conversations 10`: how much of it. `--report FILE`: the figures, as Markdown, or as JSON when it ends in `.json`.
 */
import { writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import { numberOf } from '../support/number.js'
import { chaos } from './run.js'
import { page } from './figures.js'

const { values } = parseArgs({
  options: {
    minutes: { type: 'string', default: '1' },
    seed: { type: 'string', default: String(Math.floor(Math.random() * 1_000_000)) },
    api: { type: 'string', default: '2' },
    workers: { type: 'string', default: '3' },
    conversations: { type: 'string', default: '10' },
    brief: { type: 'boolean', default: false },
    report: { type: 'string' }
  }
})

const teardowns: (() => unknown)[] = []
const say = (line: string) => { process.stdout.write(`${line}\n`) }
say(`seed ${values.seed}`)
const { figures, violations, folder } = await chaos({ teardown: (undo: () => unknown) => { teardowns.push(undo) } } as never, {
  seed: numberOf('seed', values.seed), minutes: numberOf('minutes', values.minutes, 0.01), apis: numberOf('api', values.api, 1), workers: numberOf('workers', values.workers, 1),
  conversations: numberOf('conversations', values.conversations, 1), brief: values.brief, say
})
for (const undo of teardowns.reverse()) await undo()
if (values.report !== undefined) writeFileSync(values.report, values.report.endsWith('.json') ? JSON.stringify(figures, null, 2) : page(figures))
say(page(figures))
for (const what of violations.slice(0, 50)) say(`VIOLATION ${what}`)
if (violations.length > 0) {
  say(`seed ${values.seed} has ${violations.length} violations${folder === null ? '' : `; event logs and what was done are in\n${folder}`}`)
  process.exitCode = 1
}
