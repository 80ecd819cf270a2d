import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

/**
 * Puts another text in the place of one that stands exactly once in the files of a folder. Throws, and names the places, when it does not.
 * @returns what puts it back
 */
export function replaceOnce (folder: string, text: string, instead: string): () => void {
  const places = readdirSync(folder).filter((name) => name.endsWith('.ts')).map((name) => join(folder, name)).flatMap((path) => {
    return Array<string>(readFileSync(path, 'utf8').split(text).length - 1).fill(path)
  })
  const [path] = places
  if (path === undefined || places.length > 1) throw new Error(`a fault cannot be planted: its text stands ${places.length} times in ${folder}, not once:\n  ${text}`)
  const source = readFileSync(path, 'utf8')
  writeFileSync(path, source.replace(text, () => instead))
  return () => writeFileSync(path, source)
}
