import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Cluster, Redis } from 'ioredis'
import type { State } from '../core/state.js'
import { partitionOfRun, type Keys } from './keys.js'
import { planCommit } from './plan.js'
import type { Committed, Partial, Row, Store, StoredEvent } from './store.js'

type Reply<T> = Promise<T>

interface Scripts {
  interlockCommit: (...args: (string | number)[]) => Reply<[number, ...(string | number)[]]>
  interlockAppend: (...args: (string | number)[]) => Reply<number>
  interlockTakeDue: (...args: (string | number)[]) => Reply<string[]>
  interlockPostpone: (...args: (string | number)[]) => Reply<null>
  interlockRemove: (...args: (string | number)[]) => Reply<number>
}

/** Conversations in Redis. `redis` fails fast: a command that cannot be sent rejects, it does not wait (see redis/connect.ts, role `command`). */
export function createRedisStore (redis: Redis | Cluster, keys: Keys): Store {
  define(redis, 'interlockCommit', 'commit', 7)
  define(redis, 'interlockAppend', 'append', 2)
  define(redis, 'interlockTakeDue', 'take-due', 1)
  define(redis, 'interlockPostpone', 'postpone', 2)
  define(redis, 'interlockRemove', 'remove', 7)
  const scripts = redis as unknown as Scripts

  return {
    async load (conversation) {
      const [born, version, state] = await redis.hmget(keys.row(conversation), 'born', 'version', 'state')
      return born == null ? null : row(born, version as string, state as string)
    },

    async commit (commit): Promise<Committed> {
      const { conversation, base, token, created, due } = commit
      const plan = planCommit(commit)
      const tail: (string | number)[] = []
      for (const [name, value] of plan.puts) tail.push(name, value)
      for (const pieces of plan.messages) {
        tail.push(pieces.length)
        for (const piece of pieces) tail.push(typeof piece === 'string' ? `=${piece}` : `@${piece.doc}`)
      }
      tail.push(...plan.drops, ...created)
      for (const event of plan.events) tail.push(event.seq, event.type, event.run_id ?? '', event.json)
      const partition = keys.partitionOf(conversation)
      const [code, ...rest] = await scripts.interlockCommit(
        keys.row(conversation), keys.messages(conversation), keys.events(conversation), keys.docs(conversation), keys.partial(conversation),
        keys.due(partition), keys.runs(partition, commit.state.tenant),
        base?.born ?? '', base?.version ?? 0, token, plan.state, plan.fence, due ?? '', conversation, keys.live(conversation),
        `${plan.puts.length} ${plan.messages.length} ${plan.drops.length} ${created.length} ${plan.events.length}`,
        commit.rewind ?? '',
        ...tail
      )
      if (code !== 0) return { status: 'committed', born: base?.born ?? token, version: rest[0] as number }
      const [born, version, state] = rest as string[]
      return { status: 'conflict', row: born === undefined ? null : row(born, version as string, state as string) }
    },

    async docs (conversation, names) {
      return names.length === 0 ? [] : await redis.hmget(keys.docs(conversation), ...names)
    },

    async ledger (conversation, from, limit) {
      return await redis.lrange(keys.messages(conversation), from, limit === undefined ? -1 : from + limit - 1)
    },

    async log (conversation, after, limit) {
      const entries = await redis.xrange(keys.events(conversation), `${after + 1}-0`, '+', 'COUNT', limit)
      return entries.map(([id, fields]): StoredEvent => ({
        seq: Number(id.slice(0, id.indexOf('-'))), type: fields[1] as string, run_id: fields[3] === '' ? null : fields[3] as string, json: fields[5] as string
      }))
    },

    async append (conversation, fence, delta) {
      const { text, offset, byte, ...head } = delta
      const told = JSON.stringify({ type: 'turn.delta', conversation_id: conversation, ...head, offset, text })
      const wrote = await scripts.interlockAppend(
        keys.row(conversation), keys.partial(conversation),
        fence, JSON.stringify(head), text, byte, keys.live(conversation), `d${delta.run_id}\t${delta.turn}\t${told}`
      )
      return wrote === 1
    },

    async partial (conversation): Promise<Partial | null> {
      const stored = await redis.get(keys.partial(conversation))
      if (stored === null) return null
      const end = stored.indexOf('\n')
      return { ...JSON.parse(stored.slice(0, end)), text: stored.slice(end + 1) }
    },

    async remove (conversation) {
      const partition = keys.partitionOf(conversation)
      for (let existed = false; ; existed = true) {
        const row = await this.load(conversation)
        // Gone although it was there a moment ago: it may have been this very call, sent again because its reply was lost.
        if (row === null) return existed
        const removed = await scripts.interlockRemove(
          keys.row(conversation), keys.messages(conversation), keys.events(conversation), keys.docs(conversation), keys.partial(conversation),
          keys.due(partition), keys.runs(partition, row.state.tenant), row.born, conversation, keys.live(conversation)
        )
        if (removed === 1) return true
      }
    },

    async takeDue (now, until, limit) {
      const taken: string[] = []
      const each = Math.max(1, Math.ceil(limit / keys.partitions))
      const found = await Promise.all(Array.from({ length: keys.partitions }, (_, partition) => {
        return scripts.interlockTakeDue(keys.due(partition), now, until, each)
      }))
      for (const conversations of found) taken.push(...conversations)
      return taken
    },

    async postpone (conversation, { born, version }, due) {
      await scripts.interlockPostpone(keys.row(conversation), keys.due(keys.partitionOf(conversation)), born, version, due, conversation)
    },

    async findRun (tenant, runId) {
      const partition = partitionOfRun(runId)
      if (partition >= keys.partitions || partition < 0) return null
      const [member] = await redis.zrange(keys.runs(partition, tenant), `[${runId}:`, `[${runId};`, 'BYLEX', 'LIMIT', 0, 1)
      return member === undefined ? null : member.slice(runId.length + 1)
    },

    async listRuns (tenant, before, limit) {
      const from = before === null ? '+' : `(${before}`
      const found = await Promise.all(Array.from({ length: keys.partitions }, (_, partition) => {
        return redis.zrange(keys.runs(partition, tenant), from, '-', 'BYLEX', 'REV', 'LIMIT', 0, limit)
      }))
      return found.flat().sort().reverse().slice(0, limit).map((member) => {
        const [run_id, conversation_id] = member.split(':') as [string, string]
        return { run_id, conversation_id }
      })
    }
  }
}

function row (born: string, version: string, state: string): Row {
  return { born, version: Number(version), state: JSON.parse(state) as State }
}

function define (redis: Redis | Cluster, name: string, file: string, numberOfKeys: number): void {
  redis.defineCommand(name, { numberOfKeys, lua: readFileSync(join(import.meta.dirname, 'lua', `${file}.lua`), 'utf8') })
}
