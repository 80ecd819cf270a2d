import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'

const ROOT = join(import.meta.dirname, '../..')

/** The file of the core in which a text stands. Throws when there is none, or more than one. */
export async function fileOf (text: string): Promise<string> {
  const files = (await readdir(join(ROOT, 'src/core'))).map((name) => `src/core/${name}`)
  const found: string[] = []
  for (const file of files) if ((await readFile(join(ROOT, file), 'utf8')).includes(text)) found.push(file)
  if (found[0] === undefined || found.length > 1) throw new Error(`it cannot be planted: its text stands in ${found.length} files of the core: ${text}`)
  return found[0]
}
