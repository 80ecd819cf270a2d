/*
 * The fault matrix (docs/fault-matrix.md), F72: clocks that are wrong, or jump while work is under way, in API, worker and Redis. The clock of a
 * process of ours is shifted by a preload of the test, that of Redis by a library that takes the place of libc's clock.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import root, { type Test } from 'tap'
import { within } from '../support/client.js'
import { API, BOUND_MS, SHORT, WORKER } from '../support/death.js'
import { call, delayed, latch, say } from '../support/model-reply.js'
import { begin } from '../support/schedule-http.js'
import { story } from '../support/world.js'

root.setTimeout(600_000)

const HOUR = 3_600_000
const SUPPORT = join(import.meta.dirname, '../support')

const dir = mkdtempSync(join(tmpdir(), 'interlock-clock-'))
process.once('exit', () => rmSync(dir, { recursive: true, force: true }))
let files = 0

/** A clock of a process of ours that can be set. */
function clock (_: Test, ms: number): { env: Record<string, string>, set: (ms: number) => void } {
  const file = join(dir, String(++files))
  const set = (to: number) => writeFileSync(file, String(to))
  set(ms)
  return { env: { NODE_OPTIONS: `--import=${pathToFileURL(join(SUPPORT, 'clock-shift.mjs')).href}`, CLOCK_SHIFT_FILE: file }, set }
}

for (const [what, ms] of [['an hour ahead', HOUR], ['a hundred seconds behind', -100_000]] as const) {
  story(`F72: an API process and a worker whose clocks are ${what} of the others: the death of that worker costs no more than ever, and what that API accepts is done`, async (t, { model, service, process }) => {
    const { env } = clock(t, ms)
    const [doomed, { client }] = await Promise.all([process('worker', env), process('api', env)])
    model.script('conv:a', ({ n }) => n === 1 ? delayed(say('never'), latch()) : say('done'))
    model.script('conv:b', [say('for somebody else')])
    const { run, stream } = await begin(client, { input: 'conv:a' })
    await model.waitForRequest(() => true)
    await service(WORKER)
    const before = await client.log({ run: run.id })
    await doomed.kill()
    const died = Date.now()
    await within(stream.ended, () => `nobody goes on: ${stream.types().join(' ')}`, 60_000)
    const log = await client.log({ run: run.id })
    t.match(await client.run(run.id), { status: 'completed', output: 'done' })
    // By the clock of the worker that went on, which is right.
    const cost = Date.parse(log[before.length]?.time ?? '') - died
    t.ok(cost <= BOUND_MS, `${log[before.length]?.type} ${cost} ms after the death`)
    const times = log.map(({ time }) => Date.parse(time))
    t.same(times, [...times].sort((a, b) => a - b), 'the times of its events only grow')
    t.equal((await client.finish({ input: 'conv:b' })).run.output, 'for somebody else')
  }, { env: SHORT, long: what === 'an hour ahead' })
}

story('F72: a clock that jumps by hours both ways while a run is under way: no timeout is early, nothing is done twice', async (t, { model, tools, service, process, tool }) => {
  const { env, set } = clock(t, 0)
  const [{ client }] = await Promise.all([service(API), process('worker', env)])
  const gates = [latch(), latch()]
  model.script('conv:a', ({ n }) => n === 1 ? delayed(call({ id: 'c', name: 'hold', arguments: { key: 'x', value: 'held' } }), gates[0]!) : delayed(say('done'), gates[1]!))
  const { run, stream } = await begin(client, { input: 'conv:a', tools: [tool('hold', { timeout_ms: 60_000 })], limits: { run_timeout_ms: 600_000 } })
  await model.waitForRequest(() => true)
  set(HOUR)
  gates[0]!.open()
  await tools.waitFor((attempts) => attempts.length === 1)
  set(-HOUR)
  tools.release('x')
  await model.waitForRequest(({ n }) => n === 2)
  set(2 * HOUR)
  gates[1]!.open()
  await stream.ended
  t.match(await client.run(run.id), { status: 'completed', output: 'done', usage: { llm_calls: 2, tool_calls: 1 } })
  t.notOk(stream.types().includes('turn.retrying'))
})

/** The library, or why there is none. */
function shiftedLibc (): { library: string } | { skip: string } {
  const library = join(dir, 'clock-shift.so')
  const built = spawnSync('cc', ['-shared', '-fPIC', '-O2', '-o', library, join(SUPPORT, 'clock-shift.c')], { encoding: 'utf8' })
  return built.status === 0 ? { library } : { skip: 'the clock of Redis is shifted by a small C library, and there is no C compiler for it on this machine' }
}

const libc = shiftedLibc()
if ('skip' in libc) {
  void root.test('F72: the clock of Redis', { skip: libc.skip }, async () => { /* see above */ })
} else {
  const file = join(dir, 'redis')
  writeFileSync(file, '0')
  for (const [what, seconds] of [['an hour ahead', 3600], ['a hundred seconds back', -100]] as const) {
    story(`F72: the clock of Redis jumps ${what} while runs are under way: each is done, with at most one LLM call more`, async (t, { model, service, process }) => {
      writeFileSync(file, '0')
      const [{ client }] = await Promise.all([service(API), process('worker')])
      const gate = latch()
      model.otherwise(({ conversation }, n) => n === 1 ? delayed(say(`${conversation} 1`), gate) : say(`${conversation} ${n}`))
      // What Redis calls an hour later is an hour later: a run has more time than the clock jumps.
      const runs = await Promise.all([1, 2, 3].map((i) => begin(client, { input: `conv:${i}`, limits: { run_timeout_ms: 2 * HOUR } })))
      for (const i of [1, 2, 3]) await model.waitForRequest(({ conversation }) => conversation === `conv:${i}`)
      writeFileSync(file, String(seconds))
      // Some renewals later it is known who still has what.
      await new Promise((resolve) => setTimeout(resolve, 2 * Number(SHORT.INTERLOCK_LOCK_TTL_MS)))
      gate.open()
      for (const { run, stream } of runs) {
        await stream.ended
        t.match(await client.run(run.id), { status: 'completed' })
      }
      t.ok(model.requests().length <= 6, `${model.requests().length} LLM calls`)
      const after = await client.finish({ input: 'conv:after' })
      t.equal(after.run.status, 'completed')
    }, { env: SHORT, ownRedis: { env: { LD_PRELOAD: libc.library, CLOCK_SHIFT_FILE: file } } })
  }
}
