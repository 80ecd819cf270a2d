import type { Clock } from '../../src/engine/ports.js'
import { describeFault, type Fault, type WireName } from './faults.js'
import type { Random } from './random.js'
import type { Timeline } from './timeline.js'

/** Milliseconds until a command without an answer is given up by the client library. */
const COMMAND_TIMEOUT_MS = 160

interface Wire {
  /** When what was sent last arrives, and when its answer does. */
  arrives: number
  answers: number
  cutUntil: number
  next: 'swallow' | 'no_reply' | 'resend' | null
}

/** A process: everything it does, it does in steps that the scheduler allows, and from its death on none. */
export interface Machine {
  number: number
  name: string
  alive: () => boolean
  clock: Clock
  /** Sends a command over a wire: `perform` happens when it arrives, the promise settles when the answer does. What goes wrong is decided here. */
  send: <T>(wire: WireName, what: string, perform: () => T | Promise<T>) => Promise<T>
  /** Lets something happen in this process: not while it is paused, and never once it is dead. */
  deliver: (time: number, happen: () => void) => { cancel: () => void }
  /** Has it been stopped or cut off, in any way, since `from`? Then others may have taken its work over. */
  disturbedSince: (from: number) => boolean
  pausedSince: (from: number) => boolean
}

export interface Host {
  timeline: Timeline
  latency: Random
  /** Nothing on the way ever takes long. */
  smooth: boolean
  /** Nothing goes wrong from here on. */
  calm: () => boolean
  trace: ((who: string, what: string) => void) | null
  /** What a fault does beyond the process it meets. */
  strike: (fault: Fault, machine: Machine) => void
}

export interface Controls {
  machine: Machine
  kill: (lost: boolean) => void
  resume: () => void
  heal: () => void
  cut: (ms: number) => void
  /** It is not paused, and nothing it has sent is held up. */
  quiet: () => boolean
}

export class StoreError extends Error {
  override name = 'StoreError'
}

/** The lives of one process, one after the other. */
export interface Fortune { number: number, skew: number, lives: number, steps: number, pending: Fault[] }

