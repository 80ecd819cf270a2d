import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Cluster, Redis } from 'ioredis'

/** The text of a script in `lua/`. */
export function source (file: string): string {
  return readFileSync(join(import.meta.dirname, 'lua', `${file}.lua`), 'utf8')
}

/** Makes a script a method of a connection; `prelude` stands in front of it. It is sent by its hash, and whole where the server does not know that. */
export function define (redis: Redis | Cluster, name: string, file: string, numberOfKeys: number, prelude = ''): void {
  redis.defineCommand(name, { numberOfKeys, lua: prelude + source(file) })
}
