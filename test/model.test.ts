import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import t from 'tap'

const script = join(import.meta.dirname, '../docs/model/run.sh')
const has = (command: string) => spawnSync('sh', ['-c', `command -v ${command}`]).status === 0
const skip = has('spin') && (has('cc') || has('gcc')) ? false : 'the model is checked where spin and a C compiler are installed'

t.test('the model of the gate holds, and does not without any one of its safeguards', { skip, timeout: 300_000 }, async (t) => {
  const { status, stdout } = spawnSync('sh', [script, 'quick'], { encoding: 'utf8' })
  const lines = stdout.trim().split('\n')
  t.same(lines.filter((line) => !line.startsWith('ok ')), [])
  t.equal(lines.length, 11)
  t.equal(status, 0)
})

t.test('without spin, one sentence says what to install', async (t) => {
  const { status, stdout } = spawnSync('/bin/sh', [script], { encoding: 'utf8', env: { PATH: '/nowhere' } })
  t.equal(status, 77)
  t.match(stdout, /install spin and a C compiler/)
  t.equal(stdout.trim().split('\n').length, 1)
})
