/**
 * `npm run simulate --`: lets many seeds happen and judges each. The first that fails is shrunk to the faults it needs, and told.
 *
 *   --seeds 1000  how many        --from 1  the first        --keep  goes on after a failure        --brief  tells no trace
 *                 shows how far it is: in one line on a terminal, else in a line every few seconds
 *   --seed 17     one seed, told  --without 0,3  faults of it that are left out
 *
 * Runs as one bundle, made as the product is: tsx gives every closure its name again each time one is made, a fifth of the time here. With less
 * inlining (--max-inlined-bytecode-size-cumulative): a process that lives a minute spends a third of it on compiling what it already runs. And with one
 * thread (--single-threaded): on one core those that collect garbage and compile beside it only cost the changes between them, a tenth of the time.
 */
import { parseArgs } from 'node:util'
import { numberOf } from '../support/number.js'
import { describeFault } from './faults.js'
import { judge } from './judge.js'
import { simulate } from './world.js'

const EVERY_MS = process.stderr.isTTY ? 200 : 5000

const { values } = parseArgs({
  options: { seeds: { type: 'string', default: '1000' }, from: { type: 'string', default: '1' }, seed: { type: 'string' }, without: { type: 'string', default: '' }, keep: { type: 'boolean', default: false }, brief: { type: 'boolean', default: false } }
})

if (values.seed !== undefined) {
  const without = new Set(values.without.split(',').filter((one) => one !== '').map((one) => numberOf('without', one)))
  await replay(numberOf('seed', values.seed), without)
} else {
  await search(numberOf('from', values.from), numberOf('seeds', values.seeds, 1))
}

/** Lets many seeds happen. The first that fails is shrunk and told, unless all are to be tried. */
async function search (from: number, count: number): Promise<void> {
  const begun = performance.now()
  const used = process.cpuUsage()
  // Making stacks for the many errors nobody reads takes a tenth of the time.
  Error.stackTraceLimit = 0
  let happened = 0
  let tried = 0
  const failed: { seed: number, faults: number }[] = []
  const tell = progress(count, values.brief)
  for (let seed = from; seed < from + count && (failed.length === 0 || values.keep); seed++) {
    const evidence = await simulate(seed)
    happened += evidence.happened
    tried++
    const wrong = judge(evidence)
    tell(tried, failed.length)
    if (wrong.length === 0) continue
    failed.push({ seed, faults: evidence.faults.length })
    erase()
    say(`seed ${seed}: ${wrong[0]}`)
  }
  erase()
  const seconds = (performance.now() - begun) / 1000
  const { user, system } = process.cpuUsage(used)
  const speed = `${Math.round(tried / ((user + system) / 1e6))} seeds per second of processor time`
  const [first] = failed
  if (first !== undefined && !values.keep && !values.brief) await replay(first.seed, await shrink(first.seed, first.faults))
  say(`${tried} seeds from ${from}: ${failed.length} failed; ${seconds.toFixed(1)} s, ${speed}, ${Math.round(happened / tried)} steps per seed`)
  if (failed.length > 0) process.exitCode = 1
}

/** Says now and then how far it is, on stderr: what is printed is the result. */
function progress (count: number, quiet: boolean): (done: number, failed: number) => void {
  const begun = performance.now()
  let told = begun
  return (done, failed) => {
    const now = performance.now()
    if (quiet || now - told < EVERY_MS) return
    told = now
    const left = Math.ceil((now - begun) / done * (count - done) / 1000)
    const line = `${done} of ${count} seeds, ${failed} failed, ${left} s left`
    process.stderr.write(process.stderr.isTTY ? `\r\x1b[K${line}` : `${line}\n`)
  }
}

function erase (): void {
  if (process.stderr.isTTY) process.stderr.write('\r\x1b[K')
}

/** Leaves out what the failure does not need. */
async function shrink (seed: number, faults: number): Promise<Set<number>> {
  const without = new Set<number>()
  for (let i = 0; i < faults; i++) {
    without.add(i)
    if (judge(await simulate(seed, { without })).length === 0) without.delete(i)
  }
  return without
}

async function replay (seed: number, without: Set<number>): Promise<void> {
  Error.stackTraceLimit = 10
  const evidence = await simulate(seed, { without, trace: say })
  say('')
  say(`processes: ${evidence.workload.machines.join(', ')}`)
  for (const fault of evidence.faults) say(`fault: ${describeFault(fault)}${evidence.struck.includes(fault) ? '' : ' (never came to that)'}`)
  const wrong = judge(evidence)
  for (const line of wrong) say(`WRONG: ${line}`)
  if (wrong.length === 0) say('nothing is wrong')
  else process.exitCode = 1
  const dropped = without.size === 0 ? '' : ` --without ${[...without].join(',')}`
  say(`again: npm run simulate -- --seed ${seed}${dropped}`)
}

function say (line: string): void {
  process.stdout.write(`${line}\n`)
}
