import { spawn, type ChildProcess } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { status } from '../support/model-reply.js'
import { startModelServer } from '../support/model-server.js'

const root = join(import.meta.dirname, '../..')

interface Ended { code: number | null, stdout: string, stderr: string, leftovers: string[] }

/** What `npm run demo` runs, piped, in an environment without settings and with a temporary folder of its own. */
function runDemo (t: Test, env: Record<string, string> = {}): { child: ChildProcess, ended: Promise<Ended>, until: (text: string) => Promise<void> } {
  const temporary = mkdtempSync(join(tmpdir(), 'il-'))
  const child = spawn(process.execPath, ['--require', 'tsx/cjs', '--import', 'tsx/esm', 'src/demo/demo.ts'], {
    cwd: root, env: { PATH: process.env.PATH, HOME: process.env.HOME, TMPDIR: temporary, ...env }, stdio: ['ignore', 'pipe', 'pipe']
  })
  t.teardown(() => {
    child.kill('SIGKILL')
    rmSync(temporary, { recursive: true, force: true })
  })
  let stdout = ''
  let stderr = ''
  const watchers = new Set<() => void>()
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text
    for (const look of watchers) look()
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => { stderr += text })
  const ended = new Promise<Ended>((resolve) => child.once('close', (code) => {
    resolve({ code, stdout, stderr, leftovers: readdirSync(temporary).filter((name) => name.startsWith('interlock')) })
  }))
  const until = (text: string) => Promise.race([
    new Promise<void>((resolve) => {
      const look = () => { if (stdout.includes(text)) resolve() }
      watchers.add(look)
      look()
    }),
    ended.then(() => { throw new Error(`the demo ended without "${text}": ${stdout}${stderr}`) })
  ])
  return { child, ended, until }
}

/** The number that a line of the totals, or any other line, says. */
function number (text: string, pattern: RegExp): number {
  const found = pattern.exec(text)?.[1]
  if (found === undefined) throw new Error(`nothing like ${pattern} in: ${text}`)
  return Number(found)
}

t.test('B3, E1, I1: the demo runs the whole service, calls overlap, a message interrupts, and what it prints adds up', async (t) => {
  const { code, stdout, stderr, leftovers } = await runDemo(t).ended
  t.equal(code, 0, stderr)
  t.equal(stderr, '')
  t.strictSame(leftovers, [])
  t.notMatch(stdout, /\x1b/, 'plain when piped')
  t.ok(stdout.split('\n').every((line) => line.length <= 80), 'fits 80 columns')
  t.match(stdout, /no OPENAI_API_KEY, so the built-in scripted\s+model answers/)

  // Lines begin with their time: those of one instant stand together.
  const steps = stdout.split('\n').filter((line) => /^ +\d+\.\d\d s {2}/.test(line)).map((line) => line.replace(/^ +[\d.]+ s +/, '').replace(/ (in|after) [\d.]+ s/, ''))
  const second = steps.indexOf('turn 2: asks for 3 tool calls')
  t.strictSame(steps.slice(second + 1, second + 4), ['get_character 1 started', 'get_character 2 started', 'get_character 3 started'])
  t.match(steps[second + 4], /^get_character . completed$/)

  const message = steps.findIndex((step) => step.startsWith('message (interrupt)'))
  t.ok(message > 0)
  const cut = steps.slice(message + 1).findIndex((step) => !step.endsWith('cut short (interrupted)'))
  t.ok(cut >= 1, 'unsettled calls were cut short')
  t.match(steps[message + 1 + cut], /^turn \d: LLM call$/, 'and the next turn began at once')
  t.equal(steps.at(-1), 'run completed')

  const turns = number(stdout, /^turns +(\d+),/m)
  t.equal(turns, steps.filter((step) => step.endsWith(': LLM call')).length)
  t.equal(number(stdout, /; (\d+) LLM calls in /), turns)
  t.equal(number(stdout, /^tool calls +(\d+):/m), steps.filter((step) => step.endsWith(' started')).length)
  t.equal(number(stdout, /, (\d+) cut short by the message/), cut)
  t.ok(number(stdout, /the calls took ([\d.]+) s together/) > 1.3 * number(stdout, /and ([\d.]+) s on the clock/), 'parallel calls took less time than one after the other')
  t.ok(number(stdout, /^wall time +([\d.]+) s/m) < number(stdout, /it would have been ([\d.]+) s/))
  t.match(stdout, new RegExp(`^interrupt +posted in mid-run; ${cut} calls? cut short, next turn \\d+ ms later$`, 'm'))
  t.match(stdout, /^events +(\d+) stored, read back from Redis: same bytes, seq 1 to \1, no gap$/m)
  t.match(stdout, /^ledger +\d+ messages; every tool call has its one result$/m)
})

t.test('Ctrl-C ends the demo in mid-run, with the exit code of the signal and nothing left behind', async (t) => {
  const { child, ended, until } = runDemo(t)
  await until('turn 2: LLM call')
  child.kill('SIGINT')
  const { code, stdout, stderr, leftovers } = await ended
  t.equal(code, 130)
  t.match(stdout, /\nStopped\.\n$/)
  t.equal(stderr, '')
  t.strictSame(leftovers, [])
})

t.test('what the user can mend is one sentence with a next step, and exit code 1', async (t) => {
  const provider = await startModelServer({ models: ['own-model'] })
  t.teardown(provider.close)
  provider.otherwise(() => status(401, { message: 'no', type: 'invalid_request_error', errorCode: 'invalid_api_key' }))
  const [wrong, refused] = await Promise.all([
    runDemo(t, { REDIS_URL: 'localhost' }).ended,
    runDemo(t, { OPENAI_API_KEY: 'sk-secret', OPENAI_BASE_URL: provider.baseUrl }).ended
  ])
  t.equal(wrong.code, 1)
  t.match(wrong.stderr, /^REDIS_URL has an unusable value; it must be .*\n$/)
  t.equal(refused.code, 1)
  t.match(refused.stdout, new RegExp(`model +own-model of 127\\.0\\.0\\.1:${provider.port}\n`), 'the only model of a server needs no name')
  t.match(refused.stderr, /^The run failed: The provider refused the credentials .*Check OPENAI_API_KEY.*\n$/)
  t.notMatch(refused.stdout + refused.stderr, /sk-secret/)
  t.strictSame([...wrong.leftovers, ...refused.leftovers], [])
})
