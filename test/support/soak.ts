import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { within } from './client.js'
import type { ModelServerStats } from './model-server.js'
import { privateRedis } from './redis.js'
import { startProcess, type ServiceProcess } from './service.js'
import { createLaneClient } from './soak-lane.js'
import { look, leftBehind, type Left } from './soak-redis.js'
import type { Owner } from './owner.js'

const root = join(import.meta.dirname, '../..')
const PREFIX = 'soak'

export interface SoakOptions {
  runs: number
  /** Runs between two looks at what is held. */
  every: number
  /** Conversations at once. */
  lanes: number
  workers: number
  /** Ends early after this many milliseconds; what was done by then is judged. */
  boundMs: number
}

/** What one process holds. Bytes. */
export interface Held {
  /** The mean while it worked, and after all garbage was collected. */
  rssAtWork: number
  rss: number
  heap: number
  external: number
  /** What keeps its event loop alive, by kind. */
  handles: Record<string, number>
}

/** The state of everything after so many runs, with all clients at rest. */
export interface Look {
  runs: number
  seconds: number
  /** By the name of the process: `api`, `worker-1`, … */
  processes: Record<string, Held>
  redis: Left
  /** Lines of warnings and errors the processes have logged so far, by message. */
  warnings: Record<string, number>
}

export interface Soaked {
  looks: Look[]
  /** After the clients have deleted their last conversations. */
  end: Look
  model: ModelServerStats
  /** What must not be there, in words; empty: nothing. */
  left: string[]
}

/**
 * Many short runs on real processes, by clients that come and go: on new and on known conversations, read as they happen, interrupted, steered, cancelled,
 * approved, left and taken up again. Every so often all clients pause, and what is held then is looked at.
 */
export async function soak (t: Owner, { runs, every, lanes, workers, boundMs }: SoakOptions, report: (look: Look) => void = () => {}): Promise<Soaked> {
  const server = await privateRedis(t)
  const model = await startModelProcess(t)
  const env = {
    REDIS_URL: server.url,
    INTERLOCK_KEY_PREFIX: PREFIX,
    OPENAI_BASE_URL: `${model.origin}/v1`,
    OPENAI_API_KEY: 'soak-key-of-no-worth',
    INTERLOCK_TOOLS_DIR: join(root, 'test/bench/tools'),
    INTERLOCK_SWEEP_MS: '500',
    NODE_ENV: 'production',
    NODE_OPTIONS: `--require=${join(import.meta.dirname, 'soak-probe.cjs')} ${process.env.SOAK_NODE_OPTIONS ?? ''}`.trim()
  }
  const names = ['api', ...Array.from({ length: workers }, (_, i) => `worker-${i + 1}`)]
  const processes = new Map<string, ServiceProcess>()
  // One by one: on a busy machine a start takes long enough as it is.
  for (const name of names) processes.set(name, await startProcess(t, name === 'api' ? 'api' : 'worker', env))
  const api = processes.get('api') as ServiceProcess
  const redis = new Redis(server.url)
  const client = createLaneClient(api.url)
  const open = Array.from({ length: lanes }, (_, i) => client.openLane(`lane-${i + 1}`))
  const warnings: Record<string, number> = {}
  const sampler = sampleMemory(processes)
  t.teardown(async () => {
    sampler.stop()
    client.close()
    await redis.quit()
  })

  const begun = performance.now()
  let next = 0

  async function round (until: number): Promise<void> {
    await Promise.all(open.map(async (lane) => {
      while (next < until) {
        const number = next++
        await within(lane.run(number), () => `run ${number} does not end`, 60_000)
      }
    }))
  }

  async function lookAround (): Promise<Look> {
    const rssAtWork = sampler.take()
    const live = open.flatMap((lane) => lane.conversation() ?? [])
    // A lease is given up and a stream closed just after the last event was told: the state of rest is waited for.
    const redisNow = await settled(redis, live, client.posts(), workers)
    const held = await Promise.all([...processes].map(async ([name, process]) => {
      collectWarnings(process, warnings)
      return [name, { ...await probe(process), rssAtWork: rssAtWork[name] ?? 0 }] as const
    }))
    return { runs: next, seconds: (performance.now() - begun) / 1000, processes: Object.fromEntries(held), redis: redisNow, warnings: { ...warnings } }
  }

  const looks: Look[] = []
  const left = new Set<string>()
  while (next < runs && performance.now() - begun < boundMs) {
    await round(Math.min(runs, next + every))
    const now = await lookAround()
    looks.push(now)
    report(now)
    for (const what of now.redis.faults) left.add(`after ${now.runs} runs: ${what}`)
  }
  for (const lane of open) await lane.leave()
  const end = await lookAround()
  for (const what of end.redis.faults) left.add(`at the end: ${what}`)
  for (const what of await leftOpen(processes)) left.add(`at the end: ${what}`)
  const stats = await model.stats()
  if (stats.violations > 0) left.add(`${stats.violations} invalid payloads, the first: ${JSON.stringify(stats.firstViolations[0])}`)
  return { looks, end, model: stats, left: [...left] }
}

