/** Something that was done to the system. Times are milliseconds since 1970, with fractions. */
export interface Fault {
  kind: string
  /** At which command, where it was one. */
  at?: string
  /** The processes it was done to, by `Member.id`; empty: all of them, through Redis or through the machine. */
  targets: string[]
  from: number
  to: number
  /** The conversations a process it was done to had claims on, where that is known. */
  hit: string[]
}

export interface Journal {
  faults: Fault[]
  /** A fault begins. Ended by the function this returns. */
  begin: (kind: string, targets?: string[], hit?: string[]) => Fault & { end: () => void }
  /**
   * Whether something was done between two moments that may cost a lease, a claim or an answer: to one of these processes (`own`), or only to all of them,
   * through Redis or the machine (`all`).
   */
  explains: (processes: string[] | 'any', from: number, to: number) => 'own' | 'all' | null
  /** For how long the machine kept this process from running, or Redis from answering, between two moments. Milliseconds. */
  starved: (from: number, to: number) => number
}

/** What must cost nobody anything but time: also one command of which the answer was lost with its connection, and so was sent twice. */
const HARMLESS = new Set(['SCRIPT FLUSH', 'queue deleted', 'foreign jobs', 'lost command', 'refused command'])

export const now = (): number => performance.timeOrigin + performance.now()

/**
 * How long the machine may keep this process from running, or Redis from answering, before that counts as a fault done to everything. Milliseconds.
 * A renewal of a lock that takes 700 is a lost lock, and a process that does nothing sees the least of what a busy one must wait.
 */
const STARVED_MS = 200

/** What the nemesis has done, and what the machine has. `ping` asks Redis, straight. */
export function openJournal (ping: () => Promise<unknown>): Journal & { close: () => void } {
  const faults: Fault[] = []
  const starved = (from: number) => { if (now() - from > STARVED_MS) faults.push({ kind: 'starved', targets: [], from, to: now(), hit: [] }) }
  let last = now()
  let asked = false
  const watch = setInterval(() => {
    starved(last)
    last = now()
    if (asked) return
    asked = true
    const from = last
    void ping().catch(() => {}).then(() => {
      asked = false
      starved(from)
    })
  }, 50)
  return {
    faults,
    begin (kind, targets = [], hit = []) {
      const fault = { kind, targets, from: now(), to: Infinity, hit }
      faults.push(fault)
      return Object.assign(fault, { end: () => { fault.to = Math.min(fault.to, now()) } })
    },
    starved: (from, to) => faults.reduce((sum, fault) => sum + (fault.kind === 'starved' ? Math.max(0, Math.min(fault.to, to) - Math.max(fault.from, from)) : 0), 0),
    explains (processes, from, to) {
      const costly = faults.filter((fault) => !HARMLESS.has(fault.kind) && fault.from <= to && fault.to >= from)
      if (costly.some(({ targets }) => targets.some((one) => processes === 'any' || processes.includes(one)))) return 'own'
      return costly.some(({ targets }) => targets.length === 0) ? 'all' : null
    },
    close: () => clearInterval(watch)
  }
}
