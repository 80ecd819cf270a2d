import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import t from 'tap'

const script = join(import.meta.dirname, '../docs/model/run.sh')
const has = (command: string) => spawnSync('sh', ['-c', `command -v ${command}`]).status === 0
const skip = has('spin') && (has('cc') || has('gcc')) ? false : 'the model is checked where spin and a C compiler are installed'

// Compilers and a model checker, on a machine that may be busy.
t.setTimeout(600_000)

async function run (argument: string, env: NodeJS.ProcessEnv): Promise<{ code: number | null, lines: string[] }> {
  const child = spawn('/bin/sh', [script, argument], { env, stdio: ['ignore', 'pipe', 'inherit'] })
  const [lines, [code]] = await Promise.all([text(child.stdout), once(child, 'close') as Promise<[number | null]>])
  return { code, lines: lines.trim().split('\n') }
}

t.test('the model of the gate holds, and does not without any one of its safeguards', { skip }, async (t) => {
  const { code, lines } = await run('quick', process.env)
  t.same(lines.filter((line) => !line.startsWith('ok ')), [])
  t.equal(lines.length, 11)
  t.equal(code, 0)
})

t.test('without spin, one sentence says what to install', async (t) => {
  const { code, lines } = await run('quick', { PATH: '/nowhere' })
  t.equal(code, 77)
  t.equal(lines.length, 1)
  t.match(lines[0], /install spin and a C compiler/)
})
