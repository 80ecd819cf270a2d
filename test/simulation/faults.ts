import type { Random } from './random.js'

/** What a process uses of the outside. What is sent on one wire arrives in the order in which it was sent. */
export type WireName = 'command' | 'lock' | 'queue'

/**
 * One thing that goes wrong. `step`: the point in the life of process number `machine` where it does, counted in things that happen to it
 * (a command arrives at the store, a reply arrives, a timer fires, text comes from the provider).
 */
export type Fault = { machine: number, step: number } & (
  /** SIGKILL. `lost`: what is under way to the store does not arrive. It is started again after `ms`. */
  | { kind: 'crash', lost: boolean, ms: number }
  /** SIGSTOP, and SIGCONT after `ms`. */
  | { kind: 'pause', ms: number }
  /** SIGTERM with a grace time; another is started in its place after `ms`. */
  | { kind: 'stop', grace: number, ms: number }
  /** The wire is cut: nothing arrives, and the process is told so at once. */
  | { kind: 'cut', wire: WireName, ms: number }
  /** Nothing arrives for a while, and then all of it does, also what the process has given up. */
  | { kind: 'stall', wire: WireName, ms: number }
  /** The next command is lost, its reply is lost, or it arrives twice because its reply was lost and the client library sends it again. */
  | { kind: 'swallow' | 'no_reply' | 'resend', wire: WireName }
  /** The store is away, for everybody. */
  | { kind: 'outage', ms: number }
  /** Notes between processes are lost. */
  | { kind: 'deafness', ms: number }
  /** The queue forgets what waits in it, and goes on. */
  | { kind: 'queue_lost' }
  /** Jobs come late, or twice. */
  | { kind: 'queue_slow' | 'queue_double', ms: number }
)

export type FaultKind = Fault['kind']

/** Faults after which no claim may change hands: they cost time, and not much. */
export const HARMLESS: ReadonlySet<FaultKind> = new Set(['swallow', 'no_reply', 'resend', 'deafness', 'queue_lost', 'queue_slow', 'queue_double'])

const KINDS: FaultKind[] = [
  'crash', 'pause', 'stop', 'cut', 'stall', 'swallow', 'no_reply', 'resend', 'outage', 'deafness', 'queue_lost', 'queue_slow', 'queue_double'
]

/** A seed has few kinds of faults and several of each: what only two of a kind can break shows sooner (swarm testing). */
export function makeFaults (random: Random, machines: number, leaseMs: number): Fault[] {
  if (random.chance(0.15)) return []
  const kinds = KINDS.filter(() => random.chance(0.3))
  if (kinds.length === 0) kinds.push(random.pick(KINDS))
  return Array.from({ length: random.int(1, 8) }, (): Fault => {
    const kind = random.pick(kinds)
    const at = { machine: random.int(0, machines - 1), step: Math.ceil(random.next() ** 2 * 240) }
    const ms = random.chance(0.3) ? leaseMs * (1 + 2 * random.next()) : leaseMs * random.next() * 0.9
    const wire = random.pick<WireName>(['command', 'command', 'command', 'lock', 'queue'])
    switch (kind) {
      case 'crash': return { ...at, kind, lost: random.chance(0.5), ms }
      case 'stop': return { ...at, kind, grace: random.chance(0.5) ? 0 : ms / 2, ms }
      case 'cut': case 'stall': return { ...at, kind, wire, ms }
      case 'swallow': case 'no_reply': case 'resend': return { ...at, kind, wire }
      case 'queue_lost': return { ...at, kind }
      default: return { ...at, kind, ms }
    }
  })
}

export function describeFault ({ machine, step, ...fault }: Fault): string {
  const details = Object.entries(fault).map(([name, value]) => name === 'kind' ? String(value) : `${name} ${typeof value === 'number' ? Math.round(value) : String(value)}`)
  return `${details.join(', ')}: at step ${step} of process ${machine + 1}`
}
