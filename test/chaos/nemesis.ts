import { setTimeout as sleep } from 'node:timers/promises'
import { Queue } from 'bullmq'
import type { Redis } from 'ioredis'
import type { Random } from '../simulation/random.js'
import type { PrivateRedis } from '../support/redis.js'
import type { RedisAct, RedisMatch } from '../support/redis-proxy.js'
import type { Fleet, Member, Place } from './fleet.js'
import type { Journal } from './journal.js'

export interface NemesisOptions {
  random: Random
  fleet: Fleet
  journal: Journal
  server: PrivateRedis
  /** Straight to Redis. Fails fast. */
  direct: Redis
  prefix: string
  lockTtlMs: number
  /** The conversations whose turn or calls these workers have claimed. */
  claimed: (workers: string[] | 'any') => Promise<string[]>
}

export interface Nemesis {
  /** Does one thing to the system. Resolves when it has been done and is over. */
  strike: () => Promise<void>
  /** Takes back whatever may still hold: what was frozen runs, what was cut off is connected. */
  heal: () => Promise<void>
  /** How often each kind struck. */
  struck: Record<string, number>
  /** Processes ended by SIGKILL. */
  kills: () => number
}

/** The instants at which a process can be hit: one command each. */
const POINTS: Record<string, RedisMatch> = {
  'the commit': { script: 'commit', key: ':conv:' },
  'the commit of an answer': { script: 'commit', text: 'turn.completed' },
  'the commit of a result': { script: 'commit', text: 'tool.completed' },
  'the commit of the last result': { script: 'commit', text: 'batch.completed' },
  'the commit of a run': { script: 'commit', text: 'run.created' },
  'the commit of a message': { script: 'commit', text: 'message.accepted' },
  'the commit of an end': { script: 'commit', text: 'run.completed' },
  'a delta': { script: 'append' },
  'the lock': { script: 'lock' },
  'the unlock': { script: 'unlock' },
  'the renewal of the lock': { script: 'renew' },
  'the sign of life': { command: 'SET', key: ':worker:' },
  'the queueing of a hint': { script: 'addStandardJob' },
  'the taking of a hint': { script: 'moveToActive' },
  'the end of a hint': { script: 'moveToFinished' },
  'the sweep': { script: 'take-due' },
  'the postponing': { script: 'postpone' },
  'a subscription': { command: 'SUBSCRIBE' },
  'an idempotency key': { command: 'SET', key: ':idempotency:' },
  'a deletion': { script: 'remove' }
}

/** Of whom nobody waits longer than this for a command that may never come. Milliseconds. */
const AMBUSH_MS = 2500

