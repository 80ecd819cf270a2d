import { execFile } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { Log } from './connect.js'
import { probeServer } from './find-server.js'

/**
 * Gets a server where the platform allows it without asking: on Debian and Ubuntu, for any user, its packages unpacked into `folder`,
 * which changes nothing else on the machine; on Alpine and Fedora as root, on macOS with Homebrew, an ordinary installation.
 * None of them starts a service.
 *
 * @param folder afterwards holds an executable `redis-server` or `valkey-server`, unless the platform put it on PATH.
 * @throws Error with a reason that completes "could not be fetched because …".
 */
export async function fetchServer (folder: string, log: Log): Promise<void> {
  if (await has('apt-get') && await has('dpkg')) return await unpackDebian(folder, log)
  const root = process.getuid?.() === 0
  const install = root && await has('apk') ? ['apk', 'add', '--no-cache']
    : root && await has('dnf') ? ['dnf', 'install', '-y']
      : !root && await has('brew') ? ['brew', 'install'] : undefined
  if (!install) throw new Error('this platform has no package manager that may be used without asking')
  const [command, ...args] = install as [string, ...string[]]
  log.info({ command: [...install, 'valkey'].join(' ') }, 'installing valkey-server (about 2 MB)')
  await run(command, [...args, 'valkey']).catch(() => run(command, [...args, 'redis'])) // releases before Valkey
}

/** No package is installed and no maintainer script runs: `apt-get download` and `dpkg -x` need no rights. */
async function unpackDebian (folder: string, log: Log): Promise<void> {
  log.info({ folder }, 'fetching redis-server (about 2 MB)')
  // Unpacked beside and renamed at the end: a fetch that was cut off, or a second one at the same time, leaves nothing half done.
  const work = `${folder}.${process.pid}`
  rmSync(work, { recursive: true, force: true })
  mkdirSync(work, { recursive: true })
  try {
    await download(work, []).catch(async () => {
      // Slim images carry no package lists, old machines outdated ones. Lists of our own need no rights either.
      log.info({ folder }, 'fetching the package lists (about 20 MB, not kept)')
      const lists = join(work, 'apt')
      mkdirSync(join(lists, 'lists/partial'), { recursive: true })
      mkdirSync(join(lists, 'cache/archives/partial'), { recursive: true })
      const options = ['-o', `Dir::State::lists=${lists}/lists`, '-o', `Dir::Cache=${lists}/cache`, '-o', 'APT::Sandbox::User=root']
      await run('apt-get', ['-qq', ...options, 'update'])
      await download(work, options)
      rmSync(lists, { recursive: true })
    })
    for (const file of readdirSync(work).filter((name) => name.endsWith('.deb'))) {
      await run('dpkg', ['-x', join(work, file), work])
      rmSync(join(work, file))
    }
    writeLauncher(work)
    if (await probeServer(join(folder, 'redis-server'))) return // another process was quicker, and may be running it
    rmSync(folder, { recursive: true, force: true })
    renameSync(work, folder)
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

/** Downloads the server and those of its libraries that are not installed, as .deb files. */
async function download (work: string, options: string[]): Promise<void> {
  const relations = ['--no-recommends', '--no-suggests', '--no-conflicts', '--no-breaks', '--no-replaces', '--no-enhances']
  const tree = await run('apt-cache', [...options, 'depends', '--recurse', ...relations, 'redis-tools'])
  const libraries = [...new Set(tree.split('\n').filter((name) => /^lib\S+$/.test(name)))]
  const installed = new Set<string>()
  // dpkg-query fails when it does not know one of them, and prints the others all the same.
  const states = await run('dpkg-query', ['-W', '-f', '${Package} ${db:Status-Status}\\n', ...libraries]).catch((error: { stdout?: string }) => error.stdout ?? '')
  for (const line of states.split('\n')) if (line.endsWith(' installed')) installed.add(line.split(' ')[0]!)
  await run('apt-get', ['-qq', ...options, 'download', 'redis-server', 'redis-tools', ...libraries.filter((name) => !installed.has(name))], work)
}

/** Starts the unpacked server with the libraries beside it, from wherever the folder has been moved to. */
function writeLauncher (work: string): void {
  const folders = ['lib', 'usr/lib'].flatMap((parent) => existsSync(join(work, parent))
    ? readdirSync(join(work, parent), { withFileTypes: true }).filter((entry) => entry.isDirectory()).map(({ name }) => `$here/${parent}/${name}`)
    : [])
  const launcher = join(work, 'redis-server')
  writeFileSync(launcher, `#!/bin/sh\nhere=\${0%/*}\nLD_LIBRARY_PATH="${folders.join(':')}" exec "$here/usr/bin/redis-server" "$@"\n`)
  chmodSync(launcher, 0o755)
}

async function has (command: string): Promise<boolean> {
  return await run(command, ['--version']).then(() => true, () => false)
}

/** Gives the command's output; fails with the first line it complained in. */
async function run (command: string, args: string[], cwd?: string): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)(command, args, {
      cwd, timeout: 300_000, maxBuffer: 16_000_000, env: { ...process.env, LC_ALL: 'C', DEBIAN_FRONTEND: 'noninteractive' }
    })
    return stdout
  } catch (error) {
    const { stdout, stderr = '', message } = error as { stdout?: string, stderr?: string, message: string }
    const complaint = stderr.split('\n').find((line) => /^(E|ERROR|Error)\b/.test(line)) ?? message.split('\n')[0]
    throw Object.assign(new Error(`${command}: ${complaint}`), { stdout })
  }
}
