import type { State } from '../core/state.js'
import { partitionOfRun, type Keys } from './keys.js'
import { planCommit } from './plan.js'
import type { Delta, Feed, Partial, Presence, Row, Signal, Store, StoredEvent, WorkerNote } from './store.js'

interface Conversation {
  born: string
  version: number
  state: string
  fence: number
  tokens: string[]
  tenant: string
  messages: string[]
  events: StoredEvent[]
  docs: Map<string, string>
  partial: Partial | null
  /** The least one that its events are of. */
  epoch: number
}

/** Which process has made a token. */
const writerOf = (token: string): string => token.split('.', 1)[0] as string

/**
 * The store in memory, with the same promises: what the engine is stepped on in tests and in the simulation. State goes through JSON
 * as it does in Redis, so nothing is shared by accident. `history.epoch` may be raised, as the restart of a server does.
 */
export function createMemoryStore (keys: Keys): { store: Store, feed: Feed, presence: Presence, clock: { now: () => number }, history: { epoch: number } } {
  const conversations = new Map<string, Conversation>()
  const due = new Map<string, number>()
  const index = new Map<string, Set<string>>()
  const readers = new Map<string, Set<(signal: Signal) => void>>()
  const workers = new Map<string, Set<(note: WorkerNote) => void>>()
  const beats = new Map<string, number>()
  const clock = { now: () => Date.now() }
  const history = { epoch: 1 }
  /** Of deleted conversations: an epoch that none of their events has reached, and the tokens of their commits. */
  const gone = new Map<string, { epoch: number, tokens: string[] }>()
  const publish = (conversation: string, signal: Signal) => { for (const listener of readers.get(conversation) ?? []) listener(signal) }
  const epochOf = (kept: { epoch: number }) => Math.max(history.epoch, kept.epoch)
  const row = (kept: Conversation): Row => ({
    born: kept.born, version: kept.version, token: kept.tokens[0] as string, epoch: epochOf(kept), state: JSON.parse(kept.state) as State
  })

  const store: Store = {
    async load (conversation) {
      const found = conversations.get(conversation)
      return found === undefined ? null : row(found)
    },

    async commit (commit) {
      const { conversation, base, token } = commit
      const found = conversations.get(conversation)
      const former = found === undefined ? gone.get(conversation) : undefined
      const known = found ?? former
      if (known?.tokens.includes(token)) return { status: 'committed', born: base?.born ?? token, version: (base?.version ?? 0) + 1, epoch: epochOf(known) }
      const removal = former?.epoch ?? null
      if (found?.born !== base?.born || found?.tokens[0] !== base?.token || removal !== commit.removal) {
        return { status: 'conflict', row: found === undefined ? null : row(found), removal }
      }
      const plan = planCommit(commit)
      const kept: Conversation = found ?? {
        born: token, version: 0, state: '', fence: 0, tokens: former?.tokens ?? [], tenant: commit.state.tenant, messages: [], events: [], docs: new Map(), partial: null,
        epoch: former?.epoch ?? 1
      }
      for (const [name, value] of plan.puts) kept.docs.set(name, value)
      if (commit.rewind !== null) kept.messages.length = commit.rewind
      for (const pieces of plan.messages) {
        kept.messages.push(pieces.map((piece) => typeof piece === 'string' ? piece : kept.docs.get(piece.doc) ?? 'null').join(''))
      }
      for (const name of plan.drops) kept.docs.delete(name)
      for (const runId of commit.created) {
        const name = `${partitionOfRun(runId)}:${kept.tenant}`
        if (!index.has(name)) index.set(name, new Set())
        index.get(name)?.add(`${runId}:${conversation}`)
      }
      const events = plan.events.map((event) => ({ ...event, epoch: epochOf(kept) }))
      kept.events.push(...events)
      kept.version++
      kept.state = plan.state
      if (kept.fence !== plan.fence) kept.partial = null
      kept.fence = plan.fence
      kept.tokens = [token, ...kept.tokens.filter((other) => writerOf(other) !== writerOf(token))].slice(0, 32)
      conversations.set(conversation, kept)
      if (commit.due === null) due.delete(conversation)
      else due.set(conversation, commit.due)
      if (events.length > 0) publish(conversation, { kind: 'events', events })
      return { status: 'committed', born: kept.born, version: kept.version, epoch: epochOf(kept) }
    },

    async docs (conversation, names) {
      return names.map((name) => conversations.get(conversation)?.docs.get(name) ?? null)
    },

    async ledger (conversation, from, limit) {
      return conversations.get(conversation)?.messages.slice(from, limit === undefined ? undefined : from + limit) ?? []
    },

    async log (conversation, after, limit) {
      return conversations.get(conversation)?.events.filter((event) => event.seq > after).slice(0, limit) ?? []
    },

    async append (conversation, fence, delta: Delta) {
      const found = conversations.get(conversation)
      if (found === undefined || found.fence !== fence) return false
      const { offset, byte: _, text, ...head } = delta
      const before = offset === 0 ? '' : found.partial?.text ?? ''
      if (before.length < offset) return true
      found.partial = { ...head, text: before.slice(0, offset) + text + before.slice(offset + text.length) }
      publish(conversation, {
        kind: 'delta', run_id: delta.run_id, turn: delta.turn, json: JSON.stringify({ type: 'turn.delta', conversation_id: conversation, ...head, offset, text })
      })
      return true
    },

    async partial (conversation) {
      return conversations.get(conversation)?.partial ?? null
    },

    async remove (conversation) {
      for (const members of index.values()) {
        for (const member of members) if (member.endsWith(`:${conversation}`)) members.delete(member)
      }
      due.delete(conversation)
      const found = conversations.get(conversation)
      if (found !== undefined) gone.set(conversation, { epoch: epochOf(found) + 1, tokens: found.tokens })
      const existed = conversations.delete(conversation)
      if (existed) publish(conversation, { kind: 'removed' })
      return existed
    },

    async takeDue (now, until, limit) {
      const taken = [...due].filter(([, time]) => time <= now).sort((a, b) => a[1] - b[1]).slice(0, limit).map(([conversation]) => conversation)
      for (const conversation of taken) due.set(conversation, until)
      return taken
    },

    async postpone (conversation, base, time) {
      const found = conversations.get(conversation)
      if (found?.born === base.born && found.tokens[0] === base.token && due.has(conversation)) due.set(conversation, time)
    },

    async findRun (tenant, runId) {
      for (const member of index.get(`${partitionOfRun(runId)}:${tenant}`) ?? []) {
        if (member.startsWith(`${runId}:`)) return member.slice(runId.length + 1)
      }
      return null
    },

    async listRuns (tenant, before, limit) {
      const members = Array.from({ length: keys.partitions }, (_, partition) => [...index.get(`${partition}:${tenant}`) ?? []]).flat()
      return members.sort().reverse().filter((member) => before === null || member < before).slice(0, limit).map((member) => {
        const [run_id, conversation_id] = member.split(':') as [string, string]
        return { run_id, conversation_id }
      })
    }
  }

  const add = <T>(map: Map<string, Set<T>>, name: string, listener: T) => {
    if (!map.has(name)) map.set(name, new Set())
    map.get(name)?.add(listener)
    return () => { map.get(name)?.delete(listener) }
  }
  const feed: Feed = {
    subscribe: async (conversation, listener) => add(readers, conversation, listener),
    announce: async (conversation, runId, worker) => publish(conversation, { kind: 'stopped', worker, run_id: runId }),
    tell: async (worker, note) => { for (const listener of workers.get(worker) ?? []) listener(note) },
    listen: async (worker, listener) => add(workers, worker, listener)
  }
  const presence: Presence = {
    beat: async (worker, ttlMs) => { beats.set(worker, clock.now() + ttlMs) },
    leave: async (worker) => { beats.delete(worker) },
    left: async (names) => names.map((name) => Math.max(0, (beats.get(name) ?? 0) - clock.now()))
  }
  return { store, feed, presence, clock, history }
}
