import { execFile, spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { Redis } from 'ioredis'
import t, { type Test } from 'tap'
import { loadConfig, type Config } from '../../src/config.js'
import { obtainServer, openRedis } from '../../src/redis/embedded.js'
import { serverFolders } from '../../src/redis/find-server.js'
import { silent } from '../support/redis.js'

function tempFolder (t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'interlock-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }))
  return folder
}

const settings = (dataDir: string, more: NodeJS.ProcessEnv = {}): Config => loadConfig({ INTERLOCK_DATA_DIR: dataDir, ...more })

/** A process of its own that uses the Redis of `dataDir`. */
async function startUser (t: Test, dataDir: string): Promise<{ child: ChildProcess, url: string, lines: AsyncIterator<string> }> {
  const script = fileURLToPath(new URL('../support/redis-user.ts', import.meta.url))
  const child = spawn(process.execPath, ['--import', 'tsx', script, dataDir], { stdio: ['ignore', 'pipe', 'inherit'], detached: true, env: { ...process.env, TAP: '' } })
  t.teardown(() => child.kill('SIGKILL'))
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]()
  const { value } = await lines.next() as { value: string }
  return { child, url: value.replace('ready ', ''), lines }
}

/** A plain client of the server, and a promise for the server's end. */
async function visit (t: Test, url: string): Promise<{ redis: Redis, pid: number, ended: Promise<void> }> {
  const redis = new Redis(url, { retryStrategy: () => null })
  redis.on('error', () => {})
  t.teardown(() => redis.disconnect())
  const ended = new Promise<void>((resolve) => redis.once('end', resolve))
  return { redis, pid: Number(/process_id:(\d+)/.exec(await redis.info('server'))![1]), ended }
}

/** Resolves when a process that is not our child has left the process table, shortly after its sockets closed. */
async function gone (pid: number): Promise<void> {
  for (;;) {
    try {
      process.kill(pid, 0)
    } catch {
      return
    }
    await sleep(5)
  }
}

async function endOf (child: ChildProcess, signal: NodeJS.Signals): Promise<unknown> {
  const exit = once(child, 'exit')
  child.kill(signal)
  return (await exit)[0]
}

t.test('REDIS_URL is used as it is, and nothing is started', async (t) => {
  const folder = tempFolder(t)
  const redis = await openRedis(settings(join(folder, 'data'), { REDIS_URL: 'redis://cache.example' }), silent)
  t.match(redis, { kind: 'external', url: 'redis://cache.example' })
  await redis.stop()
  t.notOk(existsSync(join(folder, 'data')))
})

t.test('without REDIS_URL a private server is started, ends with us, and has the data the next time', async (t) => {
  const folder = tempFolder(t)
  const first = await openRedis(settings(folder), silent)
  t.equal(first.kind, 'embedded')
  const { redis, pid } = await visit(t, first.url)
  t.strictSame(await redis.config('GET', 'port'), ['port', '0'], 'it listens on no port')
  t.strictSame(await redis.config('GET', 'appendfsync'), ['appendfsync', 'everysec'])
  t.strictSame(await redis.config('GET', 'maxmemory-policy'), ['maxmemory-policy', 'noeviction'])
  await redis.set('kept', 'yes')
  await Promise.all([first.stop(), first.stop()])
  t.notOk(existsSync(first.url), 'stop resolves when it has ended')
  await gone(pid)

  const second = await openRedis(settings(folder, { INTERLOCK_PROFILE: 'durable' }), silent)
  const again = await visit(t, second.url)
  t.equal(await again.redis.get('kept'), 'yes')
  t.strictSame(await again.redis.config('GET', 'appendfsync'), ['appendfsync', 'always'])
  await second.stop()
})

t.test('who joins with the profile durable makes the running server durable', async (t) => {
  const folder = tempFolder(t)
  const fast = await openRedis(settings(folder), silent)
  const durable = await openRedis(settings(folder, { INTERLOCK_PROFILE: 'durable' }), silent)
  const { redis } = await visit(t, fast.url)
  t.strictSame(await redis.config('GET', 'appendfsync'), ['appendfsync', 'always'])
  await durable.stop()
  t.equal(await redis.ping(), 'PONG', 'it goes on for the other user')
  await fast.stop()
})

t.test('processes that start at the same moment share one server, which ends with the last of them', async (t) => {
  const folder = tempFolder(t)
  const users = await Promise.all([1, 2, 3, 4].map(() => startUser(t, folder)))
  const visits = await Promise.all(users.map(({ url }) => visit(t, url)))
  t.equal(new Set(visits.map(({ pid }) => pid)).size, 1)
  const { redis, pid, ended } = visits[0]!
  for (const { child } of users.slice(0, 3)) t.equal(await endOf(child, 'SIGTERM'), 0)
  t.equal(await redis.ping(), 'PONG')
  t.equal(await endOf(users[3]!.child, 'SIGTERM'), 0)
  await ended
  await gone(pid)
})