export function createNemesis ({ random, fleet, journal, server, direct, prefix, lockTtlMs, claimed }: NemesisOptions): Nemesis {
  const struck: Record<string, number> = {}
  let killed = 0
  const frozen = new Set<Member>()
  /** One fault of Redis at a time: what is down cannot be frozen. */
  let atRedis = false
  let mending: Promise<void> = Promise.resolve()

  /** A process that works, of a kind. None: too many are down already. */
  function victim (kind?: Place['kind']): Member | null {
    const up = fleet.places.flatMap(({ member, kind: of }) => member?.url != null && !member.frozen && !member.doomed && (kind === undefined || of === kind) ? [member] : [])
    return up.length === 0 ? null : random.pick(up)
  }
  const hits = ({ worker }: Member) => worker === null ? Promise.resolve([]) : claimed([worker]).catch(() => [])

  /** All processes of a place: one that is leaving shares its connections' way with the next. */
  const those = (place: Place) => fleet.members.flatMap((one) => one.place === place && !one.gone ? [one.id] : [])

  /** Something is done to one process for a while. */
  async function toOne (kind: string, of: Place['kind'] | undefined, ms: number, begin: (member: Member) => void, end: (member: Member) => void): Promise<void> {
    let member = victim(of)
    let hit = member === null ? [] : await hits(member)
    // Whoever is at work is hit the hardest.
    for (let tries = 0; tries < 2 && hit.length === 0 && of === 'worker'; tries++) {
      member = victim(of)
      hit = member === null ? [] : await hits(member)
    }
    if (member === null || member.doomed || member.frozen) return
    const fault = journal.begin(`${kind} ${member.place.kind}`, those(member.place), hit)
    count(fault.kind)
    const one = member
    begin(one)
    await sleep(ms)
    end(one)
    fault.end()
  }
  function count (kind: string): void {
    struck[kind] = (struck[kind] ?? 0) + 1
  }

  async function kill (of: Place['kind']): Promise<void> {
    const restart = random.int(0, 2000)
    await toOne('kill', of, 0, (member) => {
      killed++
      fleet.kill(member, restart)
    }, () => {})
  }

  async function freeze (of: Place['kind'], ms: number): Promise<void> {
    await toOne('freeze', of, ms, (member) => {
      frozen.add(member)
      fleet.freeze(member)
    }, (member) => {
      frozen.delete(member)
      fleet.thaw(member)
    })
  }

  async function replace (of: Place['kind']): Promise<void> {
    const member = victim(of)
    if (member === null) return
    const fault = journal.begin(`SIGTERM ${of}`, [member.id], await hits(member))
    count(fault.kind)
    await fleet.replace(member)
    fault.end()
  }

  /** Hits a process at one command of it. */
  async function ambush (act: RedisAct, kill: boolean): Promise<void> {
    const member = victim(random.chance(0.75) ? 'worker' : 'api')
    if (member === null) return
    const [point, match] = random.pick(Object.entries(POINTS))
    const ms = random.int(200, 1500)
    const rule = member.place.proxy.on({ match, nth: random.pick([1, 1, 2]), act, kill, ms })
    const fired = await Promise.race([rule.fired.then(() => true), sleep(AMBUSH_MS, false)])
    rule.cancel()
    if (!fired) return
    // The conversation of the command is the one that is hit.
    const command = await rule.fired
    const hit = /conv_[0-9A-Z]+/.exec(command.keys.join())?.[0]
    const kind = kill ? `kill ${member.place.kind} at a command, ${act}` : `${act} command`
    if (kill) killed++
    const fault = journal.begin(kind, those(member.place), hit === undefined ? [] : [hit])
    fault.at = point
    count(kind)
    if (!kill && act.includes('late')) await sleep(ms)
    fault.end()
  }

  async function toRedis (kind: string, act: () => Promise<void>): Promise<void> {
    if (atRedis) return
    atRedis = true
    const fault = journal.begin(kind, [], await claimed('any').catch(() => []))
    count(kind)
    await act().catch(() => { /* a fault of its connection was faster */ })
    fault.end()
    atRedis = false
  }

  const acts: [weight: number, act: () => Promise<void>][] = [
    [6, () => kill('worker')],
    [2, () => kill('api')],
    // Long enough to be taken for dead; it wakes while the next one is at the same work.
    [6, () => freeze('worker', lockTtlMs * random.pick([0.5, 1.3, 1.6, 1.9]))],
    [1, () => freeze('api', random.int(300, 3000))],
    [2, () => replace('worker')],
    [1, () => replace('api')],
    [6, () => ambush('unsent', true)],
    [6, () => ambush('unanswered', true)],
    [4, () => ambush('lost', false)],
    [3, () => ambush('refused', false)],
    [2, () => ambush('late', false)],
    [2, () => ambush('answered-late', false)],
    [2, () => toOne('slow', undefined, random.int(500, 3000), ({ place }) => place.proxy.slow(random.int(20, 200)), ({ place }) => place.proxy.slow(0))],
    [4, () => {
      const way = random.pick(['both', 'requests', 'replies'] as const)
      return toOne(`cut off (${way})`, undefined, random.int(300, 4000), ({ place }) => place.proxy.blackhole(way), ({ place }) => place.proxy.heal())
    }],
    [2, () => {
      let timer: NodeJS.Timeout | undefined
      return toOne('resets', undefined, 1000, ({ place }) => { timer = setInterval(() => place.proxy.reset(), 100) }, () => clearInterval(timer))
    }],
    [2, () => toRedis('SCRIPT FLUSH', async () => { await direct.script('FLUSH') })],
    [2, () => toRedis('CLIENT KILL storm', async () => {
      for (let i = 0; i < 8; i++) {
        for (const type of ['normal', 'pubsub']) await direct.call('CLIENT', 'KILL', 'TYPE', type, 'SKIPME', 'yes')
        await sleep(100)
      }
    })],
    [2, () => toRedis('queue deleted', async () => {
      for await (const keys of direct.scanStream({ match: `{${prefix}-queue}*`, count: 1000 }) as AsyncIterable<string[]>) if (keys.length > 0) await direct.unlink(keys)
    })],
    [1, () => toRedis('foreign jobs', foreignJobs)],
    [1, () => toRedis('Redis killed', async () => {
      mending = (async () => {
        await server.kill()
        await sleep(random.int(100, 1500))
        await server.start()
      })()
      await mending
    })],
    [1, () => toRedis('Redis frozen', async () => {
      server.pause()
      await sleep(random.int(500, 3000))
      server.resume()
    })]
  ]

  async function foreignJobs (): Promise<void> {
    const queue = new Queue('advance', { connection: direct, prefix: `{${prefix}-queue}`, skipVersionCheck: true })
    queue.on('error', () => {})
    try {
      await queue.add('advance', { conversation: 'conv_unknown' })
      await queue.add('something else', { no: 'conversation' })
      await queue.add('advance', null)
    } finally {
      await queue.close()
    }
  }

  return {
    struck,
    kills: () => killed,
    async strike () {
      const total = acts.reduce((sum, [weight]) => sum + weight, 0)
      let at = random.next() * total
      for (const [weight, act] of acts) {
        at -= weight
        if (at < 0) return await act()
      }
    },
    async heal () {
      for (const member of frozen) fleet.thaw(member)
      frozen.clear()
      for (const { proxy } of fleet.places) proxy.heal()
      await mending
    }
  }
}
