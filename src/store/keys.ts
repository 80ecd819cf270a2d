/**
 * Every Redis key of Interlock. All keys of a conversation carry the hash tag of its partition, and so does the partition's due set:
 * a commit touches one slot, and a Redis Cluster works unchanged. Ids are checked by pattern before they get here and hold no `:`, so
 * two different things never share a key (FAULTS S12).
 */
export interface Keys {
  partitions: number
  /** The partition of a conversation. */
  partitionOf: (conversation: string) => number
  row: (conversation: string) => string
  messages: (conversation: string) => string
  events: (conversation: string) => string
  docs: (conversation: string) => string
  partial: (conversation: string) => string
  /** Channel for the readers of a conversation. */
  live: (conversation: string) => string
  due: (partition: number) => string
  /** Whose data a partition holds, and in which epoch it is. */
  epoch: (partition: number) => string
  /** A tenant's runs of one partition, by id. */
  runs: (partition: number, tenant: string) => string
  lock: (conversation: string) => string
  /** The sign of life of a worker. All are in one slot: whoever cannot see those of others could not show its own. */
  worker: (worker: string) => string
  /** Channel for notes to a worker. */
  control: (worker: string) => string
  idempotency: (tenant: string, keyHash: string) => string
  /** The last places of a rate limit; its name may hold any characters. */
  limit: (name: string) => string
  /** When the last that had a place in it began. */
  begun: (name: string) => string
  /** What was fixed at the first start. */
  meta: string
  queuePrefix: string
}

const ALPHABET = '0123456789ABCDEFGHJKMNPQRSTVWXYZ'

/** `prefix`: first part of every key. `partitions`: hash tags that conversations are spread over; the same in all processes, for ever. */
export function createKeys (prefix: string, partitions: number): Keys {
  const partitionOf = (conversation: string) => fnv1a(conversation) % partitions
  const tag = (partition: number) => `${prefix}:{p${partition}}`
  const of = (conversation: string) => `${tag(partitionOf(conversation))}:conv:${conversation}`
  return {
    partitions,
    partitionOf,
    row: of,
    messages: (conversation) => `${of(conversation)}:messages`,
    events: (conversation) => `${of(conversation)}:events`,
    docs: (conversation) => `${of(conversation)}:docs`,
    partial: (conversation) => `${of(conversation)}:partial`,
    live: (conversation) => `${of(conversation)}:live`,
    lock: (conversation) => `${of(conversation)}:lock`,
    due: (partition) => `${tag(partition)}:due`,
    epoch: (partition) => `${tag(partition)}:epoch`,
    runs: (partition, tenant) => `${tag(partition)}:runs:${tenant}`,
    worker: (worker) => `${prefix}:{workers}:worker:${worker}`,
    control: (worker) => `${prefix}:worker:${worker}:control`,
    idempotency: (tenant, keyHash) => `${prefix}:idempotency:${tenant}:${keyHash}`,
    limit: (name) => `${prefix}:{limit:${name}}`,
    begun: (name) => `${prefix}:{limit:${name}}:begun`,
    meta: `${prefix}:meta`,
    queuePrefix: `{${prefix}-queue}`
  }
}

/** The last two characters of a run id say its partition, so that a run is found without asking everywhere. */
export function partitionSuffix (partition: number): string {
  return `${ALPHABET[partition >> 5]}${ALPHABET[partition & 31]}`
}

/** The partition a run id names. */
export function partitionOfRun (runId: string): number {
  return ALPHABET.indexOf(runId.at(-2) ?? '') * 32 + ALPHABET.indexOf(runId.at(-1) ?? '')
}

function fnv1a (text: string): number {
  let hash = 0x811c9dc5
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193)
  return hash >>> 0
}
