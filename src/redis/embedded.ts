import { execFileSync, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { closeSync, constants, lstatSync, mkdirSync, openSync, readFileSync, realpathSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import { ConfigError, type Config } from '../config.js'
import type { Log } from './connect.js'
import { fetchServer } from './fetch-server.js'
import { findServer, probeServer, serverFolders, type Server } from './find-server.js'
import { acceptedRedisUrls } from './url.js'
import { oldestVersion } from './version.js'

export interface OpenRedis {
  /** For `connectRedis`. */
  url: string
  kind: 'external' | 'embedded'
  /** Lets go of it. For the last process on an embedded server it resolves when that server has ended with all data on disk. Twice is fine. */
  stop: () => Promise<void>
}

/** Where the embedded server of one data folder lives. */
interface Home {
  dir: string
  socket: string
  /**
   * A FIFO that every process using the server holds open for writing and the server's supervisor for reading. The kernel closes
   * an end when its process dies, however it dies: no reader means no server, no writer means nobody needs one.
   */
  users: string
}

/** What one process has of a running server. */
interface Share {
  /** The write end of `users`. */
  hold: number
  /** Closes when the server ends, and counts this process in its client list. */
  tether: Redis
}

/** The tether's name in the client list. */
const processName = 'interlock-process'
/** Milliseconds a server may take until it accepts connections, or to end. */
const patience = 30_000

/**
 * Starts the server ("$@") and ends it when the last user is gone. The read end of `users` is its standard input; the server keeps a
 * copy, so that no second one starts on the same data as long as it lives, even if this script was killed.
 */
const supervisor = `
exec 3<&0 </dev/null
"$@" &
server=$!
( read -r _ <&3; kill "$server" ) &
wait "$server"
kill $!
`

/**
 * The Redis to work on: `REDIS_URL`, else a private server on a unix socket with its data in `INTERLOCK_DATA_DIR`, found on this machine
 * or fetched (DEPENDENCIES §8). A Redis that happens to run on localhost:6379 is never used unasked.
 *
 * Processes with the same data folder share one server, whoever came first. It ends with the last of them, even if that one was killed,
 * and is started again when it dies under them: nobody owns it, so nobody has to be alive for the others to work.
 *
 * @param folders where a server is looked for. Default: our own fetched one, PATH, the usual folders.
 * @throws ConfigError with one sentence that says what to do.
 */
export async function openRedis (config: Pick<Config, 'redis'>, log: Log, folders?: string[]): Promise<OpenRedis> {
  const { url, dataDir, serverBin, profile } = config.redis
  if (url !== undefined) return { url, kind: 'external', stop: async () => {} }
  const home = prepareHome(dataDir)
  const closing = new AbortController()
  const obtain = () => obtainServer(serverBin, log, folders)

  let share = await joinServer(home, profile, obtain, closing.signal)
  let restart = Promise.resolve()
  let stopped: Promise<void> | undefined
  watch()
  return { url: home.socket, kind: 'embedded', stop: () => stopped ??= stop() }

  function watch (): void {
    share.tether.once('end', () => { if (!closing.signal.aborted) restart = startAgain() })
  }

  async function startAgain (): Promise<void> {
    log.warn({ dir: home.dir }, 'lost the embedded Redis, starting it again unless it runs')
    for (let failures = 0; !closing.signal.aborted; failures++) {
      try {
        await sleep(250, undefined, { signal: closing.signal }) // one that dies at once must not keep a core busy
        const previous = share.hold
        share = await joinServer(prepareHome(dataDir), profile, obtain, closing.signal)
        closeSync(previous)
        return watch()
      } catch (error) {
        if (failures === 0 && !closing.signal.aborted) log.warn({ reason: (error as Error).message }, 'the embedded Redis cannot be started, trying on')
      }
    }
  }

  async function stop (): Promise<void> {
    closing.abort()
    await restart
    await leaveServer(share)
  }
}

/** Uses the running server, or starts it: one process at a time, the others then find it running. */
async function joinServer (home: Home, profile: Config['redis']['profile'], obtain: () => Promise<Server>, signal: AbortSignal): Promise<Share> {
  for (;; await sleep(20, undefined, { signal })) {
    let hold = openUsers(home)
    let ours = false
    if (hold === undefined) {
      const server = await obtain()
      const unlock = tryLock(home.dir)
      if (unlock === undefined) continue
      try {
        hold = openUsers(home)
        ours = hold === undefined
        hold ??= launch(home, server, profile)
      } finally {
        unlock()
      }
    }
    try {
      const tether = await connectTether(home, signal)
      if (profile === 'durable') await tether?.config('SET', 'appendfsync', 'always') // it may have been started by a process with the profile fast
      if (tether !== undefined) return { hold, tether }
    } catch (error) {
      closeSync(hold)
      throw error
    }
    closeSync(hold)
    if (ours) throw new ConfigError(`The embedded Redis ended at once, ${lastWords(home)}; set REDIS_URL to use another one.`)
  }
}

async function leaveServer ({ hold, tether }: Share): Promise<void> {
  const ended = new Promise((resolve) => tether.once('end', resolve))
  const clients = await tether.client('LIST').catch(() => '') as string
  const users = clients.split(' ').filter((field) => field === `name=${processName}`).length
  closeSync(hold)
  if (users <= 1 && tether.status !== 'end') await Promise.race([ended, sleep(patience, undefined, { ref: false })])
  if (tether.status !== 'end') tether.disconnect() // else ioredis would wait two seconds for a socket that is gone
}

/** The write end of `users`, or undefined when no server lives. */
function openUsers (home: Home): number | undefined {
  try {
    return openSync(home.users, constants.O_WRONLY | constants.O_NONBLOCK)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENXIO') return undefined
    throw error
  }
}

/** Starts the server, detached so that Ctrl-C does not end it before our own work is drained. Returns the write end of `users`. */
function launch (home: Home, server: Server, profile: Config['redis']['profile']): number {
  // Opened for both, neither end waits for the other. Both exist before the child does: it cannot miss that we died.
  const both = openSync(home.users, constants.O_RDWR)
  const read = openSync(home.users, constants.O_RDONLY)
  const hold = openSync(home.users, constants.O_WRONLY)
  closeSync(both)
  const args = [
    '--port', '0', '--unixsocket', home.socket, '--unixsocketperm', '700', '--daemonize', 'no',
    '--dir', home.dir, '--logfile', join(home.dir, 'redis.log'),
    '--appendonly', 'yes', '--appendfsync', profile === 'durable' ? 'always' : 'everysec', '--save', '',
    '--maxmemory-policy', 'noeviction'
  ]
  const child = spawn('/bin/sh', ['-c', supervisor, 'interlock-redis', server.bin, ...args], { detached: true, stdio: [read, 'ignore', 'ignore'] })
  child.once('error', () => {}) // no child, so no reader: the caller sees that no server lives
  child.unref()
  closeSync(read)
  return hold
}

/** A connection to the server, as soon as it accepts one, which it does before it loads its data. Undefined when the server ended instead. */
async function connectTether (home: Home, signal: AbortSignal): Promise<Redis | undefined> {
  for (const deadline = performance.now() + patience; performance.now() < deadline;) {
    const tether = new Redis({
      path: home.socket, connectionName: processName, lazyConnect: true, enableReadyCheck: false, retryStrategy: () => null, commandTimeout: 1000
    })
    tether.on('error', () => {}) // `end` follows, and that is what counts
    if (await tether.connect().then(() => true, () => false)) return tether
    const lives = openUsers(home)
    if (lives === undefined) return undefined
    closeSync(lives)
    await sleep(20, undefined, { signal })
  }
  throw new ConfigError(`The embedded Redis in ${home.dir} does not answer; see redis.log there, or set REDIS_URL to use another one.`)
}

/**
 * Takes the right to start a server for a few milliseconds; undefined while another process has it. A file left behind by a crash is
 * passed over after 10 s, not deleted: two processes that both find it stale could delete each other's new one.
 */
function tryLock (dir: string): (() => void) | undefined {
  for (let n = 1; ; n++) {
    const file = join(dir, `starting.${n}`)
    try {
      closeSync(openSync(file, 'wx'))
      return () => rmSync(file, { force: true })
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
      const taken = statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? Date.now()
      if (Date.now() - taken < 10_000) return undefined
    }
  }
}

function prepareHome (dataDir: string): Home {
  try {
    mkdirSync(join(dataDir, 'redis'), { recursive: true, mode: 0o700 })
    const dir = realpathSync(join(dataDir, 'redis'))
    const users = join(dir, 'users')
    makeFifo(users)
    return { dir, users, socket: socketPath(dir) }
  } catch (error) {
    if (error instanceof ConfigError) throw error
    const { code, message } = error as NodeJS.ErrnoException
    throw new ConfigError(`The embedded Redis cannot use ${dataDir} (${code ?? message}): set INTERLOCK_DATA_DIR to a writable folder on a local disk, or REDIS_URL to use another Redis.`)
  }
}

function makeFifo (path: string): void {
  const isFifo = () => lstatSync(path, { throwIfNoEntry: false })?.isFIFO() === true
  if (isFifo()) return
  rmSync(path, { force: true }) // a copy of the folder may have made it a file
  try {
    execFileSync('mkfifo', ['-m', '600', path], { stdio: 'ignore' })
  } catch (error) {
    if (!isFifo()) throw error // else another process was quicker
  }
}

/** The kernel takes about 107 bytes of a socket's path: a deep folder gets its socket in the temporary one. */
function socketPath (dir: string): string {
  const path = join(dir, 'redis.sock')
  if (Buffer.byteLength(path) <= 100) return path
  const uid = process.getuid?.() ?? 0
  const folder = join(tmpdir(), `interlock-${uid}-${createHash('sha256').update(dir).digest('hex').slice(0, 12)}`)
  mkdirSync(folder, { recursive: true, mode: 0o700 })
  const { uid: owner, mode } = lstatSync(folder)
  if (owner !== uid || (mode & 0o77) !== 0) throw new ConfigError(`${folder} belongs to somebody else: set INTERLOCK_DATA_DIR to a folder with a shorter path.`)
  return join(folder, 'redis.sock')
}

/** A server binary that runs here: the one named, one found, or one fetched into `.cache/redis` of the current folder. */
export async function obtainServer (bin: string | undefined, log: Log, folders?: string[]): Promise<Server> {
  if (bin !== undefined) {
    const server = await probeServer(bin)
    if (!server) throw new ConfigError(`REDIS_SERVER_BIN is "${bin}", which does not run as a Redis or Valkey server ${oldestVersion} or newer.`)
    return server
  }
  const cache = resolve('.cache/redis')
  const places = folders ?? serverFolders(cache)
  const found = await findServer(places)
  if (found) return found
  const fetched = await fetchServer(cache, log).then(() => findServer([cache, ...places]), (error: Error) => error)
  if (fetched !== undefined && !(fetched instanceof Error)) return fetched
  const reason = fetched?.message ?? `what was fetched is older than ${oldestVersion} or does not run here`
  throw new ConfigError(`There is no Redis server on this machine, and none could be fetched (${reason}): install redis-server or valkey-server ${oldestVersion} or newer, for example by "apt-get install redis-server", "dnf install valkey", "apk add valkey" or "brew install valkey", or set REDIS_URL to ${acceptedRedisUrls}.`)
}

/** Why the server says it ended. Its log holds settings and file names, never data. */
function lastWords (home: Home): string {
  const log = join(home.dir, 'redis.log')
  try {
    const lines = readFileSync(log, 'utf8').trimEnd().split('\n')
    return `saying "${lines.at(-1)!.replace(/^.*?[*#] /, '')}" (see ${log})`
  } catch {
    return 'before it could say why'
  }
}
