/**
 * `npx tsx test/chaos/mutations.ts [part of a bug's name]`: shows that the judge can fail. Plants one bug at a time into a copy of the product and
 * lets chaos happen until the judge finds it. Ends with 1 when a bug goes unnoticed, or cannot be planted any more.
 */
import { spawn } from 'node:child_process'
import { cp, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { CHAOS_BUGS, type ChaosBug } from './bugs.js'

/** As long as this chaos may go on before a bug counts as unnoticed. */
const MINUTES = 6
const root = join(import.meta.dirname, '../..')

async function hunt ({ file, find, put }: ChaosBug): Promise<string> {
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
for (const bug of CHAOS_BUGS.filter((one) => one.bug.includes(only))) {
  const said = await hunt(bug)
  if (!said.startsWith('VIOLATION')) failed++
  process.stdout.write(`${bug.bug}\n    ${said.slice(0, 300)}\n`)
}
process.exitCode = failed > 0 ? 1 : 0
