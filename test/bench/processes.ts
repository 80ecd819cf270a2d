import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import type { ModelServerStats } from '../support/model-server.js'
import { obtainServer } from '../../src/redis/embedded.js'

const root = join(import.meta.dirname, '../..')

/** A process of the benchmark, ended by `stop`. */
export interface Started { pid: number, stop: () => Promise<void> }

async function stop (child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return
  child.kill('SIGTERM')
  await once(child, 'exit')
}

async function freePort (): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  return port
}

/** A Redis of its own, on TCP so that its clients can be told apart. `INTERLOCK_BENCH_FSYNC=always` measures what the durable profile costs. */
export async function startRedis (dir: string): Promise<Started & { url: string, port: number }> {
  const server = await obtainServer(process.env.REDIS_SERVER_BIN, { info: () => {}, warn: () => {} })
  const port = await freePort()
  const options = ['--port', String(port), '--bind', '127.0.0.1', '--dir', dir, '--appendonly', 'yes', '--appendfsync', process.env.INTERLOCK_BENCH_FSYNC ?? 'everysec', '--save', '']
  const child = spawn(server.bin, [...options, '--maxmemory-policy', 'noeviction'], { stdio: ['ignore', 'pipe', 'inherit'] })
  for await (const line of createInterface({ input: child.stdout })) if (line.includes('Ready to accept')) break
  child.stdout.resume()
  return { pid: child.pid as number, port, url: `redis://127.0.0.1:${port}`, stop: () => stop(child) }
}

/** The recording model server, in a process of its own. */
export async function startModel (): Promise<Started & { origin: string, stats: () => Promise<ModelServerStats>, newest: () => Promise<ModelServerStats['newest']> }> {
  const child = spawn(process.execPath, ['--import', 'tsx', join(root, 'test/support/model-server-main.ts'), '--script=3x5'], { stdio: ['pipe', 'pipe', 'inherit'] })
  const [line] = await once(createInterface({ input: child.stdout }), 'line') as [string]
  const { port } = JSON.parse(line) as { port: number }
  const origin = `http://127.0.0.1:${port}`
  const stats = async () => await (await fetch(`${origin}/_stats`)).json() as ModelServerStats
  return { pid: child.pid as number, origin, stats, newest: async () => (await stats()).newest, stop: () => stop(child) }
}

/** The service as it is shipped: compiled, API and worker in one process. */
export async function startService (env: Record<string, string>): Promise<Started & { origin: string }> {
  const port = await freePort()
  const child = spawn(process.execPath, [join(root, 'dist/src/server.js')], {
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...process.env, LOG_LEVEL: 'error', PORT: String(port), INTERLOCK_TOOLS_DIR: join(import.meta.dirname, 'tools'), NODE_ENV: 'production', ...env }
  })
  const origin = `http://127.0.0.1:${port}`
  for (let tries = 0; ; tries++) {
    const ready = await fetch(`${origin}/health/ready`).then((response) => response.ok, () => false)
    if (ready) break
    if (tries > 300) throw new Error('the service did not get ready within 30 s')
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
  return { pid: child.pid as number, origin, stop: () => stop(child) }
}

/** Resident memory of a process in bytes. Linux only; 0 elsewhere. */
export function residentBytes (pid: number): number {
  try {
    return Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1] ?? 0) * 1024
  } catch {
    return 0
  }
}

/** CPU time a process has used, in milliseconds. Linux only; 0 elsewhere. */
export function cpuMs (pid: number): number {
  try {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? []
    return (Number(fields[11]) + Number(fields[12])) * 10
  } catch {
    return 0
  }
}
