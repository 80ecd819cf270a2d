import { spawn } from 'node:child_process'
import { cp, mkdtemp, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { hunt as huntSchedules, type Mutation } from '../support/schedule-mutations.js'

/**
 * A bug somebody could make, and who must find it: in `file` each text stands exactly once, and becomes the other.
 * `by`: `tables` are the tables and sequences of commands of the core, `simulation` and `chaos` are their judges, anything else is a test file, which meets real parts.
 */
export interface Bug { bug: string, file: string, edits: [text: string, instead: string][], by: string }

/** What was said of a bug; null: nothing. */
export type Caught = string | null

const ROOT = join(import.meta.dirname, '../..')
const PATIENCE_MS = 600_000
const SEEDS = 4000
/** As long as chaos may go on before a bug counts as unnoticed. */
const CHAOS_MINUTES = 6
/** Tables in one process: starting one costs more than running them. */
const TABLES_FILE = 'test/core/tables.ts'
const TABLES = ['run', 'turn', 'batch', 'schedule', 'transcript']

/** Plants a bug into a copy of the project and lets whoever must find it look for it. Throws when it cannot be planted. */
export async function hunt ({ file, edits, by }: Bug): Promise<Caught> {
  const folder = await mkdtemp(join(tmpdir(), 'interlock-mutation-'))
  try {
    for (const name of ['src', 'routes', 'plugins', 'test']) await cp(join(ROOT, name), join(folder, name), { recursive: true })
    for (const name of ['package.json', 'tsconfig.json', 'openapi.yaml']) await cp(join(ROOT, name), join(folder, name))
    for (const name of ['node_modules', '.cache']) await symlink(join(ROOT, name), join(folder, name))
    await writeFile(join(folder, TABLES_FILE), TABLES.map((name) => `import './${name}.test.js'\n`).join(''))
    if (by !== 'simulation' && by !== 'chaos' && !sound.has(by)) {
      const wrong = await look(folder, by)
      if (wrong !== null) throw new Error(`its tests fail without a bug: ${wrong}`)
      sound.add(by)
    }
    const path = join(folder, file)
    const written = await readFile(path, 'utf8')
    let source = written
    for (const [text, instead] of edits) {
      const times = source.split(text).length - 1
      if (times !== 1) throw new Error(`it cannot be planted: its text stands ${times} times in ${file}, not once: ${text}`)
      source = source.replace(text, () => instead)
    }
    await writeFile(path, source)
    const caught = await look(folder, by)
    const seed = by === 'simulation' ? /^seed (\d+):/.exec(caught ?? '')?.[1] : undefined
    if (seed !== undefined) {
      await writeFile(path, written)
      const { code } = await run(folder, ['test/simulation/simulate.ts', '--seed', seed])
      if (code !== 0) throw new Error(`seed ${seed} fails without a bug as well`)
    }
    return caught
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** Tests that have been seen to pass without a bug. */
const sound = new Set<string>()

async function look (folder: string, by: string): Promise<Caught> {
  if (by === 'simulation') return await simulated(folder)
  if (by === 'chaos') return await chaotic(folder)
  if (by !== 'tables') return await tested(folder, by)
  return await tested(folder, TABLES_FILE) ?? await tested(folder, 'test/core/sequences.test.ts')
}

/** The same for a fault that the judge of schedules must find. */
export async function huntInSchedules (mutation: Mutation): Promise<Caught> {
  return (await huntSchedules(mutation))?.says ?? null
}

/** What the judge says of the first seed that fails. */
async function simulated (folder: string): Promise<Caught> {
  const { code, output } = await run(folder, ['test/simulation/simulate.ts', '--seeds', `${SEEDS}`, '--brief'])
  if (code === 0) return null
  const [said] = /^seed \d+: .*$/m.exec(output) ?? []
  if (said === undefined && code !== null) throw new Error(`the simulation broke off: ${output.slice(-300)}`)
  return said ?? 'it does not end'
}

/** The first thing that the judge of chaos says. */
async function chaotic (folder: string): Promise<Caught> {
  const { code, output } = await run(folder, ['test/chaos/chaos.ts', '--seed', '1', '--minutes', `${CHAOS_MINUTES}`, '--brief'])
  if (code === 0) return null
  const [said] = /^VIOLATION .*$/m.exec(output) ?? []
  if (said === undefined) throw new Error(`chaos broke off: ${output.slice(-300)}`)
  return said
}

/** The first test of a file that fails. */
async function tested (folder: string, file: string): Promise<Caught> {
  const { code, output } = await run(folder, [file])
  if (code === 0) return null
  const [unreadable] = /^.*(Transform failed with|Error compiling script).*$/m.exec(output) ?? []
  if (unreadable !== undefined) throw new Error(`what was planted is no code: ${unreadable.trim()}`)
  const failed = [...output.matchAll(/^( *)not ok \d+ - (.*?)(?: # time=.*)?(?: \{)?$/gm)].map(([, indent = '', title = '']) => ({ depth: indent.length, title }))
  const rule = /message: [>|]-?\n\s*(.*(?:\n\s+(?!what happened).*)*?)\n\s*what happened/.exec(output)?.[1]?.replaceAll(/\s+/g, ' ')
  // The outermost of them says what was to be true.
  const title = failed.filter((one) => !one.title.endsWith('.ts')).sort((a, b) => a.depth - b.depth)[0]?.title
  return rule ?? title ?? (code === null ? `${file} does not end` : `${file} breaks off`)
}

function run (folder: string, args: string[]): Promise<{ code: number | null, output: string }> {
  return new Promise((resolve, reject) => {
    // In a group of its own: a test that hangs may have started processes.
    const child = spawn(process.execPath, ['--require', 'tsx/cjs', '--import', 'tsx/esm', ...args], { cwd: folder, env: { ...process.env, FC_SEED: '1', TAP_TIMEOUT: '500' }, stdio: ['ignore', 'pipe', 'pipe'], detached: true })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text: string) => { output += text })
    const timer = setTimeout(() => { if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL') }, PATIENCE_MS)
    child.on('error', reject)
    child.on('close', (code) => {
      clearTimeout(timer)
      resolve({ code, output })
    })
  })
}
