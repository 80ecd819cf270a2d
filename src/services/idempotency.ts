import { createHash } from 'node:crypto'
import type { Cluster, Redis } from 'ioredis'
import type { Clock } from '../engine/ports.js'
import type { Keys } from '../store/keys.js'
import { createRemoveIf } from '../store/remove-if.js'
import { answering } from './context.js'
import type { Services } from './services.js'

/** How long a key is remembered. Milliseconds. */
const KEPT_MS = 24 * 3_600_000

/**
 * When a first request that has given no answer counts as dead: nearly all are answered within a second. Whoever repeats it then takes its place, under
 * its operation, so that what it may have created is found and not created again (FAULTS F50). That also holds beside one that still works (a cancel that
 * waits, a run whose MCP servers are asked for their tools): both do the same, once.
 */
const TAKEOVER_MS = 3_000

interface Entry { fingerprint: string, operation: string, at: number, answer: { code: number, headers: Record<string, string>, body: string } | null }

/** What was asked under an `Idempotency-Key`, and answered, beside the conversations: by tenant and by the key's SHA-256, for 24 hours (M5). */
export function createIdempotencyService (redis: Redis | Cluster, keys: Keys, clock: Clock): Services['idempotency'] {
  const removeIf = createRemoveIf(redis)
  const keyOf = (tenant: string, key: string) => keys.idempotency(tenant, createHash('sha256').update(key).digest('hex'))
  const read = async (key: string): Promise<Entry | null> => {
    const stored = await redis.get(key)
    return stored === null ? null : JSON.parse(stored) as Entry
  }
  return {
    begin: (tenant, key, fingerprint, operation) => answering(async () => {
      const name = keyOf(tenant, key)
      const entry: Entry = { fingerprint, operation, at: clock.now(), answer: null }
      // A reply that was lost is asked for again: finding our own operation there means that it was us.
      const reservation = JSON.stringify(entry)
      let found: Entry | null = null
      // Given up between our two looks, the key is free: nobody goes on without holding it.
      while (found === null) found = await redis.set(name, reservation, 'PX', KEPT_MS, 'NX') === 'OK' ? entry : await read(name)
      if (found.operation === operation) return { status: 'fresh', operation, reservation }
      if (found.fingerprint !== fingerprint) return { status: 'mismatch' }
      if (found.answer !== null) return { status: 'replay', ...found.answer }
      if (clock.now() - found.at < TAKEOVER_MS) return { status: 'busy' }
      const taking = JSON.stringify({ ...found, at: clock.now() })
      await redis.set(name, taking, 'PX', KEPT_MS)
      return { status: 'fresh', operation: found.operation, reservation: taking }
    }),

    // Also where the key was given up meanwhile, by one whose place this took.
    finish: (tenant, key, reservation, answer) => answering(async () => {
      await redis.set(keyOf(tenant, key), JSON.stringify({ ...JSON.parse(reservation) as Entry, answer }), 'PX', KEPT_MS)
    }),

    abandon: (tenant, key, reservation) => answering(async () => {
      await removeIf(keyOf(tenant, key), reservation)
    })
  }
}
