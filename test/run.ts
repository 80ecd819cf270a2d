/**
 * `npm test`: everything that must hold, in one go, on a machine with nothing but Node and npm. Starts a Redis of its own for all test
 * files, then runs the checks below, two at a time before the tests. Arguments go to tap: `npm test -- test/core`. The last line is `N passed, N failed`.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { loadConfig } from '../src/config.js'
import { openRedis } from '../src/redis/embedded.js'

const root = join(import.meta.dirname, '..')
process.chdir(root)

let passed = 0
let failed = 0
const children = new Set<ChildProcess>()
// Ctrl-C reaches the children as well; when they have ended, we end in good order. A SIGTERM is passed on.
process.on('SIGINT', () => {})
process.on('SIGTERM', () => { for (const child of children) child.kill('SIGTERM') })

const dataDir = mkdtempSync(join(tmpdir(), 'interlock-test-'))
try {
  const note = (_: unknown, line?: string) => console.log(line)
  const redis = await openRedis(loadConfig({ INTERLOCK_DATA_DIR: dataDir }), { info: note, warn: note })
  try {
    const env = { ...cleanEnvironment(), INTERLOCK_TEST_REDIS: redis.url }
    await Promise.all([
      step('types', ['tsc', '-p', '.', '--noEmit'], env)
        .then(() => step('openapi', ['tsx', 'src/openapi.ts', '--check'], env))
        .then(() => step('tap', ['tap', 'build'], env)), // as .taprc wants it: without its own compiler, which it would use once more
      step('build', ['npm', 'run', '--silent', 'build'], env).then(() => step('lint', ['eslint', '.'], env)) // the process tests also run what is shipped
    ])
    await tests(process.argv.slice(2), { CHAOS_REPEATS: '0.2', ...env, INTERLOCK_TEST_DIST: join(root, 'dist'), INTERLOCK_TEST_SHORT: '1' })
  } finally {
    await redis.stop()
  }
} catch (error) {
  failed++
  console.error((error as Error).message)
} finally {
  rmSync(dataDir, { recursive: true, force: true, maxRetries: 5 })
}
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed > 0 ? 1 : 0

/** Settings of the developer's own shell must not decide whether a test passes. */
function cleanEnvironment (): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^(HOST|PORT|LOG_LEVEL|REDIS_\w+|OPENAI_\w+|INTERLOCK_\w+|FEATURE_\w+)$/.test(name)))
}

function start ([name, ...args]: string[], env: NodeJS.ProcessEnv, stdout: 'inherit' | 'pipe'): ChildProcess {
  const local = join(root, 'node_modules/.bin', name!)
  const child = spawn(existsSync(local) ? local : name!, args, { env, stdio: ['ignore', stdout, 'inherit'] })
  children.add(child)
  child.once('exit', () => children.delete(child))
  return child
}

/** One check that passes or fails as a whole. */
async function step (title: string, command: string[], env: NodeJS.ProcessEnv): Promise<void> {
  const started = performance.now()
  const [code] = await once(start(command, env, 'inherit'), 'exit')
  report(code === 0, title, started)
  if (code === 0) passed++
  else failed++
}

/** All tests, by tap: one line per file as it ends, what failed in it below, and tap's totals. */
async function tests (args: string[], env: NodeJS.ProcessEnv): Promise<void> {
  const tap = start(['tap', '--reporter=tap', ...args.flatMap(testFiles)], env, 'pipe')
  const exit = once(tap, 'exit')
  const before = { passed, failed }
  let block: string[] = []
  let crashed = false // what follows says how the file as a whole has ended
  for await (const line of createInterface({ input: tap.stdout! })) {
    const file = /^(not )?ok \d+ - (.*?) # time=([\d.]+)ms/.exec(line) ?? /^(not )?ok \d+ - (.*)/.exec(line)
    const totals = /^# (\{ total: .*\})/.exec(line)
    if (file) {
      report(!file[1], file[2]!, performance.now() - Number(file[3] ?? 0))
      // tap prints all of a file; what passed says nothing about what failed
      if (file[1]) console.log(block.filter((text) => !/^\s*(ok \d+|# Subtest|# time=|1\.\.\d+|TAP version|$)/.test(text)).join('\n'))
      block = []
      crashed = Boolean(file[1])
    } else if (line.startsWith('# Subtest: ')) {
      block = []
      crashed = false
    } else if (totals) {
      console.log(line)
      passed += Number(/\bpass: (\d+)/.exec(totals[1]!)?.[1] ?? 0)
      failed += Number(/\bfail: (\d+)/.exec(totals[1]!)?.[1] ?? 0)
    } else if (crashed) {
      if (/^ {2}(exitCode|signal|expired): (?!null)/.test(line)) console.log(line)
    } else {
      block.push(line)
    }
  }
  const [code] = await exit
  // tap can fail without a failed test: no file matches, or it was killed
  if (code !== 0 && failed === before.failed) failed++
  if (code === 0 && passed === before.passed) failed++
}

/** tap takes every .ts file of a folder for a test. */
function testFiles (argument: string): string[] {
  if (!statSync(argument, { throwIfNoEntry: false })?.isDirectory()) return [argument]
  return readdirSync(argument, { recursive: true, encoding: 'utf8' }).filter((name) => /\.(test|matrix)\.ts$/.test(name)).map((name) => join(argument, name))
}

function report (ok: boolean, title: string, started: number): void {
  console.log(`${ok ? 'ok    ' : 'FAILED'} ${title} (${((performance.now() - started) / 1000).toFixed(1)} s)`)
}
