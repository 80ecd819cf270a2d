import { spawn } from 'node:child_process'
import { cp, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

/*
 * Shows that the tests of the core can fail: plants one bug at a time into a copy of it and runs the tables and the sequences against that.
 *
 *   npx tsx test/core/mutations/suite.ts [part of a bug's name]
 *
 * Ends with 1 when a bug goes unnoticed, when the text it is planted in is not there any more, or when the tests fail without one.
 */

interface Bug { bug: string, file: string, find: string, put: string }

const BUGS: Bug[] = [
  // Turns and fences
  { bug: 'an old fence may still write', file: 'transition', find: ' || run.phase.fence !== fence) return null', put: ') return null' },
  { bug: 'a turn is claimed without a new fence', file: 'settle', find: 'phase.fence = ++state.fence', put: 'phase.fence = state.fence' },
  { bug: 'a claimed turn is claimed again', file: 'settle', find: 'if (phase.worker !== null || phase.ready_at > now) return false', put: 'if (phase.ready_at > now) return false' },
  { bug: 'a retry does not wait', file: 'settle', find: 'if (phase.worker !== null || phase.ready_at > now) return false', put: 'if (phase.worker !== null) return false' },
  { bug: 'a turn that is put back stays with its worker', file: 'settle', find: 'Object.assign(phase, { worker: null, fence: 0, ready_at', put: 'Object.assign(phase, { ready_at' },
  { bug: 'every try starts its turn anew', file: 'settle', find: 'if (phase.attempt === 1) {', put: 'if (phase.attempt >= 1) {' },
  { bug: 'a fallback has no tries of its own', file: 'transition', find: '    held.phase.tries = 0\n', put: '' },
  { bug: 'fallbacks end one too early', file: 'transition', find: 'held.phase.model + 1 < held.run.models.length', put: 'held.phase.model + 2 < held.run.models.length' },
  { bug: 'a turn may lose one worker more', file: 'transition', find: 'phase.losses >= MAX_LOSSES', put: 'phase.losses > MAX_LOSSES' },
  { bug: 'max_turns is off by one', file: 'settle', find: 'run.answers >= maxTurns', put: 'run.answers > maxTurns' },
  { bug: 'max_total_tokens is off by one', file: 'settle', find: 'run.usage.total_tokens >= maxTokens', put: 'run.usage.total_tokens > maxTokens' },
  { bug: 'run_timeout_ms is off by one', file: 'transition', find: 'command.at >= run.started_at + run.limits', put: 'command.at > run.started_at + run.limits' },
  { bug: 'a failed try costs nothing', file: 'transition', find: '  count(held.run, command.usage)\n  if (command.next_model', put: '  if (command.next_model' },

  { bug: 'a try that gave no answer was no LLM call', file: 'settle', find: '    run.usage.llm_calls++\n', put: '    run.usage.llm_calls = run.turns + 1\n' },
  { bug: 'a lost worker is told to stop twice', file: 'transition', find: '    phase.worker = null\n    if (phase.losses', put: '    if (phase.losses' },

  // Batches
  { bug: 'a result counts twice', file: 'transition', find: 'call === undefined || call.status !== \'running\' || call.attempt', put: 'call === undefined || call.attempt' },
  { bug: 'a result of an earlier attempt counts', file: 'transition', find: ' || call.attempt !== attempt) return null', put: ') return null' },
  { bug: 'the barrier forgets an unanswered call', file: 'settle', find: 'phase === null || phase.calls.some(isOpen)', put: 'phase === null || phase.calls.filter(isOpen).length > 1' },
  { bug: 'the barrier never opens', file: 'settle', find: 'phase === null || phase.calls.some(isOpen)', put: 'phase !== null || phase === null' },
  { bug: 'results enter the ledger in the wrong order', file: 'settle', find: '(a, b) => a.settled - b.settled) : kept\n', put: '(a, b) => a.settled - b.settled) : [...kept].reverse()\n' },
  { bug: 'message_order is ignored', file: 'settle', find: 'run.policy.message_order === \'completion\'', put: 'run.policy.message_order === null' },
  { bug: 'more calls run than may', file: 'settle', find: '.slice(0, room(run, phase))', put: '' },
  { bug: 'the last call asked for starts first', file: 'settle', find: '.slice(0, room(run, phase))', put: '.reverse().slice(0, room(run, phase))' },
  { bug: 'parallel false is ignored', file: 'schedule', find: 'run.policy.parallel ? run.limits.max_tool_concurrency : 1', put: 'run.limits.max_tool_concurrency' },
  { bug: 'a call that cannot run starts', file: 'settle', find: 'call.status === \'pending\' && call.fault === null', put: 'call.status === \'pending\'' },
  { bug: 'a call that cannot run never fails', file: 'settle', find: 'call.status === \'pending\' && call.fault !== null', put: 'call.status === \'suspended\' && call.fault !== null' },
  { bug: 'a worker gets more calls than it has room for', file: 'settle', find: 'free.slice(0, executor.calls)', put: 'free' },
  { bug: 'placement is ignored', file: 'settle', find: ' && (executor.spread || call.placement === \'local\')', put: '' },
  { bug: 'a lost call that wrote runs again', file: 'transition', find: '(call.effects === \'read\' || call.idempotent) &&', put: 'call.since > 0 &&' },
  { bug: 'a lost call never runs again', file: 'transition', find: '(call.effects === \'read\' || call.idempotent) &&', put: 'call.since < 0 &&' },
  { bug: 'a call that runs again keeps its attempt', file: 'settle', find: '      call.attempt++\n', put: '      call.attempt = 1\n' },
  { bug: 'the last of two final answers counts', file: 'transition', find: 'index(call.id) < index(run.final.call_id)', put: 'index(call.id) > index(run.final.call_id)' },
  { bug: 'fail_run fails a run that has its final answer', file: 'settle', find: 'run.final === null && first !== undefined', put: 'first !== undefined' },
  { bug: 'fail_run is ignored', file: 'settle', find: 'run.policy.on_error === \'fail_run\'', put: 'run.policy.on_error === null' },
  { bug: 'fail_run names the failures in request order', file: 'settle', find: 'call.status === \'failed\').sort((a, b) => a.settled - b.settled)', put: 'call.status === \'failed\')' },

  // Ends and cancellations
  { bug: 'nobody aborts the LLM call of a run that ends', file: 'settle', find: '    abortWorker(draft, phase.worker, phase.fence, [], why)\n', put: '' },
  { bug: 'nobody aborts the calls of a run that ends', file: 'settle', find: '    abortWorker(draft, call.worker, null, [call.id], reason)\n', put: '' },
  { bug: 'a cancelled run does not say that its turn was', file: 'settle', find: 'if (stopped && phase.attempt > 0) {', put: 'if (stopped && phase.attempt > 9) {' },
  { bug: 'cancelled calls stay in the ledger', file: 'settle', find: 'call.status === \'cancelled\' ? leavesTombstone(run, call) : keepCompleted', put: 'call.status === \'cancelled\' || keepCompleted' },
  { bug: 'results that came before a cancellation are lost', file: 'settle', find: 'closeEarly(draft, run, phase, why, null, true)', put: 'closeEarly(draft, run, phase, why, null, false)' },
  { bug: 'a run that ends stays active', file: 'settle', find: '  state.run = null\n  state.fence++', put: '  state.fence++' },
  { bug: 'a cancelled run keeps its place in the queue', file: 'settle', find: '  state.queue = state.queue.filter((one) => one.id !== run.id)\n', put: '' },

  // Runs that wait
  { bug: 'a run is started twice', file: 'transition', find: '  if (state.seen.includes(command.run_id)) return \'duplicate\'\n', put: '' },
  { bug: 'ids are forgotten one too early', file: 'draft', find: 'state.seen.slice(1 - SEEN)', put: 'state.seen.slice(2 - SEEN)' },
  { bug: 'the newest run comes first', file: 'transition', find: 'else state.queue.push(run)', put: 'else state.queue.unshift(run)' },
  { bug: 'a scheduled run does not wait for its time', file: 'settle', find: 'run.due_at === null || run.due_at <= now)\n    if (next', put: 'run.due_at !== undefined)\n    if (next' },
  { bug: 'on_active_run "reject" is ignored', file: 'transition', find: 'if (busy && command.on_active_run === \'reject\')', put: 'if (busy && command.on_active_run === null)' },
  { bug: 'a rolled back run stays in the ledger', file: 'settle', find: '  draft.rewind = run.ledger_start\n', put: '' },

  // Messages
  { bug: 'a message is delivered twice', file: 'settle', find: '  state.waiting = state.waiting.filter((message) => !messages.includes(message))\n  return', put: '  return' },
  { bug: 'a message that steers is forgotten', file: 'settle', find: 'message.run_id === run.id && message.mode === \'steer\'', put: 'message.run_id === run.id && message.mode === \'queue\'' },
  { bug: 'an answer ends a run although a message waits', file: 'settle', find: 'answer !== null && waiting.length === 0', put: 'answer !== null' },
  { bug: 'messages of a run that ends are lost', file: 'settle', find: 'if (message.run_id === run.id) message.run_id = null\n  emit(', put: 'if (message.run_id === run.id) message.run_id = \'lost\'\n  emit(' },
  { bug: 'an interrupt leaves the old fence valid', file: 'settle', find: '  run.final = null\n  run.phase = dueTurn(draft.state.turn + 1, draft.now, causes)\n', put: '  run.final = null\n' },
  { bug: 'a withdrawn message is delivered', file: 'messages', find: 'draft.state.waiting = draft.state.waiting.filter((one) => one !== message)', put: 'draft.state.waiting = [...draft.state.waiting]' },
  { bug: 'a message can be withdrawn after the answer it kept from being final', file: 'settle', find: '[...causedBy, ...deliver(draft, run, waiting)]', put: 'waiting.map((message) => { message.mode = \'steer\'; return message.cause })' },

  { bug: 'a delayed message goes to the run before its own', file: 'settle', find: 'if (!state.queue.some((run) => run.id === message.run_id)) message', put: 'message' },

  // Events and texts
  { bug: 'seq has a gap', file: 'draft', find: 'const seq = ++state.seq', put: 'const seq = state.seq += state.seq === 7 ? 2 : 1' },
  { bug: 'run_seq stands still', file: 'draft', find: 'run_seq: ++run.run_seq', put: 'run_seq: run.run_seq + 1' },
  { bug: 'batch.completed does not say what it follows from', file: 'settle', find: 'caused_by: phase.calls.map((call) => call.cause) }', put: 'caused_by: [] }' },
  { bug: 'message_count is counted before the messages', file: 'settle', find: 'message_count: state.messages', put: 'message_count: state.messages - draft.messages.length' },
  { bug: 'a text is not put beside the row', file: 'transition', find: '  put(draft, docNames.text(phase.turn), ', put: '  if (calls.length < 2) put(draft, docNames.text(phase.turn), ' },
  { bug: 'texts nobody needs any more stay', file: 'settle', find: '  drop(draft, docNames.text(phase.turn))\n', put: '' },
  { bug: 'an input is not dropped when it has entered the ledger', file: 'draft', find: '  drop(draft, name)\n}', put: '}' },
  { bug: 'a decision changes the state it is given', file: 'transition', find: 'state === null ? blank(command as CreateConversation | StartRun) : clone(state)', put: 'state ?? blank(command as CreateConversation | StartRun)' },

  // Schedule
  { bug: 'nobody is wanted for calls', file: 'schedule', find: 'call.status === \'running\' && call.worker === null)\n  const jobs', put: 'call.status === \'suspended\')\n  const jobs' },
  { bug: 'nobody is wanted for a turn', file: 'schedule', find: 'if (phase.worker !== null || phase.ready_at > now) return []', put: 'return []' },
  { bug: 'nobody looks when a retry is due', file: 'schedule', find: '(readyAt > now ? readyAt : unclaimed(readyAt))', put: '(readyAt > now ? readyAt + 1000 : unclaimed(readyAt))' },
  { bug: 'nobody looks when a run times out', file: 'schedule', find: '    if (run.started_at !== null) times.push(run.started_at + run.limits.run_timeout_ms)\n', put: '' },
  { bug: 'nobody looks when a run is due', file: 'schedule', find: 'if (queued.due_at !== null) times.push(queued.due_at)', put: 'if (queued.due_at === 0) times.push(0)' },
  { bug: 'a run that waits behind another is looked at all the time', file: 'schedule', find: '  if (run === null) {\n', put: '  for (const one of run === null ? [] : state.queue) times.push(one.due_at ?? now)\n  if (run === null) {\n' },
  { bug: 'an attempt\'s job has the id of the one before', file: 'schedule', find: '-a${phase.attempt + 1}$', put: '-a1$' },
  { bug: 'claims of calls are not seen', file: 'state', find: 'isOpen(call) && call.worker !== null ?', put: 'isOpen(call) && call.worker === null ?' },

  // Transcript
  { bug: 'a call without a result is sent', file: 'transcript', find: 'if (!twice && answers.has(id)) return true', put: 'if (!twice) return true' },
  { bug: 'a result that answers nothing is sent', file: 'transcript', find: 'if (answers.has(id) || !calls.some((call) => call.call_id === id))', put: 'if (answers.has(id))' },
  { bug: 'an id is sent twice', file: 'transcript', find: '  while (used.has(id)) id += \'_\'\n  used.add(id)\n', put: '' },
  { bug: 'a finished answer is sent last', file: 'transcript', find: 'while (isFinished(messages.at(-1))) {', put: 'while (messages.length > 99) {' },
  { bug: 'half a surrogate pair is sent', file: 'transcript', find: 'return (text as string & { toWellFormed: () => string }).toWellFormed()', put: 'return text' }
]

const ROOT = join(import.meta.dirname, '..', '..', '..')
const TABLES = ['run', 'turn', 'batch', 'schedule', 'transcript']
const SUPPORT = ['core-scene', 'core-shelf', 'core-fold', 'core-world', 'ledger', 'payload']

async function main (): Promise<void> {
  const wanted = BUGS.filter(({ bug }) => bug.includes(process.argv[2] ?? ''))
  const sources = new Map<string, string>()
  const lost: string[] = []
  for (const { bug, file, find } of wanted) {
    if (!sources.has(file)) sources.set(file, await readFile(join(ROOT, 'src', 'core', `${file}.ts`), 'utf8'))
    const found = (sources.get(file) ?? '').split(find).length - 1
    if (found !== 1) lost.push(`"${bug}" cannot be planted: its text stands ${found} times in src/core/${file}.ts, not once:\n  ${find}`)
  }
  if (lost.length > 0) throw new Error(lost.join('\n'))

  const folder = await mkdtemp(join(tmpdir(), 'interlock-mutations-'))
  try {
    const lanes = [await copy(join(folder, '1')), await copy(join(folder, '2'))]
    const clean = await tests(lanes[0] as string)
    if (clean.length > 0) throw new Error(`the tests fail without a bug:\n${clean.join('\n')}`)

    const rest = [...wanted]
    let unnoticed = 0
    await Promise.all(lanes.map(async (lane) => {
      for (let next = rest.shift(); next !== undefined; next = rest.shift()) {
        const { bug, file, find, put } = next
        const path = join(lane, 'src', 'core', `${file}.ts`)
        const source = sources.get(file) as string
        await writeFile(path, source.replace(find, () => put))
        const failed = await tests(lane)
        await writeFile(path, source)
        if (failed.length === 0) unnoticed++
        say(`${failed.length === 0 ? 'UNNOTICED' : 'caught'}: ${bug}${failed.map((title) => `\n    ${title}`).join('')}`)
      }
    }))
    say(`${wanted.length - unnoticed} of ${wanted.length} planted bugs were caught`)
    if (unnoticed > 0) process.exitCode = 1
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

const say = (line: string) => process.stdout.write(`${line}\n`)

/** Copies what the tests of the core need into a folder of its own. */
async function copy (folder: string): Promise<string> {
  await mkdir(join(folder, 'test', 'core'), { recursive: true })
  await mkdir(join(folder, 'test', 'support'))
  await cp(join(ROOT, 'src', 'core'), join(folder, 'src', 'core'), { recursive: true })
  const files = [
    'package.json', 'tsconfig.json', ...SUPPORT.map((name) => join('test', 'support', `${name}.ts`)),
    ...[...TABLES, 'sequences'].map((name) => join('test', 'core', `${name}.test.ts`))
  ]
  for (const name of files) await cp(join(ROOT, name), join(folder, name))
  // All tables in one process: starting one costs more than running them.
  await writeFile(join(folder, 'test', 'core', 'tables.ts'), TABLES.map((name) => `import './${name}.test.js'\n`).join(''))
  await symlink(join(ROOT, 'node_modules'), join(folder, 'node_modules'))
  return folder
}

/** Titles of the tests that fail: how many tables and the first of them, and the rule that the sequences found broken. */
async function tests (folder: string): Promise<string[]> {
  const tables = await run(folder, 'tables.ts')
  const sequences = await run(folder, 'sequences.test.ts')
  const [first, ...others] = tables.titles
  return [
    ...first === undefined ? [] : [`${first}${others.length > 0 ? ` (and ${others.length} more)` : ''}`],
    ...sequences.titles.length === 0 ? [] : [`sequences: ${sequences.rule ?? sequences.titles[0]}`]
  ]
}

const PATIENCE_MS = 120_000

function run (folder: string, file: string): Promise<{ titles: string[], rule: string | undefined }> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ['--import', 'tsx', join('test', 'core', file)], {
      cwd: folder, env: { ...process.env, FC_SEED: '1' }, stdio: ['ignore', 'pipe', 'ignore'], timeout: PATIENCE_MS, killSignal: 'SIGKILL'
    })
    let output = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => { output += text })
    child.on('error', reject)
    child.on('close', (code, signal) => {
      const titles = [...output.matchAll(/^not ok \d+ - (.*?)(?: # time=.*)?$/gm)].map(([, title]) => title as string)
      const rule = /message: [>|]-?\n\s*(.*(?:\n\s+(?!what happened).*)*?)\n\s*what happened/.exec(output)?.[1]?.replaceAll(/\s+/g, ' ')
      if (titles.length === 0 && code !== 0) titles.push(signal === null ? `${file} broke off` : `${file} did not end`)
      resolve({ titles, rule })
    })
  })
}

await main()
