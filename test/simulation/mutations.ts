/**
 * `npx tsx test/simulation/mutations.ts [part of a bug's name]`: shows that the judge can fail. Plants one bug at a time into a copy of
 * the product and lets seeds happen until the judge finds it. Ends with 1 when a bug goes unnoticed, or cannot be planted any more.
 */
import { spawn } from 'node:child_process'
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

interface Bug { bug: string, file: string, find: string, put: string }

const BUGS: Bug[] = [
  // What is stored
  { bug: 'no fence check', file: 'core/transition', find: ' || run.phase.fence !== fence) return null', put: ') return null' },
  { bug: 'no fence check for streamed text', file: 'store/memory-store', find: ' || found.fence !== fence) return false', put: ') return false' },
  { bug: 'no version check', file: 'store/memory-store', find: 'found?.born !== base?.born || found?.version !== base?.version', put: '(found === undefined) !== (base === null)' },
  { bug: 'a commit is not known by its token', file: 'store/memory-store', find: 'found?.tokens.includes(token)', put: 'found?.tokens.includes(`not ${token}`)' },
  { bug: 'every try of a commit has another token', file: 'engine/execute', find: '        token,\n', put: '        token: ids.next(),\n' },
  { bug: 'a conversation that is made again honours the fences of its former self', file: 'core/transition', find: 'fence: command.at,', put: 'fence: 0,' },
  // Taking over
  { bug: 'the sweep is off', file: 'engine/engine', find: 'due.map((conversation) =>', put: 'due.slice(due.length).map((conversation) =>' },
  { bug: 'claims of living workers lapse', file: 'engine/engine', find: 'left.get(claim.worker) === 0', put: 'left.get(claim.worker) !== -1' },
  { bug: 'claims of dead workers stand', file: 'engine/engine', find: 'left.get(claim.worker) === 0', put: 'left.get(claim.worker) === -1' },
  { bug: 'a worker gives no sign of life', file: 'engine/engine', find: 'next = clock.after(settings.leaseMs / 3, renew)\n        timers.add(next)\n', put: '' },
  { bug: 'a claim that was never begun is not noticed', file: 'engine/engine', find: 'claim.worker === settings.worker && !isKnown(conversation, claim)', put: 'claim.worker === settings.worker && claim.attempt < 0' },
  { bug: 'claimed work is never due', file: 'core/schedule', find: 'times.push(worker === null ? (readyAt > now ? readyAt : unclaimed(readyAt)) : now + leaseMs)', put: 'if (worker === null) times.push(readyAt > now ? readyAt : unclaimed(readyAt))' },
  { bug: 'a lost call that writes is run again', file: 'core/lapse', find: '(call.rules.effects === \'read\' || call.rules.idempotent)', put: '(call.rules.effects !== undefined || call.rules.idempotent)' },
  // Hints
  { bug: 'nothing is queued behind a commit', file: 'engine/execute', find: 'if (jobs.length === 0) return', put: 'if (jobs.length >= 0) return' },
  { bug: 'the sweep queues nothing', file: 'engine/engine', find: 'await hints.add(conversation, wanted(row.state, now, settings.leaseMs))', put: 'wanted(row.state, now, settings.leaseMs)' },
  // Leases
  { bug: 'the lease is released early', file: 'engine/turn', find: 'const stop = new AbortController()\n', put: 'const stop = new AbortController()\n  lease.release()\n' },
  { bug: 'a lost lease stops nobody', file: 'engine/turn', find: 'AbortSignal.any([signal, lease.signal, stop.signal])', put: 'AbortSignal.any([signal, stop.signal])' },
  { bug: 'a lease is kept when the work for it fails', file: 'engine/turn', find: 'release: lease.release }', put: 'release: () => { if (task.attempt < 2) lease.release() } }' },
  { bug: 'a request waits for what is more patient', file: 'engine/execute', find: 'const cancel = clock.after(patienceMs, ', put: 'const cancel = clock.after(patienceMs * 9, ' },
  { bug: 'a cancelled turn is not told so', file: 'engine/execute', find: 'else feed.tell(', put: 'else if (now < 0) feed.tell(' },
  // Dispatch and barrier
  { bug: 'claimed work begins twice', file: 'engine/execute', find: 'performer?.perform(conversation, row, effect)\n', put: '{ performer?.perform(conversation, row, effect); performer?.perform(conversation, row, effect) }\n' },
  { bug: 'what was claimed and undone in one commit begins', file: 'engine/engine', find: 'if (claims.some((claim) => claim.fence === effect.fence)) startTurn', put: 'if (claims.length >= 0) startTurn' },
  { bug: 'calls that were claimed and undone in one commit begin', file: 'engine/engine', find: 'const calls = effect.calls.filter(({ call_id: id, attempt }) => claims.some((claim) => claim.call_id === id && claim.attempt === attempt))', put: 'const { calls } = effect' },
  { bug: 'the barrier is vacuous', file: 'core/settle', find: 'phase === null || phase.calls.some(isOpen)) return false', put: 'phase === null) return false' },
  { bug: 'a result of an earlier attempt counts', file: 'core/transition', find: ' || call.attempt !== attempt) return null', put: ') return null' },
  // Deciding
  { bug: 'an old row may refuse', file: 'engine/execute', find: 'let fresh = false', put: 'let fresh = true' },
  { bug: 'a worker gives its result up', file: 'engine/engine', find: 'const PATIENT_MS = 24 * 3_600_000', put: 'const PATIENT_MS = 1' },
  { bug: 'reads for claimed work are not tried again', file: 'engine/patience', find: 'for (let tries = 1; ; tries++) {', put: 'for (let tries = 1; ; tries++) {\n      if (tries > 0) return await read()' },
  { bug: 'a retry does not wait as long as it was told to', file: 'engine/turn', find: 'Math.max(error.retryAfterMs ?? 0, backoff(phase.tries, deps.random()))', put: 'backoff(1, deps.random()) / 10' },
  { bug: 'streamed text has the wrong place', file: 'engine/deltas', find: 'offset: from.offset + text.length,', put: 'offset: from.offset + text.length + 1,' }
]

