import { spawn, type ChildProcess } from 'node:child_process'
import diagnostics from 'node:diagnostics_channel'
import { once } from 'node:events'
import { createRequire } from 'node:module'
import { createServer, type AddressInfo } from 'node:net'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'

const root = dirname(createRequire(import.meta.url).resolve('@modelcontextprotocol/server-everything/package.json'))

/** The program of `mcp-server-everything`. */
export const everything = join(root, 'dist/index.js')

/** Its command on standard input and output. */
export const everythingByStdio = { command: process.execPath, args: [everything, 'stdio'] }

export interface Everything {
  port: number
  url: string
  /** Lines it has printed. */
  lines: string[]
  /** Ends it with SIGKILL; resolves when it is gone. */
  kill: () => Promise<void>
}

/** `mcp-server-everything` on streamable HTTP, in a process of its own. */
export async function startEverything (port?: number): Promise<Everything> {
  const chosen = port ?? await freePort()
  const child = spawn(process.execPath, [everything, 'streamableHttp'], { env: { ...process.env, PORT: String(chosen) }, stdio: ['ignore', 'pipe', 'pipe'] })
  const exited = once(child, 'exit')
  const lines: string[] = []
  createInterface(child.stdout).on('line', (line) => lines.push(line))
  const said: string[] = []
  for await (const line of createInterface(child.stderr)) {
    said.push(line)
    if (line.includes('listening')) break
  }
  if (!said.some((line) => line.includes('listening'))) throw new Error(`mcp-server-everything did not start: ${said.join(' ')}`)
  child.stderr.resume()
  return {
    port: chosen,
    url: `http://127.0.0.1:${chosen}/mcp`,
    lines,
    async kill () {
      child.kill('SIGKILL')
      await exited
    }
  }
}

export interface Children {
  children: ChildProcess[]
  /** Resolves once there were so many. */
  started: (count: number) => Promise<void>
  stop: () => void
}

/** Every process this one starts from now on, in order. */
export function watchChildren (): Children {
  const children: ChildProcess[] = []
  const waiting = new Map<number, () => void>()
  const note = (message: unknown): void => {
    children.push((message as { process: ChildProcess }).process)
    waiting.get(children.length)?.()
  }
  diagnostics.subscribe('child_process', note)
  return {
    children,
    started: (count) => new Promise((resolve) => {
      if (children.length >= count) resolve()
      else waiting.set(count, resolve)
    }),
    stop: () => { diagnostics.unsubscribe('child_process', note) }
  }
}

async function freePort (): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  await new Promise((resolve) => server.close(resolve))
  return port
}
