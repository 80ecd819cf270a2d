import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import type { Test } from 'tap'
import { parseRedisUrl } from '../../src/redis/url.js'
import { commandOf, createFramer, replyEnd, requestEnd, stringsOf, type RedisCommand } from './resp.js'

/** Which commands a rule is about: all that is given must fit. */
export interface RedisMatch {
  /** In capitals, `EVAL` for every script. */
  command?: string
  /** See `RedisCommand`. */
  script?: string
  /** A part of one of its keys. */
  key?: string | RegExp
  /** A part of what is sent, such as an event's type in a commit. */
  text?: string
}

/**
 * What happens to the command:
 *
 * | act | Redis | the process |
 * | --- | --- | --- |
 * | `unsent` | never sees it | waits for an answer: killed now, it died before |
 * | `unanswered` | carries it out | waits for an answer: killed now, it died after |
 * | `refused` | never sees it | loses that connection, and may send it again |
 * | `lost` | carries it out | loses that connection with the answer, and may send it again |
 * | `late` | sees it `ms` later | waits |
 * | `answered-late` | carries it out | has the answer `ms` later |
 */
export type RedisAct = 'unsent' | 'unanswered' | 'refused' | 'lost' | 'late' | 'answered-late'

export interface RedisRule {
  match: RedisMatch
  /** The how manieth command that fits; default 1. */
  nth?: number
  act: RedisAct
  /** Calls `victim` at that very instant (`unsent`, `unanswered`). */
  kill?: boolean
  /** For the late ones; default 100. */
  ms?: number
}

export interface SetRule {
  /** Resolves when the command is where the rule wants it: held back, answered, or its connection gone. */
  fired: Promise<RedisCommand>
  /** Lets a command that is held (`unsent`, `unanswered`) go on, if its connection still stands. */
  release: () => void
  /** Takes the rule back. Nothing when it has fired. */
  cancel: () => void
}

/** Which way is blocked. What is sent that way is held, as TCP would, and arrives after `heal`, however late. */
export type Blackhole = 'both' | 'requests' | 'replies'

export interface RedisProxy {
  /** For the process whose connections these are. */
  url: string
  /** A fault at one command. A rule fires once; the oldest that fits does. */
  on: (rule: RedisRule) => SetRule
  /** How a rule with `kill` ends the process. */
  victim: (kill: () => void) => void
  blackhole: (way?: Blackhole) => void
  /** Each command arrives so many milliseconds later. */
  slow: (ms: number) => void
  /** The line carries so many bytes in a millisecond, each way, for each connection. */
  narrow: (bytes: number) => void
  /** From now on new connections lead to another server, or with null to none. Those that are open stay, unless `cut` resets them. */
  lead: (redisUrl: string | null, over?: { cut: boolean }) => void
  /** Resets all connections there are. */
  reset: () => void
  /** Takes all of this back: rules, what they hold, slowness, narrowness, black holes. */
  heal: () => void
  /** Connections from the process. */
  connections: () => number
  /** The commands that came so far, counted by script or name. */
  seen: () => Record<string, number>
  /** Is told of every command as it comes. */
  watch: (see: (command: RedisCommand) => void) => void
  /**
   * Holds the command that has `text`. `answered`: it was forwarded, and the promise resolves when Redis has answered it; `unsent`: it was not. Whoever
   * is then killed has died at exactly that point.
   */
  cut: (text: string, at: 'answered' | 'unsent') => Promise<void>
  /** From now on every command that has `text` is held, unsent: its connection stays open, and nothing comes back. Resolves with the first. */
  swallow: (text: string) => Promise<void>
}

interface Rule extends RedisRule { left: number, fire: (command: RedisCommand) => void, held: Connection | undefined }

/** `rule`: what happens to it when it is answered. */
interface Owed { command: RedisCommand, replies: number, rule: Rule | null }

/** Something to pass on, not before a time. */
interface Passing { frame: Buffer, at: number }

interface Connection {
  client: Socket
  upstream: Socket
  requests: (Passing & { command: RedisCommand, checked?: boolean })[]
  replies: Passing[]
  /** What Redis has yet to answer, in order. */
  owed: Owed[]
  /** The rule that holds what is next of this way. */
  holds: { requests: Rule | null, replies: Rule | null }
  subscribed: boolean
  /** When a narrow line has carried all that was sent so far. */
  free: { requests: number, replies: number }
  /** One side has closed; the other follows when it has had everything. */
  ended: { client: boolean, upstream: boolean }
}

/** What a subscription brings without being asked. */
const PUSHED = new Set(['message', 'pmessage', 'smessage', 'invalidate'])

