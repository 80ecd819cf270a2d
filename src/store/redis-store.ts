import type { Cluster, Redis } from 'ioredis'
import type { State } from '../core/state.js'
import { readEntryId } from './entry-id.js'
import { partitionOfRun, type Keys } from './keys.js'
import { planCommit } from './plan.js'
import { define, source } from './scripts.js'
import type { Committed, Partial, Reads, Row, Store, StoredEvent } from './store.js'

type Reply<T> = Promise<T>

/** A row as scripts answer it; nothing of it where there is none. `seen`: see epoch.lua. */
type RowReply = [seen: string, epoch?: number, born?: string, version?: string, token?: string, state?: string]

interface Scripts {
  interlockLoad: (...args: (string | number)[]) => Reply<RowReply>
  interlockCommit: (...args: (string | number)[]) => Reply<[code: 0, ...RowReply] | [code: 1 | 2, seen: string, epoch: number, version: number]>
  interlockAppend: (...args: (string | number)[]) => Reply<number>
  interlockTakeDue: (...args: (string | number)[]) => Reply<string[]>
  interlockPostpone: (...args: (string | number)[]) => Reply<null>
  interlockRemove: (...args: (string | number)[]) => Reply<number>
}

/** In front of the scripts that ask for the epoch. */
const EPOCH = source('epoch')

/** A commit of more characters is large: on a slow line it would hold up what else is sent there, beyond the time that has. */
const LARGE_CHARS = 256 * 1024

/** Reads over a connection: fast ones for a request (role `command` of redis/connect.ts), or as large as they come (role `bulk`). */
export function createRedisReads (redis: Redis | Cluster, keys: Keys): Reads {
  return {
    async docs (conversation, names) {
      return names.length === 0 ? [] : await redis.hmget(keys.docs(conversation), ...names)
    },

    async ledger (conversation, from, limit) {
      return await redis.lrange(keys.messages(conversation), from, limit === undefined ? -1 : from + limit - 1)
    },

    async log (conversation, after, limit) {
      const entries = await redis.xrange(keys.events(conversation), `${after + 1}-0`, '+', 'COUNT', limit)
      return entries.map(([id, fields]): StoredEvent => ({
        ...readEntryId(id), type: fields[1] as string, run_id: fields[3] === '' ? null : fields[3] as string, json: fields[5] as string
      }))
    },

    async partial (conversation): Promise<Partial | null> {
      const stored = await redis.get(keys.partial(conversation))
      if (stored === null) return null
      const end = stored.indexOf('\n')
      return { ...JSON.parse(stored.slice(0, end)), text: stored.slice(end + 1) }
    }
  }
}

/**
 * Conversations in Redis. `redis` fails fast: a command that cannot be sent or takes too long rejects (see redis/connect.ts, role `command`). Large commits
 * go over `bulk`, which gives them the time they take.
 */
export function createRedisStore (redis: Redis | Cluster, bulk: Redis | Cluster, keys: Keys): Store {
  for (const connection of [redis, bulk]) define(connection, 'interlockCommit', 'commit', 8, EPOCH)
  define(redis, 'interlockLoad', 'load', 2, EPOCH)
  define(redis, 'interlockAppend', 'append', 2)
  define(redis, 'interlockTakeDue', 'take-due', 1)
  define(redis, 'interlockPostpone', 'postpone', 2)
  define(redis, 'interlockRemove', 'remove', 8)
  const scripts = redis as unknown as Scripts
  const large = bulk as unknown as Pick<Scripts, 'interlockCommit'>

  /** What this process has seen last of each partition's epoch: should all of its data be gone, Redis does not know it any more. */
  const seen = new Array<string>(keys.partitions).fill('0')

  function row (partition: number, [saw, epoch, born, version, token, state]: RowReply): Row | null {
    seen[partition] = saw
    if (born === undefined) return null
    return { born, version: Number(version), token: token as string, epoch: epoch as number, state: JSON.parse(state as string) as State }
  }

  return {
    ...createRedisReads(redis, keys),

    async load (conversation) {
      const partition = keys.partitionOf(conversation)
      return row(partition, await scripts.interlockLoad(keys.row(conversation), keys.epoch(partition), seen[partition] as string))
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
      const chars = tail.reduce((sum: number, one) => sum + String(one).length, plan.state.length)
      const reply = await (chars > LARGE_CHARS ? large : scripts).interlockCommit(
        keys.row(conversation), keys.messages(conversation), keys.events(conversation), keys.docs(conversation), keys.partial(conversation),
        keys.due(partition), keys.runs(partition, commit.state.tenant), keys.epoch(partition),
        base?.born ?? '', base?.version ?? 0, base?.token ?? commit.removal ?? '', token, plan.state, plan.fence, due ?? '', conversation, keys.live(conversation),
        `${plan.puts.length} ${plan.messages.length} ${plan.drops.length} ${created.length} ${plan.events.length}`,
        commit.rewind ?? '', seen[partition] as string,
        ...tail
      )
      if (reply[0] === 0) {
        const [, ...found] = reply
        const now = row(partition, found)
        // Without a row the removal stands in the place of the epoch, 0 for none.
        return { status: 'conflict', row: now, removal: now === null ? found[1] || null : null }
      }
      const [, saw, epoch, version] = reply
      seen[partition] = saw
      return { status: 'committed', born: base?.born ?? token, version, epoch }
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

    async remove (conversation) {
      const partition = keys.partitionOf(conversation)
      for (let existed = false; ; existed = true) {
        const row = await this.load(conversation)
        // Gone although it was there a moment ago: it may have been this very call, sent again because its reply was lost.
        if (row === null) return existed
        const removed = await scripts.interlockRemove(
          keys.row(conversation), keys.messages(conversation), keys.events(conversation), keys.docs(conversation), keys.partial(conversation),
          keys.due(partition), keys.runs(partition, row.state.tenant), keys.epoch(partition), row.born, conversation, keys.live(conversation)
        )
        if (removed === 1) return true
      }
    },

    async takeDue (now, until, limit) {
      const each = Math.max(1, Math.ceil(limit / keys.partitions))
      const asked = await Promise.allSettled(Array.from({ length: keys.partitions }, (_, partition) => {
        return scripts.interlockTakeDue(keys.due(partition), now, until, each)
      }))
      const answers = asked.flatMap((one) => one.status === 'fulfilled' ? [one.value] : [])
      // Where one node of a cluster is away, what the others gave has been taken all the same.
      if (answers.length === 0) throw (asked[0] as PromiseRejectedResult).reason as Error
      return answers.flat()
    },

    async postpone (conversation, { born, token }, due) {
      await scripts.interlockPostpone(keys.row(conversation), keys.due(keys.partitionOf(conversation)), born, token, due, conversation)
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