t.test('a killed process takes nobody with it: the server goes on for the others and ends with the last, its data intact', async (t) => {
  const folder = tempFolder(t)
  const starter = await startUser(t, folder)
  const other = await startUser(t, folder)
  const { redis, ended } = await visit(t, starter.url)
  await endOf(starter.child, 'SIGKILL')
  t.equal(await redis.set('kept', 'yes'), 'OK')
  await endOf(other.child, 'SIGKILL')
  await ended

  const next = await openRedis(settings(folder), silent)
  t.equal(await (await visit(t, next.url)).redis.get('kept'), 'yes')
  await next.stop()
})

t.test('Ctrl-C reaches us but not the server, so that we can drain', async (t) => {
  const folder = tempFolder(t)
  const { child, url, lines } = await startUser(t, folder)
  const { redis, ended } = await visit(t, url)
  process.kill(-child.pid!, 'SIGINT')
  t.equal((await lines.next()).value, 'interrupted')
  // Redis looks for signals ten times a second; that nothing happens has no event to wait for.
  t.equal(await Promise.race([ended.then(() => 'ended'), sleep(300, 'lives')]), 'lives')
  t.equal(await redis.ping(), 'PONG')
  await endOf(child, 'SIGTERM')
  await ended
})

t.test('F60: a killed server is started again with its data, for all who use it', async (t) => {
  const folder = tempFolder(t)
  const warnings: unknown[] = []
  const log = { ...silent, warn: (...line: unknown[]) => { warnings.push(line[1]) } }
  const mine = await openRedis(settings(folder), log)
  const other = await startUser(t, folder)
  const client = new Redis(mine.url, { maxRetriesPerRequest: null })
  client.on('error', () => {})
  t.teardown(() => client.disconnect())
  await client.set('kept', 'yes')
  for (let times = 0; times < 2; times++) {
    const { pid, ended } = await visit(t, mine.url)
    process.kill(pid, 'SIGKILL')
    await ended
    t.equal(await client.get('kept'), 'yes')
    t.not((await visit(t, mine.url)).pid, pid)
  }
  t.strictSame(warnings, Array(2).fill('lost the embedded Redis, starting it again unless it runs'))
  const last = await visit(t, mine.url)
  await mine.stop()
  t.equal(await last.redis.ping(), 'PONG', 'the other process uses the new server too')
  await endOf(other.child, 'SIGTERM')
  await last.ended
})

t.test('stopping while the server is being started again leaves nothing behind', async (t) => {
  const folder = tempFolder(t)
  const redis = await openRedis(settings(folder), silent)
  const { pid, ended } = await visit(t, redis.url)
  process.kill(pid, 'SIGKILL')
  await ended
  await redis.stop()
  const next = await openRedis(settings(folder), silent)
  await next.stop()
  t.notOk(existsSync(next.url))
})

t.test('what a crash left behind is no obstacle', async (t) => {
  const folder = tempFolder(t)
  mkdirSync(join(folder, 'redis'))
  writeFileSync(join(folder, 'redis/redis.sock'), '')
  writeFileSync(join(folder, 'redis/users'), '')
  writeFileSync(join(folder, 'redis/starting.1'), '')
  const old = Date.now() / 1000 - 60
  utimesSync(join(folder, 'redis/starting.1'), old, old)
  const redis = await openRedis(settings(folder), silent)
  t.equal(await (await visit(t, redis.url)).redis.ping(), 'PONG')
  await redis.stop()
})

t.test('while another process is starting the server, we wait for it', async (t) => {
  const folder = tempFolder(t)
  mkdirSync(join(folder, 'redis'))
  writeFileSync(join(folder, 'redis/starting.1'), '')
  const opening = openRedis(settings(folder), silent)
  t.equal(await Promise.race([opening.then(() => 'started'), sleep(500, 'waits')]), 'waits')
  rmSync(join(folder, 'redis/starting.1'))
  const redis = await opening
  t.strictSame(readdirSync(join(folder, 'redis')).filter((name) => name.startsWith('starting')), [])
  await redis.stop()
})

t.test('a deep data folder gets its socket elsewhere, where only we can reach it', async (t) => {
  const folder = join(tempFolder(t), ...Array<string>(12).fill('deep-folder'))
  const redis = await openRedis(settings(folder), silent)
  t.ok(Buffer.byteLength(redis.url) <= 100)
  t.notOk(redis.url.startsWith(folder))
  t.equal(await (await visit(t, redis.url)).redis.ping(), 'PONG')
  await redis.stop()
  rmSync(join(redis.url, '..'), { recursive: true })
})

