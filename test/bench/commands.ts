import { Redis } from 'ioredis'
import { createHash } from 'node:crypto'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'

const folder = join(import.meta.dirname, '../../src/store/lua')
const scripts = new Map(readdirSync(folder).map((file) => {
  return [createHash('sha1').update(readFileSync(join(folder, file))).digest('hex'), file.replace('.lua', '')] as const
}))

export interface Commands {
  /** What clients sent, by name; our scripts by theirs, BullMQ's and redlock's under the connection's name. */
  sent: Map<string, number>
  /** Commands that scripts called. */
  inner: number
}

/** Counts what is sent to Redis while `task` runs. It slows Redis down: never measure time with it. */
export async function countCommands (url: string, task: () => Promise<void>): Promise<Commands> {
  const client = new Redis(url)
  const names = new Map<string, string>()
  for (const line of (await client.client('LIST') as string).split('\n')) {
    const [, addr] = / addr=(\S+)/.exec(line) ?? []
    const [, name] = / name=(\S*)/.exec(line) ?? []
    if (addr !== undefined) names.set(addr, name ?? '')
  }
  const sent = new Map<string, number>()
  let inner = 0
  const monitor = await client.monitor()
  monitor.on('monitor', (_time: string, args: string[], source: string) => {
    if (source === 'lua') {
      inner++
      return
    }
    const command = args[0]?.toLowerCase() ?? ''
    const own = command === 'evalsha' ? scripts.get(args[1] ?? '') : undefined
    const connection = (names.get(source) ?? 'unknown').replace('interlock-', '')
    if (connection === 'unknown') return
    const name = own ?? (command === 'evalsha' ? `script (${connection})` : `${command} (${connection})`)
    sent.set(name, (sent.get(name) ?? 0) + 1)
  })
  await task()
  await new Promise((resolve) => setTimeout(resolve, 50))
  monitor.disconnect()
  client.disconnect()
  return { sent, inner }
}
