import type { Cluster, Redis } from 'ioredis'
import type { Keys } from './keys.js'
import { readEntryId } from './entry-id.js'
import type { Feed, Signal, StoredEvent, WorkerNote } from './store.js'

/**
 * Wake-ups over Redis pub/sub, with one subscriber connection per process however many readers it has. What is published while the
 * connection is gone is lost; readers are told of the gap and read the log.
 */
export function createFeed (subscriber: Redis | Cluster, publisher: Redis | Cluster, keys: Keys): Feed {
  const listeners = new Map<string, Set<(message: string) => void>>()

  subscriber.on('message', (channel: string, message: string) => {
    for (const listener of listeners.get(channel) ?? []) listener(message)
  })
  subscriber.on('ready', () => {
    for (const channel of listeners.values()) for (const listener of channel) listener('g')
  })

  async function on (channel: string, listener: (message: string) => void): Promise<() => void> {
    const present = listeners.get(channel) ?? new Set()
    listeners.set(channel, present.add(listener))
    try {
      // Also when others listen already: their subscription may not have arrived yet.
      await subscriber.subscribe(channel)
    } catch (error) {
      off(channel, listener)
      throw error
    }
    return () => off(channel, listener)
  }

  function off (channel: string, listener: (message: string) => void): void {
    const present = listeners.get(channel)
    present?.delete(listener)
    if (present?.size !== 0) return
    listeners.delete(channel)
    subscriber.unsubscribe(channel).catch(() => { /* the connection is gone, and the subscription with it */ })
  }

  return {
    subscribe: async (conversation, listener) => {
      return await on(keys.live(conversation), (message) => listener(parse(message)))
    },
    announce: async (conversation, runId, worker) => {
      await publisher.publish(keys.live(conversation), `s${worker}\t${runId}`)
    },
    tell: async (worker, note) => {
      await publisher.publish(keys.control(worker), JSON.stringify(note))
    },
    listen: async (worker, listener) => {
      return await on(keys.control(worker), (message) => listener(message === 'g' ? { type: 'missed' } : JSON.parse(message) as WorkerNote))
    }
  }
}

let lastMessage = ''
let lastSignal: Signal = { kind: 'gap' }

/** Readers of one conversation get the same message one after the other: it is parsed once. */
function parse (message: string): Signal {
  if (message === lastMessage) return lastSignal
  lastMessage = message
  lastSignal = decode(message)
  return lastSignal
}

function decode (message: string): Signal {
  const body = message.slice(1)
  switch (message[0]) {
    case 'e': return { kind: 'events', events: body.split('\n').map(event) }
    case 'd': {
      const [run_id, turn, json] = split(body, 3) as [string, string, string]
      return { kind: 'delta', run_id, turn: Number(turn), json }
    }
    case 's': {
      const [worker, run_id] = split(body, 2) as [string, string]
      return { kind: 'stopped', worker, run_id }
    }
    case 'x': return { kind: 'removed' }
    default: return { kind: 'gap' }
  }
}

function event (line: string): StoredEvent {
  const [id, type, runId, json] = split(line, 4) as [string, string, string, string]
  return { ...readEntryId(id), type, run_id: runId === '' ? null : runId, json }
}

/** Splits at tabs into exactly `count` fields; the last one keeps its own. */
function split (text: string, count: number): string[] {
  const fields: string[] = []
  let from = 0
  for (let i = 1; i < count; i++) {
    const to = text.indexOf('\t', from)
    fields.push(text.slice(from, to))
    from = to + 1
  }
  fields.push(text.slice(from))
  return fields
}