async function startModelProcess (t: Owner): Promise<{ origin: string, stats: () => Promise<ModelServerStats> }> {
  const child = spawn(process.execPath, ['--import', 'tsx', join(import.meta.dirname, 'model-server-main.ts'), '--script=2x2'], { stdio: ['pipe', 'pipe', 'inherit'] })
  t.teardown(async () => {
    if (child.exitCode !== null || child.signalCode !== null) return
    child.kill('SIGTERM')
    await once(child, 'exit')
  })
  const [line] = await once(createInterface({ input: child.stdout }), 'line') as [string]
  const origin = `http://127.0.0.1:${(JSON.parse(line) as { port: number }).port}`
  return { origin, stats: async () => await (await fetch(`${origin}/_stats`)).json() as ModelServerStats }
}

/** Reads what is in Redis until nothing is out of place, or until that takes so long that it is a finding. */
async function settled (redis: Redis, live: string[], posts: number, workers: number): Promise<Left> {
  for (let tries = 0; ; tries++) {
    const found = await look(redis, PREFIX)
    const faults = leftBehind(found, { live, posts, workers })
    if (faults.length === 0 || tries === 40) return { ...found, faults }
    await sleep(100)
  }
}

/** Asks a process to collect its garbage and to say what stays. */
async function probe (process: ServiceProcess): Promise<Omit<Held, 'rssAtWork'>> {
  process.signal('SIGWINCH')
  for (let tries = 0; tries < 600; tries++) {
    const line = process.logs.find((one) => one.startsWith('{"msg":"probe"'))
    if (line !== undefined) {
      process.logs.length = 0
      const { rss, heapUsed, external, handles } = JSON.parse(line) as { rss: number, heapUsed: number, external: number, handles: Record<string, number> }
      return { rss, heap: heapUsed, external, handles }
    }
    await sleep(25)
  }
  throw new Error('a process did not say what it holds')
}

function collectWarnings ({ logs }: ServiceProcess, into: Record<string, number>): void {
  for (const line of logs.splice(0)) {
    const { level, msg = '' } = JSON.parse(line) as { level: number, msg?: string }
    if (level >= 40) into[msg] = (into[msg] ?? 0) + 1
  }
}

/** The resident memory of processes, sampled while they work. Linux only; 0 elsewhere. */
function sampleMemory (processes: Map<string, ServiceProcess>): { take: () => Record<string, number>, stop: () => void } {
  const samples: Record<string, number[]> = {}
  const sample = () => {
    for (const [name, { pid, logs }] of processes) {
      (samples[name] ??= []).push(residentBytes(pid))
      // Nothing reads what is told of every request.
      if (logs.length > 20_000) logs.splice(0, 10_000)
    }
  }
  const timer = setInterval(sample, 250)
  return {
    take () {
      sample()
      const means = Object.fromEntries(Object.entries(samples).map(([name, values]) => [name, mean(values)]))
      for (const values of Object.values(samples)) values.length = 0
      return means
    },
    stop: () => clearInterval(timer)
  }
}

function residentBytes (pid: number): number {
  try {
    return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024
  } catch {
    return 0
  }
}

export function mean (values: number[]): number {
  return values.length === 0 ? 0 : values.reduce((sum, value) => sum + value, 0) / values.length
}

/** Work that processes still think they have. */
async function leftOpen (processes: Map<string, ServiceProcess>): Promise<string[]> {
  const found: string[] = []
  for (const [name, { client }] of processes) {
    const { text } = await client.request('GET', '/metrics')
    for (const [, kind, value] of text.matchAll(/^interlock_running\{kind="(\w+)"\} (\d+)$/gm)) if (value !== '0') found.push(`${name} runs ${value} ${kind}`)
  }
  return found
}
