/**
 * `npm run bench`: what the service costs, beside the floor measured in the same run. Everything runs on this machine, in processes of
 * its own, and ends by itself. `npm run bench -- --quick` takes fewer samples; a name runs one part (`single`, `many`, `batches`,
 * `turns`, `interrupt`, `commands`, `idle`).
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { run, type Seen } from './client.js'
import { countCommands } from './commands.js'
import { floorLoop } from './floor.js'
import { interrupts } from './interrupt.js'
import { cpuMs, residentBytes, startModel, startRedis, startService } from './processes.js'

const quick = process.argv.includes('--quick')
const parts = process.argv.slice(2).filter((arg) => !arg.startsWith('--'))
const wants = (part: string) => parts.length === 0 || parts.includes(part)

const quantile = (values: number[], q: number) => [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * q))] as number
const ms = (value: number) => `${value.toFixed(value < 100 ? 2 : 0)} ms`
const p = (values: number[]) => `p50 ${ms(quantile(values, 0.5))}  p99 ${ms(quantile(values, 0.99))}`
let missed = 0

function title (text: string): void {
  console.log(`\n${text}`)
}

/** One figure, and whether it keeps within its budget. */
function figure (name: string, value: string, within?: boolean, budget?: string): void {
  if (within === false) missed++
  const verdict = within === undefined ? '' : `${within ? '✓' : '✗'} budget ${budget}`
  console.log(`  ${name.padEnd(46)} ${value.padEnd(34)} ${verdict}`)
}

function body (script: string, tool: string | null, limits: object = {}) {
  return { input: `script:${script}`, model: 'bench', ...(tool !== null && { tools: [{ kind: 'module', name: tool }] }), limits }
}

function must (seen: Seen): Seen {
  if (seen.terminal !== 'run.completed') throw new Error(`a run ended with ${seen.terminal}`)
  return seen
}

async function times (count: number, task: (i: number) => Promise<number>): Promise<number[]> {
  const values: number[] = []
  for (let i = 0; i < count; i++) values.push(await task(i))
  return values
}

/** Keeps `width` tasks going until `count` are done; returns the wall time in milliseconds. */
async function atOnce (count: number, width: number, task: (i: number) => Promise<unknown>): Promise<number> {
  const started = performance.now()
  let next = 0
  await Promise.all(Array.from({ length: width }, async () => {
    for (let i = next++; i < count; i = next++) await task(i)
  }))
  return performance.now() - started
}

