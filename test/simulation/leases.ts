import type { Leases } from '../../src/engine/ports.js'
import type { Machine } from './machine.js'
import type { Timeline } from './timeline.js'

/** What stands at the lock server: who holds a conversation, and until when. */
export type LockTable = Map<string, { token: string, until: number }>

/** What the lock server granted to whom, and until when it stood. */
export interface Grant { conversation: string, machine: Machine, from: number, until: number }

/** Leases as those of src/engine/lease.ts, on virtual time; more easily lost: at the first renewal that gets no answer. */
export function createLeases (machine: Machine, timeline: Timeline, locks: LockTable, leaseMs: number, grants: Grant[]): Leases {
  let tokens = 0
  const held = (conversation: string) => {
    const lock = locks.get(conversation)
    return lock !== undefined && lock.until > timeline.now() ? lock : null
  }
  const { clock } = machine
  const validFor = leaseMs - 2 - leaseMs / 100

  return {
    async acquire (conversation) {
      const token = `${machine.name} ${++tokens}`
      let expires = clock.now() + validFor
      const grant: Grant = { conversation, machine, from: Infinity, until: 0 }
      grants.push(grant)
      const taken = await machine.send('lock', `lock ${conversation}`, () => {
        if (held(conversation) !== null) return false
        locks.set(conversation, { token, until: timeline.now() + leaseMs })
        Object.assign(grant, { from: timeline.now(), until: timeline.now() + leaseMs })
        return true
      }).catch(() => false)
      if (!taken || expires <= clock.now()) return null

      const lost = new AbortController()
      let cancel = clock.after(leaseMs / 3, renew)
      function renew (): void {
        cancel = clock.after(leaseMs / 3, renew)
        const next = clock.now() + validFor
        const extending = expires < clock.now() ? Promise.resolve(false) : machine.send('lock', `renew the lock of ${conversation}`, () => {
          const lock = held(conversation)
          if (lock?.token !== token) return false
          grant.until = lock.until = timeline.now() + leaseMs
          return true
        })
        extending.catch(() => false).then((renewed) => {
          if (renewed) {
            expires = next
            return
          }
          cancel()
          lost.abort(new Error('the lease was lost'))
        })
      }
      return {
        signal: lost.signal,
        release () {
          cancel()
          if (lost.signal.aborted) return
          machine.send('lock', `unlock ${conversation}`, () => {
            if (held(conversation)?.token === token) locks.delete(conversation)
          }).catch(() => { /* it expires */ })
        }
      }
    }
  }
}