t.test('what cannot work is said in one sentence that names the setting', async (t) => {
  const folder = tempFolder(t)
  const file = join(folder, 'file')
  writeFileSync(file, '')
  await t.rejects(openRedis(settings(file), silent), { name: 'ConfigError', message: /cannot use .*file \(E\w+\): set INTERLOCK_DATA_DIR to a writable folder/ })

  await t.rejects(openRedis(settings(folder, { REDIS_SERVER_BIN: '/bin/sh' }), silent), { name: 'ConfigError', message: /^REDIS_SERVER_BIN is "\/bin\/sh", which does not run as a Redis or Valkey server 6.2 or newer/ })

  const first = await openRedis(settings(folder), silent)
  await (await visit(t, first.url)).redis.set('a', '1')
  await first.stop()
  appendFileSync(join(folder, 'redis/appendonlydir/appendonly.aof.manifest'), 'nonsense\n')
  await t.rejects(openRedis(settings(folder), silent), { name: 'ConfigError', message: /The embedded Redis ended at once, saying ".*" \(see .*redis\.log\); set REDIS_URL/ })
})

/** Until `t` ends PATH leads to a folder with nothing but mkfifo. Returns that folder. */
function barePath (t: Test, folder: string): string {
  const bin = join(folder, 'bin')
  mkdirSync(bin)
  symlinkSync(serverFolders('/bin').map((place) => join(place, 'mkfifo')).find((path) => existsSync(path))!, join(bin, 'mkfifo'))
  const path = process.env.PATH
  t.teardown(() => { process.env.PATH = path })
  process.env.PATH = bin
  return bin
}

t.test('no server and no way to fetch one: one sentence says what to install', async (t) => {
  const folder = tempFolder(t)
  barePath(t, folder)
  await t.rejects(openRedis(settings(join(folder, 'data')), silent, []), { name: 'ConfigError', message: /^There is no Redis server on this machine, and none could be fetched \(.*\): install .*apt-get install redis-server.* or set REDIS_URL to / })
})

t.test('where another package manager may be used, it installs valkey, or redis on releases without it', async (t) => {
  const { bin: server } = await obtainServer(undefined, silent)
  const folder = tempFolder(t)
  const bin = barePath(t, folder)
  const manager = process.getuid?.() === 0 ? 'apk' : 'brew'
  writeFileSync(join(folder, 'server'), `#!/bin/sh\nexec '${server}' "$@"\n`, { mode: 0o755 })
  writeFileSync(join(bin, manager), `#!/bin/sh
for package; do :; done
echo "$@" >> '${folder}/asked'
case $package in
  valkey) exit 1;;
  redis) /bin/ln -s '${folder}/server' '${bin}/redis-server';;
esac
`, { mode: 0o755 })
  const redis = await openRedis(settings(join(folder, 'data')), silent, [bin])
  await redis.stop()
  const install = manager === 'apk' ? 'add --no-cache' : 'install'
  t.equal(readFileSync(join(folder, 'asked'), 'utf8'), `--version\n${install} valkey\n${install} redis\n`)
})

/** Why a package cannot be fetched here, through no fault of ours. */
async function noPackages (): Promise<string | false> {
  const uris = await promisify(execFile)('apt-get', ['-qq', '--print-uris', 'download', 'redis-tools']).catch((error: NodeJS.ErrnoException) => error)
  if (uris instanceof Error && uris.code === 'ENOENT') return 'only Debian and Ubuntu let anybody fetch a package'
  const uri = uris instanceof Error ? undefined : /'(https?:[^']+)'/.exec(uris.stdout)?.[1]
  if (uri === undefined) return false // no package lists: fetching them is part of the test
  return await fetch(uri, { method: 'HEAD', signal: AbortSignal.timeout(10_000) }).then(() => false, () => `${new URL(uri).host} cannot be reached`)
}

t.test('a machine without Redis: the server is fetched, runs, and is found the next time', { skip: await noPackages(), timeout: 300_000 }, async (t) => {
  const folder = tempFolder(t)
  const home = process.cwd()
  t.teardown(() => process.chdir(home))
  process.chdir(folder)
  const lines: unknown[] = []
  const log = { ...silent, info: (...line: unknown[]) => { lines.push(line[1]) } }
  const first = await openRedis(settings(join(folder, 'data')), log, [])
  t.equal(lines[0], 'fetching redis-server (about 2 MB)')
  t.equal(await (await visit(t, first.url)).redis.ping(), 'PONG')
  await first.stop()
  t.strictSame(readdirSync(join(folder, '.cache')), ['redis'], 'nothing half done is left')

  const cached = serverFolders(join(folder, '.cache/redis')).slice(0, 1)
  const second = await openRedis(settings(join(folder, 'data')), { ...silent, info: () => t.fail('fetched twice') }, cached)
  await second.stop()
})
