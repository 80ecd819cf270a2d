import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'

const read = (path: string) => readFileSync(join(import.meta.dirname, '../..', path), 'utf8')

t.test('docs/configuration.md has every variable of src/config.ts with its default, and no other', async (t) => {
  const source = read('src/config.ts')
  const variables = source.slice(source.indexOf('const Variables'), source.indexOf('type Variable'))
  const coded = [...variables.matchAll(/^ {2}([A-Z_]+): (.*?),?$/gm)].map(([, name = '', schema = '']) => {
    const given = /default: '([^']*)'/.exec(schema) ?? /^(?:whole|time)\(.*?(\w+)\)$/.exec(schema)
    return [name, given?.[1]?.replaceAll('_', '') ?? (schema === 'toggle()' || schema === 'notYet()' ? 'true' : undefined)] as const
  })
  const told = new Map<string, string>()
  for (const [, names = '', standard = ''] of read('docs/configuration.md').matchAll(/^\| ((?:`[A-Z_]+` ?)+)\| (.*?) \|/gm)) {
    for (const [, name = ''] of names.matchAll(/`(\w+)`/g)) told.set(name, standard)
  }
  t.strictSame([...told.keys()].sort(), coded.map(([name]) => name).sort())
  for (const [name, standard] of coded) {
    if (standard !== undefined) t.equal(told.get(name), `\`${standard}\``, name)
    else t.notMatch(told.get(name), /`/, `${name} has no default`)
  }
})
