import type { Cluster, Redis } from 'ioredis'

/** A connection of one's own, to be closed when it is of no use any more. Closing twice is fine. */
export interface Line { connection: Redis | Cluster, close: () => Promise<void> }
