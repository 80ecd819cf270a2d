/**
 * `npx tsx test/chaos/mutations.ts [part of a bug's name]`: shows that the judge can fail. Plants one bug at a time into a copy of the product and
 * lets chaos happen until the judge finds it. Ends with 1 when a bug goes unnoticed, or cannot be planted any more.
 */
import { spawn } from 'node:child_process'
import { cp, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

interface Bug { bug: string, file: string, find: string, put: string }

const BUGS: Bug[] = [
  { bug: 'the sweep is off', file: 'engine/engine.ts', find: 'due.map((conversation) =>', put: 'due.slice(due.length).map((conversation) =>' },
  { bug: 'no version check', file: 'store/lua/commit.lua', find: 'if born ~= ARGV[1] or (born ~= \'\' and version ~= ARGV[2]) then', put: 'if born ~= ARGV[1] then' },
  { bug: 'no fence check', file: 'core/transition.ts', find: ' || run.phase.fence !== fence) return null', put: ') return null' },
  { bug: 'a commit is not known by its token', file: 'store/lua/commit.lua', find: 'if tokens ~= \'\' and string.find(tokens, ARGV[3], 1, true) then', put: 'if tokens == \'never\' then' },
  { bug: 'a result of an earlier attempt counts', file: 'core/transition.ts', find: ' || call.attempt !== attempt) return null', put: ') return null' },
  { bug: 'a lost call that writes is run again', file: 'core/transition.ts', find: '(call.rules.effects === \'read\' || call.rules.idempotent) && ', put: '' },
  { bug: 'claims of living workers lapse', file: 'engine/engine.ts', find: 'left.get(claim.worker) === 0', put: 'left.get(claim.worker) !== -1' },
  { bug: 'who repeats a request whose process died does it anew', file: 'services/idempotency.ts', find: 'return { status: \'fresh\', operation: found.operation }', put: 'return { status: \'fresh\', operation }' },
  { bug: 'a stream that was cut is an answer', file: 'engine/model/completion-reader.ts', find: 'if (finishReason === null) throw modelError(\'provider_truncated\', [\'no finish_reason\'], { usage })', put: 'if (finishReason === null) finishReason = \'stop\'' }
]

/** As long as this chaos may go on before a bug counts as unnoticed. */
const MINUTES = 6
const root = join(import.meta.dirname, '../..')

async function hunt ({ file, find, put }: Bug): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'interlock-chaos-mutation-'))
  try {
    for (const part of ['src', 'routes', 'plugins']) await cp(join(root, part), join(folder, part), { recursive: true })
    for (const part of ['chaos', 'simulation', 'support']) await cp(join(root, 'test', part), join(folder, 'test', part), { recursive: true })
    for (const name of ['package.json', 'tsconfig.json']) await cp(join(root, name), join(folder, name))
    await symlink(join(root, 'node_modules'), join(folder, 'node_modules'))
    await mkdir(join(folder, '.cache'))
    await cp(join(root, '.cache/redis'), join(folder, '.cache/redis'), { recursive: true }).catch(() => { /* there is another one to be found */ })
    const path = join(folder, 'src', file)
    const source = await readFile(path, 'utf8')
    if (source.split(find).length !== 2) return `CANNOT BE PLANTED: "${find.slice(0, 60)}" is in ${file} ${source.split(find).length - 1} times`
    await writeFile(path, source.replace(find, () => put))
    return await search(folder)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** The first thing the judge says; `MISSED` when it says nothing. */
function search (folder: string): Promise<string> {
  const child = spawn(process.execPath, ['--import', 'tsx', 'test/chaos/chaos.ts', '--seed', '1', '--minutes', String(MINUTES), '--brief'], { cwd: folder })
  let out = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (data: Buffer) => { out += data.toString() })
  return new Promise((resolve) => {
    child.on('close', (code) => resolve(code === 0 ? 'MISSED' : /^VIOLATION .*$/m.exec(out)?.[0] ?? `BROKEN: ${out.slice(-300)}`))
  })
}

const only = process.argv[2] ?? ''
let failed = 0
for (const bug of BUGS.filter((one) => one.bug.includes(only))) {
  const said = await hunt(bug)
  if (!said.startsWith('VIOLATION')) failed++
  process.stdout.write(`${bug.bug}\n    ${said.slice(0, 300)}\n`)
}
process.exitCode = failed > 0 ? 1 : 0