export function createMachine (host: Host, fortune: Fortune): Controls {
  const { timeline, latency, trace } = host
  const { number, pending } = fortune
  const name = `p${number + 1}${++fortune.lives > 1 ? `.${fortune.lives}` : ''}`
  /** Until when it was stopped or cut off, each time. */
  const disturbed: number[] = []
  let pausedUntil = 0
  let alive = true
  let lostFrom = Infinity
  let paused = false
  let held: (() => void)[] = []

  const wire = (): Wire => ({ arrives: 0, answers: 0, cutUntil: 0, next: null })
  const wires: Record<WireName, Wire> = { command: wire(), lock: wire(), queue: wire() }

  /** Mostly quick, sometimes slow: what is rare in life is not rare here. */
  const delay = () => {
    if (host.smooth) return 0.1 + latency.next()
    const kind = latency.next()
    return kind < 0.9 ? 0.1 + latency.next() : kind < 0.99 ? latency.next() * 10 : latency.next() * 60
  }
  const disturb = (ms: number) => { disturbed.push(timeline.now() + ms) }

  /** One more thing happens to this process; false: it does not, because something has gone wrong just before. */
  function goesOn (): boolean {
    fortune.steps++
    while (alive && pending[0] !== undefined && pending[0].step <= fortune.steps) {
      const fault = pending.shift() as Fault
      if (host.calm()) continue
      trace?.(name, `FAULT ${describeFault(fault)}`)
      if (fault.kind === 'pause') {
        paused = true
        pausedUntil = timeline.now() + fault.ms
        disturb(fault.ms)
        timeline.at(timeline.now() + fault.ms, () => {
          controls.resume()
          return false
        })
      } else if (fault.kind === 'cut') {
        cut(wires[fault.wire], fault.ms)
      } else if (fault.kind === 'stall') {
        disturb(fault.ms)
        wires[fault.wire].arrives = Math.max(wires[fault.wire].arrives, timeline.now() + fault.ms)
      } else if ('wire' in fault) {
        wires[fault.wire].next = fault.kind
      }
      host.strike(fault, machine)
    }
    return alive
  }

  function cut (wire: Wire, ms: number): void {
    disturb(ms)
    wire.cutUntil = Math.max(wire.cutUntil, timeline.now() + ms)
  }

  function deliver (time: number, happen: () => void): { cancel: () => void } {
    let cancelled = false
    const arrive = (): boolean => {
      if (!alive || cancelled) return false
      if (!paused && !goesOn()) return false
      if (paused) {
        held.push(arrive)
        return false
      }
      happen()
      return true
    }
    const entry = timeline.at(time, arrive)
    return {
      cancel: () => {
        cancelled = true
        entry.cancel()
      }
    }
  }

  function send<T> (name: WireName, what: string, perform: () => T | Promise<T>): Promise<T> {
    return new Promise<T>((resolve, reject) => {
      const wire = wires[name]
      const sent = timeline.now()
      let answered = false
      const answer = (time: number, settle: () => void) => {
        deliver(time, () => {
          if (answered) return
          answered = true
          settle()
        })
      }
      const fail = (time: number, why: string) => answer(time, () => {
        trace?.(machine.name, `${what}: ${why}`)
        reject(new StoreError(`${what}: ${why}`))
      })
      if (sent < wire.cutUntil) return fail(sent + latency.next(), 'the connection is cut')
      const fate = wire.next
      wire.next = null
      const arrives = wire.arrives = Math.max(sent + delay(), wire.arrives)
      if (arrives - sent > COMMAND_TIMEOUT_MS) fail(sent + COMMAND_TIMEOUT_MS, 'no answer in time')

      const reply = (result: T | Promise<T>) => {
        const time = wire.answers = Math.max(timeline.now() + delay(), wire.answers)
        if (time - sent > COMMAND_TIMEOUT_MS) fail(sent + COMMAND_TIMEOUT_MS, 'no answer in time')
        else answer(time, () => resolve(result))
      }
      timeline.at(arrives, () => {
        if (lostFrom <= timeline.now()) return false
        if (timeline.now() < wire.cutUntil) {
          fail(timeline.now() + latency.next(), 'the connection was cut')
          return false
        }
        if (alive && !paused && !goesOn() && lostFrom <= timeline.now()) return false
        if (fate === 'swallow') {
          fail(timeline.now() + delay(), 'it was lost')
          return false
        }
        trace?.(machine.name, what)
        const result = perform()
        if (fate === 'no_reply' || (fate === 'resend' && name !== 'command')) {
          fail(timeline.now() + delay(), 'its reply was lost')
        } else if (fate === 'resend') {
          const again = wire.arrives = Math.max(timeline.now() + 5 + latency.next() * 100, wire.arrives)
          timeline.at(again, () => {
            trace?.(machine.name, `${what} (sent again)`)
            reply(perform())
            return false
          })
        } else {
          reply(result)
        }
        return false
      })
    })
  }

  const machine: Machine = {
    number,
    name,
    alive: () => alive,
    clock: {
      now: () => Math.floor(timeline.now()) + fortune.skew,
      after: (ms, callback) => deliver(timeline.now() + ms, callback).cancel
    },
    send,
    deliver,
    disturbedSince: (from) => !alive || disturbed.some((to) => to >= from),
    pausedSince: (from) => pausedUntil >= from
  }
  const controls: Controls = {
    machine,
    kill (lost) {
      alive = false
      if (lost) lostFrom = timeline.now()
      held = []
    },
    resume () {
      if (!paused) return
      paused = false
      trace?.(name, 'goes on')
      // All at once, and yet one after the other.
      for (const happen of held.splice(0)) timeline.at(timeline.now(), happen as () => boolean)
    },
    heal () {
      for (const wire of Object.values(wires)) Object.assign(wire, { cutUntil: 0, next: null, arrives: Math.min(wire.arrives, timeline.now()) })
      pending.length = 0
      controls.resume()
    },
    quiet: () => !paused && Object.values(wires).every((wire) => wire.arrives <= timeline.now() + 100),
    cut (ms) {
      for (const wire of Object.values(wires)) cut(wire, ms)
    }
  }
  return controls
}