/**
 * A proxy before Redis, for one process of a test: it reads the commands that pass, so it reaches every instant between a process and its Redis without
 * any code in the product. Without rules it passes everything on.
 */
export async function redisProxy (t: Pick<Test, 'teardown'>, redisUrl: string): Promise<RedisProxy> {
  let reach: (() => Socket) | null = reaching(redisUrl)
  const connections = new Set<Connection>()
  const counts = new Map<string, number>()
  let rules: Rule[] = []
  let kill = () => {}
  let see = (_: RedisCommand) => {}
  let latency = 0
  let bytesPerMs = Infinity
  const blocked = { requests: false, replies: false }

  const server = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
    if (reach === null) return void client.resetAndDestroy()
    const upstream = reach()
    const one: Connection = {
      client, upstream, requests: [], replies: [], owed: [], holds: { requests: null, replies: null }, subscribed: false,
      free: { requests: 0, replies: 0 }, ended: { client: false, upstream: false }
    }
    connections.add(one)
    const requests = createFramer(requestEnd)
    const replies = createFramer(replyEnd)
    client.on('data', (chunk: Buffer) => {
      for (const frame of requests(chunk)) {
        const command = commandOf(frame)
        const name = command.script ?? command.name
        counts.set(name, (counts.get(name) ?? 0) + 1)
        see(command)
        one.requests.push({ frame, command, at: carried(one, 'requests', frame) + latency })
      }
      pumpRequests(one)
    })
    upstream.on('data', (chunk: Buffer) => {
      for (const frame of replies(chunk)) answered(one, frame)
      pumpReplies(one)
    })
    for (const socket of [client, upstream]) socket.on('error', () => { /* `close` follows */ })
    for (const event of ['end', 'close']) {
      client.on(event, () => {
        one.ended.client = true
        // Whoever is killed at a command that was held back has not sent it.
        if (one.holds.requests !== null || one.holds.replies !== null) drop(one)
        else pumpRequests(one)
      })
      upstream.on(event, () => {
        one.ended.upstream = true
        pumpReplies(one)
      })
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(async () => {
    for (const one of connections) drop(one)
    await new Promise((resolve) => server.close(resolve))
  })

  /** `hard`: what the process has not read yet is lost as well. */
  function drop (one: Connection, { hard = true } = {}): void {
    connections.delete(one)
    one.requests = []
    one.replies = []
    if (hard) one.client.resetAndDestroy()
    else one.client.destroySoon()
    one.upstream.destroy()
  }

  /** When a frame is through. */
  function carried (one: Connection, way: 'requests' | 'replies', frame: Buffer): number {
    return one.free[way] = Math.max(one.free[way], performance.now()) + frame.length / bytesPerMs
  }

  /** Passes on what may go. True when nothing is left. */
  function flow<T extends Passing> (queue: T[], again: () => void, pass: (next: T) => boolean): boolean {
    for (let next = queue[0]; next !== undefined; next = queue[0]) {
      const early = next.at - performance.now()
      if (early > 0) {
        setTimeout(again, early)
        return false
      }
      if (!pass(next)) return false
    }
    return true
  }

  function pumpRequests (one: Connection): void {
    if (!connections.has(one) || blocked.requests || one.holds.requests !== null) return
    const empty = flow(one.requests, () => pumpRequests(one), (next) => {
      const { command, frame } = next
      const rule = next.checked ? null : take(command)
      next.checked = true
      if (rule?.act === 'late') {
        next.at = performance.now() + (rule.ms ?? 100)
        rule.fire(command)
        return true // looked at again, and found to be early
      }
      if (rule?.act === 'unsent' || rule?.act === 'refused') {
        if (rule.act === 'refused') drop(one, { hard: false })
        else hold(one, 'requests', rule)
        rule.fire(command)
        return false
      }
      one.requests.shift()
      one.owed.push({ command, replies: repliesTo(command), rule })
      if (command.name.endsWith('SUBSCRIBE')) one.subscribed = true
      one.upstream.write(frame)
      // Until it is answered nothing more is sent: who dies at this point has sent nothing more.
      if (rule !== null && rule.act !== 'answered-late') one.holds.requests = rule
      return one.holds.requests === null
    })
    if (empty && one.ended.client) {
      one.upstream.end()
      if (one.ended.upstream) drop(one)
    }
  }

  function answered (one: Connection, frame: Buffer): void {
    const reply = { frame, at: carried(one, 'replies', frame) }
    one.replies.push(reply)
    if (one.subscribed && PUSHED.has(stringsOf(frame)[0] ?? '')) return
    const owed = one.owed[0]
    if (owed === undefined || --owed.replies > 0) return
    one.owed.shift()
    const { rule, command } = owed
    if (rule === null) return
    if (rule.act === 'answered-late') {
      reply.at = performance.now() + (rule.ms ?? 100)
      return rule.fire(command)
    }
    one.holds.requests = null
    if (frame.toString('latin1', 0, 9) === '-NOSCRIPT') {
      // It comes again, with the script.
      rule.left = 1
      rules.unshift(rule)
      return pumpRequests(one)
    }
    one.replies.pop()
    pumpReplies(one)
    one.replies.push(reply)
    if (rule.act === 'lost') drop(one, { hard: false })
    else {
      hold(one, 'replies', rule)
      one.holds.requests = rule
    }
    rule.fire(command)
  }

  function pumpReplies (one: Connection): void {
    if (!connections.has(one) || blocked.replies || one.holds.replies !== null) return
    const empty = flow(one.replies, () => pumpReplies(one), ({ frame }) => {
      one.replies.shift()
      if (!one.client.destroyed) one.client.write(frame)
      return true
    })
    if (empty && one.ended.upstream) {
      one.client.end()
      one.client.destroySoon()
      connections.delete(one)
    }
  }

  function hold (one: Connection, way: 'requests' | 'replies', rule: Rule): void {
    one.holds[way] = rule
    rule.held = one
    if (rule.kill) kill()
  }

  function take (command: RedisCommand): Rule | null {
    const rule = rules.find(({ match }) => fits(match, command))
    if (rule === undefined || --rule.left > 0) return null
    rules = rules.filter((one) => one !== rule)
    return rule
  }

  function release (one: Connection): void {
    one.holds = { requests: null, replies: null }
    pumpReplies(one)
    pumpRequests(one)
  }

  const proxy: RedisProxy = {
    url: `redis://127.0.0.1:${(server.address() as AddressInfo).port}`,
    on (given) {
      let fire = (_: RedisCommand) => {}
      const fired = new Promise<RedisCommand>((resolve) => { fire = resolve })
      const rule: Rule = { ...given, left: given.nth ?? 1, fire, held: undefined }
      rules.push(rule)
      return {
        fired,
        release: () => {
          if (rule.held === undefined) return
          const one = rule.held
          rule.held = undefined
          release(one)
        },
        cancel: () => { rules = rules.filter((one) => one !== rule) }
      }
    },
    victim: (how) => { kill = how },
    blackhole (way = 'both') {
      blocked.requests = way !== 'replies'
      blocked.replies = way !== 'requests'
    },
    slow: (ms) => { latency = ms },
    narrow: (bytes) => { bytesPerMs = bytes },
    lead (to, { cut } = { cut: false }) {
      reach = to === null ? null : reaching(to)
      if (cut) proxy.reset()
    },
    reset: () => { for (const one of [...connections]) drop(one) },
    heal () {
      rules = []
      latency = 0
      bytesPerMs = Infinity
      blocked.requests = blocked.replies = false
      for (const one of [...connections]) release(one)
    },
    connections: () => connections.size,
    seen: () => Object.fromEntries(counts),
    watch: (looking) => { see = looking },
    swallow: async (text) => {
      const { fired } = proxy.on({ match: { text }, act: 'unsent' })
      void fired.then(() => proxy.swallow(text))
      await fired
    },
    cut: async (text, at) => {
      await proxy.on({ match: { text }, act: at === 'answered' ? 'unanswered' : 'unsent' }).fired
    }
  }
  return proxy
}

function reaching (redisUrl: string): () => Socket {
  const target = parseRedisUrl(redisUrl)
  if (target?.kind !== 'single') throw new Error('the proxy stands before a single server')
  const { path, host, port } = target.options
  return () => path === undefined ? connect({ port: port ?? 6379, host: host ?? '127.0.0.1', noDelay: true }) : connect(path)
}

function fits ({ command, script, key, text }: RedisMatch, given: RedisCommand): boolean {
  return (command === undefined || command === given.name) &&
    (script === undefined || script === given.script) &&
    (key === undefined || given.keys.some((one) => typeof key === 'string' ? one.includes(key) : key.test(one))) &&
    (text === undefined || given.text.includes(text))
}

/** Redis confirms each channel by itself. */
function repliesTo ({ name, keys }: RedisCommand): number {
  return /^[PS]?(UN)?SUBSCRIBE$/.test(name) ? Math.max(1, keys.length) : 1
}
