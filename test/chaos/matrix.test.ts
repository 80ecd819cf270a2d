import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'

const root = join(import.meta.dirname, '../..')
const page = readFileSync(join(root, 'docs/fault-matrix.md'), 'utf8')

const between = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => `F${from + i}`)
const ROWS = [...between(1, 18), ...between(20, 28), ...between(30, 41), ...between(50, 54), ...between(60, 72), ...between(80, 86), 'F90']

interface Row { id: string, fault: string, outcome: string, test: string, result: string }

const rows = page.split('\n').filter((line) => /^\| F\d/.test(line)).map((line): Row => {
  const [, id = '', fault = '', outcome = '', test = '', result = ''] = line.split(/(?<!\\)\|/).map((cell) => cell.trim())
  return { id, fault, outcome, test, result }
})

/** Whether a title of the file begins like this. */
function begins (file: string, start: string): boolean {
  const text = readFileSync(join(root, file), 'utf8').replace(/\\'/g, '\'')
  return [`'${start}`, `\`${start}`, `\`\${row}, ${start}`].some((written) => text.includes(written))
}

t.test('the page has every row of the matrix once, in order', async (t) => {
  t.same(rows.map(({ id }) => id), ROWS)
})

for (const { id, test, result } of rows) {
  t.test(`${id} names a test that there is, or says why not`, async (t) => {
    t.match(result, /^(passes|not shown)/)
    if (test === '–') {
      t.match(result, /^not shown.{100}/, 'why not')
      return
    }
    t.match(result, /^passes/)
    for (const named of test.split(' · ')) {
      const [, file = '', start = ''] = /^`([^`]+)`: (.+)$/.exec(named) ?? []
      t.ok(existsSync(join(root, file)), `there is no ${file}`)
      t.ok(begins(file, start), `${file} has no test "${start}…"`)
    }
  })
}