const SEEDS = 4000
const root = join(import.meta.dirname, '../..')

async function hunt ({ file, find, put }: Bug): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'interlock-simulation-'))
  try {
    await cp(join(root, 'src'), join(folder, 'src'), { recursive: true })
    for (const part of ['simulation', 'support']) await cp(join(root, 'test', part), join(folder, 'test', part), { recursive: true })
    for (const name of ['package.json', 'tsconfig.json']) await cp(join(root, name), join(folder, name))
    await symlink(join(root, 'node_modules'), join(folder, 'node_modules'))
    const path = join(folder, 'src', `${file}.ts`)
    const source = await readFile(path, 'utf8')
    if (source.split(find).length !== 2) return `CANNOT BE PLANTED: "${find.slice(0, 60)}" is in ${file} ${source.split(find).length - 1} times`
    await writeFile(path, source.replace(find, () => put))
    return await search(folder)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** What the judge says of the first seed that fails; `MISSED` when none does. */
function search (folder: string): Promise<string> {
  const child = spawn(process.execPath, ['--import', 'tsx', 'test/simulation/simulate.ts', '--seeds', `${SEEDS}`, '--brief'], { cwd: folder })
  let out = ''
  child.stdout.on('data', (data: Buffer) => { out += data.toString() })
  child.stderr.on('data', (data: Buffer) => { out += data.toString() })
  return new Promise((resolve) => {
    child.on('close', (code) => resolve(code === 0 ? 'MISSED' : /^seed \d+: .*$/m.exec(out)?.[0] ?? `BROKEN: ${out.slice(0, 300)}`))
  })
}

const only = process.argv[2] ?? ''
let failed = 0
for (const bug of BUGS.filter((one) => one.bug.includes(only))) {
  const said = await hunt(bug)
  if (!said.startsWith('seed')) failed++
  process.stdout.write(`${bug.bug}\n    ${said.slice(0, 200)}\n`)
}
process.exitCode = failed > 0 ? 1 : 0
