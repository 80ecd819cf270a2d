import { spawn, type ChildProcess } from 'node:child_process'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { FastifyInstance } from 'fastify'
import { pino } from 'pino'
import type { Test } from 'tap'
import { buildApp, type HttpConfig } from '../../src/app.js'
import { loadConfig } from '../../src/config.js'
import { openInstance, type Instance } from '../../src/instance.js'
import { createClient, within, type Client } from './client.js'
import { compiled } from './compiled.js'
import type { Owner } from './owner.js'

/** Settings as a process gets them: environment variables. */
export type Env = Record<string, string>

export interface Service {
  url: string
  client: Client
  app: FastifyInstance
  instance: Instance
  /** Every line it has logged. */
  logs: string[]
  /** Ends it as SIGTERM does. Twice is fine. */
  stop: () => Promise<void>
}

export interface ServiceOptions {
  env: Env
  /** Default: API and worker. Every one of them listens; without the API it answers for its health only. */
  roles?: { api: boolean, worker: boolean }
  /** What has no variable, such as the interval of heartbeats. */
  http?: Partial<HttpConfig>
}

/** The service within the test process, put together as `runProcess` does it, and stopped with `t`. For tests that need no process of their own. */
export async function startService (t: Test, { env, roles = { api: true, worker: true }, http }: ServiceOptions): Promise<Service> {
  const config = loadConfig(env)
  const logs: string[] = []
  const log = pino({ level: 'info' }, { write: (line: string) => { logs.push(line) } })
  const instance = await openInstance(config, roles, log)
  const app = await buildApp({
    services: instance.services,
    config: { apiKeys: config.http.apiKeys, host: config.http.host, ...http },
    logger: log,
    ...(!roles.api && { routes: 'operations' as const })
  })
  let stopping: Promise<void> | undefined
  const stop = () => stopping ??= (async () => {
    await Promise.all([app.close(), instance.drain()])
    await instance.stop()
  })()
  t.teardown(stop)
  const url = await app.listen({ host: config.http.host, port: 0 })
  await instance.start()
  return { url, client: createClient(url), app, instance, logs, stop }
}

export interface Exit { code: number | null, signal: NodeJS.Signals | null }

export interface ServiceProcess {
  pid: number
  url: string
  client: Client
  /** Every line of its standard output. */
  logs: string[]
  stderr: () => string
  signal: (name: NodeJS.Signals) => void
  /** Resolves when it is gone. */
  exited: Promise<Exit>
  /** SIGKILL, and waits for it. */
  kill: () => Promise<Exit>
}

export type ProcessKind = 'all' | 'api' | 'worker'

const ENTRY: Record<ProcessKind, string[]> = { all: ['src/server.js'], api: ['src/server.js', '--api'], worker: ['src/worker.js'] }

export interface SpawnedProcess extends Omit<ServiceProcess, 'url' | 'client'> {
  /** Resolves with its URL. */
  listening: Promise<string>
  /** Resolves when it works. */
  ready: Promise<void>
}

/** Also when a test file crashes, nothing it has started goes on. */
const running = new Set<ChildProcess>()
process.once('exit', () => {
  for (const child of running) child.kill('SIGKILL')
})

/** A process of the service, killed with `t` if it still runs. Nothing is waited for: `startProcess` does. */
export function spawnProcess (t: Owner, kind: ProcessKind, env: Env): SpawnedProcess {
  const [entry = '', ...args] = ENTRY[kind]
  const child = spawn(process.execPath, ['--enable-source-maps', join(compiled(), entry), ...args], {
    env: { PATH: process.env.PATH, PORT: '0', INTERLOCK_WORKER_PORT: '0', LOG_LEVEL: 'info', ...env },
    stdio: ['ignore', 'pipe', 'pipe']
  })
  running.add(child)
  child.once('exit', () => running.delete(child))
  const logs: string[] = []
  let stderr = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => { stderr += text })
  const exited = new Promise<Exit>((resolve) => child.once('close', (code, signal) => resolve({ code, signal })))
  const said = { listening: (_: string) => { /* set below */ }, ready: (_: string) => { /* set below */ } }
  const ended = exited.then(({ code, signal }) => { throw new Error(`the ${kind} process ended (${code ?? signal}): ${stderr}`) })
  const listening = Promise.race([ended, new Promise<string>((resolve) => { said.listening = resolve })])
  const ready = Promise.race([ended, new Promise<string>((resolve) => { said.ready = resolve })]).then(() => { /* it works */ })
  // A process that is not waited for may end.
  for (const promise of [listening, ready]) promise.catch(() => {})
  createInterface(child.stdout).on('line', (line) => {
    logs.push(line)
    const { msg, address = '' } = JSON.parse(line) as { msg?: string, address?: string }
    if (msg === 'listening' || msg === 'ready') said[msg](address)
  })
  const kill = () => {
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
    return exited
  }
  t.teardown(kill)
  return { pid: child.pid ?? 0, logs, stderr: () => stderr, signal: (name) => { child.kill(name) }, exited, kill, listening, ready }
}

/** A process of the service that works. */
export async function startProcess (t: Owner, kind: ProcessKind, env: Env): Promise<ServiceProcess> {
  const { listening, ready, ...rest } = spawnProcess(t, kind, env)
  // Several may start at once, on a machine that is busy already.
  const [url] = await within(Promise.all([listening, ready]), () => `the ${kind} process is not ready: ${rest.stderr()}`, 120_000)
  return { ...rest, url, client: createClient(url) }
}
