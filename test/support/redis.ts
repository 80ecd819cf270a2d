import { spawn, type ChildProcess } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { cpSync, existsSync, mkdtempSync, readdirSync, rmSync, statSync, truncateSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import type { Log } from '../../src/redis/connect.js'
import { obtainServer, openRedis } from '../../src/redis/embedded.js'
import type { Owner } from './owner.js'

export const silent: Log = { info: () => {}, warn: () => {} }

let dataDir: string | undefined

/**
 * A Redis to test on, and a key prefix of one's own in it: whatever keys hold the prefix are deleted when `t` ends. The server is the
 * one `npm test` started for all files, or for a file run by hand one that lives as long as somebody uses it.
 */
export async function testRedis (t: Owner): Promise<{ url: string, prefix: string }> {
  const prefix = `t-${randomBytes(6).toString('hex')}`
  const url = process.env.INTERLOCK_TEST_REDIS ?? await ownServer(t)
  t.teardown(() => deleteKeys(url, prefix))
  return { url, prefix }
}

async function ownServer (t: Owner): Promise<string> {
  if (dataDir === undefined) {
    const folder = dataDir = mkdtempSync(join(tmpdir(), 'interlock-'))
    process.once('exit', () => rmSync(folder, { recursive: true, force: true }))
  }
  const { url, stop } = await openRedis({ redis: { dataDir, keyPrefix: 'il', partitions: 16, profile: 'fast' } }, silent)
  t.teardown(stop)
  return url
}

async function deleteKeys (url: string, prefix: string): Promise<void> {
  const redis = new Redis(url)
  for await (const keys of redis.scanStream({ match: `*${prefix}*`, count: 1000 }) as AsyncIterable<string[]>) {
    if (keys.length > 0) await redis.unlink(keys)
  }
  await redis.quit()
}

/**
 * Where an fsync takes no time. With `appendfsync everysec` Redis holds back what it has acknowledged while one is under way: on a busy disk a
 * SIGKILL would lose what an image of its files lacks as well, and no test could say what must be there.
 */
const quick = existsSync('/dev/shm') ? '/dev/shm' : tmpdir()

/** A redis-server of one test's own, to be stopped, killed and started again. */
export interface PrivateRedis {
  url: string
  pid: () => number
  /** Freezes it (SIGSTOP): connections stay, nothing is answered. */
  pause: () => void
  resume: () => void
  /** Ends it at once (SIGKILL), paused or not; resolves when it is gone. */
  kill: () => Promise<void>
  /** Starts it again with the data it has; resolves when it accepts commands. */
  start: () => Promise<void>
  /** A copy of its data as they are on disk at this moment: a backup, or what a machine that lost power comes back with. */
  image: () => string
  /** Puts an image in the place of its data, while it does not run. */
  restore: (image: string) => void
  /** Bytes in the file that commands are appended to. */
  tail: () => number
  /** Cuts that file to so many bytes, while it does not run. */
  truncate: (bytes: number) => void
}

export interface PrivateRedisOptions { tcp?: boolean, cluster?: boolean, args?: string[], env?: Record<string, string> }

/**
 * Starts a private redis-server with an append-only file, on a unix socket or, with `tcp` or `cluster`, on a port. Ended with `t`.
 *
 * @param options `cluster`: a cluster of this one node, which enforces hash tags like a large one. `args`: more of its settings. `env`: more of its environment.
 */
export async function privateRedis (t: Owner, options: PrivateRedisOptions = {}): Promise<PrivateRedis> {
  const { bin } = await obtainServer(undefined, silent)
  const dir = mkdtempSync(join(quick, 'interlock-'))
  const socket = join(dir, 'redis.sock')
  const port = options.tcp || options.cluster ? await freePort() : 0
  const args = ['--bind', '127.0.0.1', '--port', String(port), '--unixsocket', socket, '--dir', dir, '--appendonly', 'yes', '--save', '', ...options.args ?? []]
  if (options.cluster) args.push('--cluster-enabled', 'yes', '--cluster-announce-ip', '127.0.0.1', '--cluster-port', String(await freePort()))
  let child: ChildProcess | undefined
  let guard: ChildProcess | undefined

  async function start (): Promise<void> {
    // A file that has reached its limit then takes no more, like one on a full disk; otherwise the signal for it would end the server.
    child = spawn('/bin/sh', ['-c', 'trap "" XFSZ; exec "$0" "$@"', bin, ...args], { stdio: 'ignore', env: { ...process.env, ...options.env } })
    // A test file that hangs is killed by tap: the guard's input then ends, and the server with it.
    guard = spawn('/bin/sh', ['-c', 'read -r _; kill -9 "$0"', String(child.pid)], { stdio: ['pipe', 'ignore', 'ignore'] })
    const died = once(child, 'exit').then(() => { throw new Error('redis-server has ended at once') })
    died.catch(() => {}) // when it is killed later, that is no error
    await Promise.race([died, usable(socket, options.cluster ?? false)])
  }
  async function kill (): Promise<void> {
    if (child === undefined) return
    const gone = Promise.all([once(child, 'exit'), once(guard!, 'exit')])
    guard!.kill('SIGKILL')
    child.kill('SIGKILL')
    child = undefined
    await gone
  }
  t.teardown(async () => {
    await kill()
    rmSync(dir, { recursive: true, force: true })
  })
  await start()
  return {
    url: options.cluster ? `redis+cluster://127.0.0.1:${port}` : port > 0 ? `redis://127.0.0.1:${port}` : socket,
    pid: () => child!.pid!,
    pause: () => { child!.kill('SIGSTOP') },
    resume: () => { child!.kill('SIGCONT') },
    kill,
    start,
    image () {
      const image = mkdtempSync(join(tmpdir(), 'interlock-image-'))
      t.teardown(() => rmSync(image, { recursive: true, force: true }))
      for (const name of data()) cpSync(join(dir, name), join(image, name), { recursive: true })
      return image
    },
    restore (image) {
      for (const name of data()) rmSync(join(dir, name), { recursive: true })
      cpSync(image, dir, { recursive: true })
    },
    tail: () => statSync(appended()).size,
    truncate: (bytes) => truncateSync(appended(), bytes)
  }

  function data (): string[] {
    return readdirSync(dir).filter((name) => /^appendonly|\.rdb$/.test(name))
  }

  /** One file before Redis 7, the newest of several since. */
  function appended (): string {
    const files = readdirSync(dir, { recursive: true, encoding: 'utf8' }).filter((name) => /\.incr\.aof$|^appendonly\.aof$/.test(name))
    return join(dir, files.sort((a, b) => a.localeCompare(b, 'en', { numeric: true })).at(-1) ?? '')
  }
}

async function usable (socket: string, cluster: boolean): Promise<void> {
  const redis = new Redis({ path: socket, retryStrategy: () => 10, maxRetriesPerRequest: null })
  redis.on('error', () => {}) // not up yet
  await redis.ping()
  if (cluster) {
    await redis.call('CLUSTER', 'ADDSLOTSRANGE', '0', '16383').catch(() => {}) // has them already after a restart
    while (!String(await redis.call('CLUSTER', 'INFO')).includes('cluster_state:ok')) await sleep(20)
  }
  await redis.quit()
}

/** A port nobody listens on now. */
async function freePort (): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}
