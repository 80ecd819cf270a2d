import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import t from 'tap'
import { CHAOS_BUGS } from './chaos-bugs.js'
import { CORE_BUGS } from './core-bugs.js'
import { fileOf } from './core-file.js'
import { GUARDS } from './guards.js'
import { SIMULATION_BUGS } from './simulation-bugs.js'

const ROOT = join(import.meta.dirname, '../..')

/** What `npm run mutate` would plant; whether it is found takes them hours. */
const places: { bug: string, file: string | null, edits: [text: string, instead: string][] }[] = [
  ...GUARDS,
  ...SIMULATION_BUGS,
  ...CHAOS_BUGS,
  ...CORE_BUGS.map(({ bug, find, put }) => ({ bug, file: null, edits: [[find, put]] as [string, string][] }))
]

t.test('every bug that somebody is to find can be planted: the text it changes stands in the product, once', async (t) => {
  for (const { bug, file, edits } of places) {
    let source = await readFile(join(ROOT, file ?? await fileOf(edits[0]?.[0] ?? '')), 'utf8')
    for (const [text, instead] of edits) {
      t.equal(source.split(text).length - 1, 1, `${bug}: ${text}`)
      t.not(text, instead)
      source = source.replace(text, () => instead)
    }
  }
})
