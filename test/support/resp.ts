import { createHash } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { basename, join } from 'node:path'
import type { Redis } from 'ioredis'
import Redlock from 'redlock'

/** One command on its way to Redis. */
export interface RedisCommand {
  /** In capitals; `EVAL` also for `EVALSHA`. */
  name: string
  /** Of a script the name: `commit`, `append`, … (src/store/lua), `lock` `unlock` `extend` (redlock), `addStandardJob`, `moveToActive`, … (BullMQ). */
  script: string | null
  /** The keys of a script; of anything else its arguments. */
  keys: string[]
  /** What was sent, one character a byte; a script without its source, which says nothing of this command. */
  text: string
}

/** Cuts a stream of bytes into whole frames, with as little copying as a test needs. `end` finds where the first one ends. */
export function createFramer (end: (bytes: Buffer) => number): (chunk: Buffer) => Buffer[] {
  let rest: Buffer[] = []
  let size = 0
  let wanted = 1
  return (chunk) => {
    rest.push(chunk)
    size += chunk.length
    if (size < wanted) return []
    let bytes = rest.length === 1 ? chunk : Buffer.concat(rest)
    const frames: Buffer[] = []
    for (;;) {
      const to = bytes.length === 0 ? -1 : end(bytes)
      if (to <= 0) {
        // At least so many bytes are needed: a large value is not looked at again with each piece that comes.
        wanted = to === 0 ? bytes.length + 1 : -to
        break
      }
      frames.push(bytes.subarray(0, to))
      bytes = bytes.subarray(to)
    }
    rest = bytes.length > 0 ? [bytes] : []
    size = bytes.length
    return frames
  }
}

/** Where the first request ends: an array of bulk strings, or an inline command. Not whole yet: minus the bytes it needs. */
export function requestEnd (bytes: Buffer): number {
  return bytes[0] === 0x2a ? valueEnd(bytes, 0) : lineEnd(bytes, 0)
}

/** Where the first reply ends, of RESP2 or RESP3. Not whole yet: minus the bytes it needs. */
export const replyEnd = (bytes: Buffer): number => valueEnd(bytes, 0)

function lineEnd (bytes: Buffer, from: number): number {
  const at = bytes.indexOf('\r\n', from)
  return at === -1 ? -(bytes.length + 1) : at + 2
}

function valueEnd (bytes: Buffer, from: number): number {
  const line = lineEnd(bytes, from)
  if (line < 0) return line
  const count = () => Number(bytes.toString('latin1', from + 1, line - 2))
  switch (String.fromCharCode(bytes[from] ?? 0)) {
    case '$': case '!': case '=': {
      const to = count() < 0 ? line : line + count() + 2
      return to > bytes.length ? -to : to
    }
    case '*': case '~': case '>': return valuesEnd(bytes, line, count())
    case '%': return valuesEnd(bytes, line, 2 * count())
    case '|': return valuesEnd(bytes, line, 2 * count() + 1)
    default: return line
  }
}

function valuesEnd (bytes: Buffer, from: number, count: number): number {
  let at = from
  for (let i = 0; i < count; i++) {
    if (at >= bytes.length) return -(bytes.length + 1)
    const to = valueEnd(bytes, at)
    if (to < 0) return to
    at = to
  }
  return at
}

/** The strings of an array, as far as it holds strings: enough for requests and for what a subscription brings. */
export function stringsOf (frame: Buffer): string[] {
  if (frame[0] !== 0x2a && frame[0] !== 0x3e) return frame.toString('latin1').trim().split(/\s+/)
  const strings: string[] = []
  for (let at = lineEnd(frame, 0); at < frame.length;) {
    const to = valueEnd(frame, at)
    if (frame[at] === 0x24) strings.push(frame.toString('latin1', lineEnd(frame, at), to - 2))
    at = to
  }
  return strings
}

/** What a request asks for. */
export function commandOf (frame: Buffer): RedisCommand {
  const [name = '', ...args] = stringsOf(frame)
  const text = frame.toString('latin1')
  const command = name.toUpperCase()
  if (command === 'SCRIPT' && args[0]?.toUpperCase() === 'LOAD') learn(args[1] ?? '')
  if (command !== 'EVAL' && command !== 'EVALSHA') return { name: command, script: null, keys: args, text }
  const [source = '', count = '0', ...rest] = args
  const sha = command === 'EVAL' ? learn(source) : source
  return { name: 'EVAL', script: scripts.get(sha) ?? null, keys: rest.slice(0, Number(count)), text: command === 'EVAL' ? text.replace(source, () => '') : text }
}

const sha1 = (text: string): string => createHash('sha1').update(text, 'latin1').digest('hex')
/** Sources are hashed as the bytes they are sent as. */
const bytes = (text: string): string => Buffer.from(text).toString('latin1')

/** Names by SHA-1. */
const scripts = new Map<string, string>()
/** Names by the line a script of ours introduces itself with: a test may run a changed copy of it. */
const firstLines = new Map<string, string>()

/** Remembers a script that passes by, and says its hash. */
function learn (source: string): string {
  const sha = sha1(source)
  if (scripts.has(sha)) return sha
  // What others have in common stands in front of them: the last one gives the name.
  const [last] = [...firstLines].map(([line, name]) => ({ name, at: source.indexOf(line) })).filter(({ at }) => at >= 0).sort((a, b) => b.at - a.at)
  if (last !== undefined) scripts.set(sha, last.name)
  return sha
}

const lua = join(import.meta.dirname, '../../src/store/lua')
const sourceOf = (file: string): string => bytes(readFileSync(join(lua, file), 'utf8'))
for (const file of readdirSync(lua)) {
  const [source, name] = [sourceOf(file), basename(file, '.lua')]
  for (const whole of [source, sourceOf('epoch.lua') + source]) scripts.set(sha1(whole), name)
  firstLines.set(source.split('\n')[1] ?? '', name)
}
const bullmq = createRequire(import.meta.url)(join(import.meta.dirname, '../../node_modules/bullmq/dist/cjs/scripts/index.js')) as Record<string, { name: string, content: string }>
for (const { name, content } of Object.values(bullmq)) if (typeof content === 'string') scripts.set(sha1(bytes(content)), name)
const redlock = new Redlock([{} as Redis as unknown as Redlock.CompatibleRedisClient]) as unknown as { scripts: Record<string, { hash: string }> }
for (const [name, { hash }] of Object.entries(redlock.scripts)) scripts.set(hash, name.replace('Script', ''))