const dir = mkdtempSync(join(tmpdir(), 'interlock-bench-'))
const redis = await startRedis(dir)
const model = await startModel()
const service = await startService({
  REDIS_URL: redis.url, OPENAI_BASE_URL: `${model.origin}/v1`, OPENAI_API_KEY: 'bench-key-of-no-worth', INTERLOCK_TURN_CONCURRENCY: '2000'
})
try {
  const streaming = floorLoop(model.origin, true)
  const plain = floorLoop(model.origin, false)
  const work = { name: 'work', run: (i: number) => ({ i }) }

  console.log('warming up …')
  await times(quick ? 50 : 200, async () => must(await run(service.origin, body('3x5', 'work'))).end)
  await times(quick ? 50 : 200, () => streaming('script:3x5', work))
  await times(quick ? 50 : 200, () => plain('script:3x5', work))

  if (wants('single')) {
    const count = quick ? 100 : 400
    const floor: number[] = []
    const floorPlain: number[] = []
    const seen: Seen[] = []
    // In turns, so that a noisy moment of the machine meets all of them.
    for (let i = 0; i < count; i++) {
      floor.push(await streaming('script:3x5', work))
      floorPlain.push(await plain('script:3x5', work))
      seen.push(must(await run(service.origin, body('3x5', 'work'))))
    }
    const ends = seen.map((one) => one.end)
    const first = seen.map((one) => one.first_event)
    const ratio = quantile(ends, 0.5) / quantile(floor, 0.5)
    title(`One run at a time: 3 turns of 5 parallel calls, then the answer (${count} runs)`)
    figure('floor: bare openai loop, streaming', p(floor))
    figure('floor: bare openai loop, not streaming', p(floorPlain))
    figure('Interlock, POST to terminal event', p(ends), ratio <= 6, `<= 6 x floor (${ratio.toFixed(1)} x)`)
    figure('overhead per run / per LLM call', `${ms(quantile(ends, 0.5) - quantile(floor, 0.5))} / ${ms((quantile(ends, 0.5) - quantile(floor, 0.5)) / 4)}`)
    figure('first event', p(first), quantile(first, 0.5) <= 3, '<= 3 ms')
  }

  if (wants('many')) {
    const count = quick ? 200 : 1000
    const floorWall = await atOnce(count, 50, () => streaming('script:3x5', work))
    const before = [cpuMs(service.pid), cpuMs(redis.pid)] as const
    const ends: number[] = []
    const wall = await atOnce(count, 50, async () => ends.push(must(await run(service.origin, body('3x5', 'work'))).end))
    const cpu = [cpuMs(service.pid) - before[0], cpuMs(redis.pid) - before[1]] as const
    const rate = count / wall * 1000
    const floorRate = count / floorWall * 1000
    title(`50 runs at once: 3 turns of 5 parallel calls (${count} runs)`)
    figure('floor: bare openai loop, streaming', `${floorRate.toFixed(0)} runs/s`)
    figure('Interlock', `${rate.toFixed(0)} runs/s  ${p(ends)}`, rate >= 0.3 * floorRate, `>= 0.3 x floor (${(rate / floorRate).toFixed(2)} x)`)
    figure('CPU per run: service / Redis', `${ms(cpu[0] / count)} / ${ms(cpu[1] / count)}`)
  }

  if (wants('batches')) {
    title('Parallel calls')
    const typical = new Map<string, number>()
    // The first one is what the others are measured against.
    for (const [spec, ms, count, budget] of [['1x1', 100, 20, null], ['1x5', 100, 20, 107], ['1x10', 1000, 5, 1020]] as const) {
      const tool = { name: `work_${ms}ms`, run: (i: number) => new Promise((resolve) => { setTimeout(resolve, ms, { i }) }) }
      const floor: number[] = []
      const ends: number[] = []
      const batches: number[] = []
      for (let i = 0; i < (quick ? count / 5 : count); i++) {
        floor.push(await streaming(`script:${spec}`, tool))
        ends.push(must(await run(service.origin, body(spec, tool.name))).end)
        const [asked, told] = (await model.newest()).slice(-2)
        batches.push((told?.arrived ?? NaN) - (asked?.ended ?? NaN))
      }
      const name = `${spec.slice(2)} call${spec === '1x1' ? '' : 's'} of ${ms} ms`
      typical.set(spec, quantile(batches, 0.5))
      figure(`floor: ${name}, whole run`, p(floor))
      figure(`${name}, whole run`, p(ends))
      figure(`${name}, LLM answer to next LLM request`, p(batches), budget === null ? undefined : quantile(batches, 0.5) <= budget, `<= ${budget} ms`)
    }
    const [one = NaN, five = NaN, ten = NaN] = ['1x1', '1x5', '1x10'].map((spec) => typical.get(spec))
    figure('5 x 100 ms in one batch / one call of 100 ms', `${ms(five)} / ${ms(one)}`, five <= 1.3 * one, `<= 1.3 x (${(five / one).toFixed(2)} x)`)
    figure('10 x 1 s in one batch', ms(ten), ten <= 1100, '<= 1100 ms')
  }

  if (wants('turns')) {
    const turns = 200
    const between = async (run: () => Promise<unknown>) => {
      await run()
      const seen = (await model.newest()).slice(-turns - 1)
      const gaps = seen.slice(1).map(({ arrived }, i) => arrived - (seen[i]?.ended ?? NaN))
      return [quantile(gaps.slice(1, 41), 0.5), quantile(gaps.slice(-40), 0.5)] as const
    }
    const script = `${turns}x1`
    const floor = await between(() => streaming(`script:${script}`, work))
    const own = await between(async () => must(await run(service.origin, body(script, 'work', { max_turns: turns + 1 }))))
    // What the model must be sent grows, and the floor pays for that as well.
    const growth = [own[1] - own[0], floor[1] - floor[0]] as const
    title('The same cost late in a conversation: 200 turns of one call, from an LLM answer to the next LLM request')
    figure('floor: turns 2-41 / 160-200', `${ms(floor[0])} / ${ms(floor[1])}`)
    figure('Interlock: turns 2-41 / 160-200', `${ms(own[0])} / ${ms(own[1])}`, growth[0] <= growth[1] + own[0] * 0.25, `growth <= floor's + 25 % (${ms(growth[0])}, ${ms(growth[1])})`)
  }

  if (wants('interrupt')) {
    const count = quick ? 20 : 200
    title(`A message that interrupts (${count} each), from its POST on`)
    for (const [name, busy, script, tool] of [
      ['an LLM call', 'turn.started', '0x0@60000', null], ['5 calls of 1 s', 'batch.started', '9x5', 'work_1000ms']
    ] as const) {
      const { accepted, asked } = await interrupts(service.origin, body(script, tool, { max_turns: count + 2 }), busy, count, model.newest)
      figure(`during ${name}: accepted`, p(accepted))
      figure(`during ${name}: next LLM request arrives`, p(asked), quantile(asked, 0.5) <= 50, '<= 50 ms')
    }
  }

  if (wants('commands')) {
    const { sent, inner } = await countCommands(redis.url, async () => {
      must(await run(service.origin, body('20x5', 'work', { max_turns: 30 })))
    })
    const own = [...sent].filter(([name]) => !/worker|queue|ping/.test(name)).sort((a, b) => b[1] - a[1])
    const total = own.reduce((sum, [, n]) => sum + n, 0)
    const path = own.filter(([name]) => /^(commit|hmget)/.test(name) || name === 'script (lock)').reduce((sum, [, n]) => sum + n, 0)
    // Of the lock's two scripts per turn one releases it, which nobody waits for; the ledger (lrange) is read beside the other.
    const locks = (sent.get('script (lock)') ?? 0) / 2
    const trips = (path - locks) / 20
    title('Redis, per tool turn of 5 calls (20 turns)')
    for (const [name, n] of own) figure(name, (n / 20).toFixed(2))
    figure('all commands sent / called by scripts', `${(total / 20).toFixed(1)} / ${(inner / 20).toFixed(1)}`)
    figure('round trips on the path', trips.toFixed(2), trips <= 5, '<= 5')
  }

  if (wants('idle')) {
    const count = quick ? 200 : 1000
    const before = residentBytes(service.pid)
    let peak = 0
    let open = 0
    const sampler = setInterval(() => { peak = Math.max(peak, residentBytes(service.pid)) }, 50)
    const started = performance.now()
    // A few at a time: it is about what those that wait take, not about a crowd at the door.
    let next = 0
    const seen: Seen[] = []
    const begin = async (): Promise<void> => {
      const ended: Promise<void>[] = []
      while (next++ < count) {
        await new Promise<void>((resolve, reject) => {
          const over = run(service.origin, body('0x0@10000', null), { onOpen: () => {
            open++
            resolve()
          } }).then((one) => { seen.push(must(one)) })
          over.catch(reject)
          ended.push(over)
        })
      }
      await Promise.all(ended)
    }
    await Promise.all(Array.from({ length: 20 }, begin))
    clearInterval(sampler)
    const each = (peak - before) / count / 1024
    title(`${count} idle streaming runs, LLM answers after 10 s`)
    figure('all ended after', ms(performance.now() - started))
    figure('first event', p(seen.map((one) => one.first_event)))
    figure('memory per run (peak growth)', `${each.toFixed(0)} KB (${open} open)`, each <= 120, '<= 120 KB')
  }

  const { violations } = await model.stats()
  title('Judged by the model server')
  figure('invalid payloads', String(violations), violations === 0, '0')
  console.log(missed === 0 ? '\nEvery budget was kept.' : `\n${missed} budgets were missed.`)
} finally {
  await service.stop()
  await model.stop()
  await redis.stop()
  rmSync(dir, { recursive: true, force: true })
}
