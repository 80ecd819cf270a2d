/**
 * `npm run soak`: 1,000 runs, then 10,000 more, on real processes. Says what every process and Redis hold every 500 runs, and fails when memory grows
 * or anything is left without an owner.
 *
 *   --runs 11000  how many      --every 500  runs between two looks   --lanes 12  conversations at once
 *   --workers 2   processes     --minutes 15  ends early after so many minutes, and judges what was done by then
 */
import { parseArgs } from 'node:util'
import { numberOf } from '../support/number.js'
import { soak, type Look } from '../support/soak.js'
import { growth } from './growth.js'

const { values } = parseArgs({
  options: {
    runs: { type: 'string', default: '11000' }, every: { type: 'string', default: '500' }, lanes: { type: 'string', default: '12' },
    workers: { type: 'string', default: '2' }, minutes: { type: 'string', default: '15' }
  }
})

const teardowns: (() => unknown)[] = []
const owner = { teardown: (task: () => unknown) => { teardowns.push(task) } }
const mb = (bytes: number) => (bytes / 2 ** 20).toFixed(1)

function tell ({ runs, seconds, processes, redis }: Look): void {
  const held = Object.entries(processes).map(([name, { rssAtWork, heap }]) => `${name} ${mb(rssAtWork)} / ${mb(heap)}`)
  const { conversations, locks, due, queue, clients, memory } = redis
  const jobs = Object.entries(queue).map(([name, size]) => `${name} ${size}`).join(' ')
  console.log(`${String(runs).padStart(6)} runs ${seconds.toFixed(0).padStart(4)} s   RSS / heap MB: ${held.join('  ')}   Redis: ${mb(memory)} MB, `
    + `${conversations.length} conversations, ${locks.length} locks, ${due.length} due, ${clients} clients   queue: ${jobs}`)
}

const runs = numberOf('runs', values.runs, 1)
let failed = false
try {
  const { looks, end, model, left } = await soak(owner, {
    runs, every: numberOf('every', values.every, 1), lanes: numberOf('lanes', values.lanes, 1), workers: numberOf('workers', values.workers, 1),
    boundMs: numberOf('minutes', values.minutes, 0.01) * 60_000
  }, tell)
  tell(end)

  console.log(`\n${end.runs} runs in ${end.seconds.toFixed(0)} s, ${model.requests} LLM calls, ${model.aborted} of them cut off, ${model.violations} invalid payloads`)
  console.log(`keys at the end: ${Object.entries(end.redis.counts).map(([kind, count]) => `${kind} ${count}`).join(', ')}`)
  console.log(`logged: ${Object.entries(end.warnings).map(([line, count]) => `${count} x ${line}`).join('; ') || 'no warnings'}`)
  for (const { what, before, after, flat } of growth(looks)) {
    if (!flat) failed = true
    console.log(`${flat ? '✓' : '✗'} ${what.padEnd(34)} ${before.padStart(10)} → ${after.padStart(10)}`)
  }
  for (const what of left) console.log(`✗ ${what}`)
  failed ||= left.length > 0
  console.log(failed ? '\nSomething grows or is left.' : '\nMemory is flat, and nothing is left.')
  if (end.runs < runs) {
    failed = true
    console.log(`Only ${end.runs} of ${runs} runs were done in ${values.minutes} minutes: give it more (--minutes).`)
  }
} finally {
  for (const task of teardowns.reverse()) await task()
}
process.exit(failed ? 1 : 0)
