import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import type { Test } from 'tap'
import type { Event } from '../../src/core/event.js'
import { claimsOf, type State } from '../../src/core/state.js'
import type { Run } from '../../src/schemas/run.js'
import { createKeys } from '../../src/store/keys.js'
import { createRandom } from '../simulation/random.js'
import { createClient, within } from '../support/client.js'
import { gather, type Evidence } from '../support/invariants.js'
import { startModelServer } from '../support/model-server.js'
import { privateRedis } from '../support/redis.js'
import { startToolServer } from '../support/tool-server.js'
import { openFleet, PATIENCE_MS } from './fleet.js'
import { recoveries, spread, wasted, type Figures } from './figures.js'
import { now, openJournal, type Fault } from './journal.js'
import { callerOf, judgeCase, timesOf } from './judge.js'
import { createNemesis } from './nemesis.js'
import { provide } from './provider.js'
import { live, newSession, type Session } from './workload.js'

export interface ChaosOptions {
  seed: number
  minutes: number
  /** API and worker processes. Default 2 and 3. */
  apis?: number
  workers?: number
  /** Conversations at once. Default 10. */
  conversations?: number
  /** Ends at the first round that has violations. */
  brief?: boolean
  say?: (line: string) => void
}

export interface Chaos {
  figures: Figures
  violations: string[]
  /** Where event logs and the nemesis' log are kept when there were violations. */
  folder: string | null
}

/** Short times, so that much happens. Milliseconds. */
const LOCK_TTL_MS = 2000
const SWEEP_MS = 500
const STALLED_MS = 1000

/** How long a lost worker can hold a conversation (FAULTS 3.1). */
const T_MS = LOCK_TTL_MS + Math.max(SWEEP_MS, STALLED_MS) + 1000

/** The longest that the work itself says nothing: a stream that stalls (`MODEL_IDLE_MS`), the wait for the next try, an answer that is long. */
const OWN_MS = 4000 + 4000 + 5000

/** How long faults strike, before everything is healed and must come to rest. */
const SAFETY_MS = 14_000

/** At rest, or stuck: beyond this nobody waits for a round. */
const HOPELESS_MS = 90_000

/** A patient client asks again as long as it is told to: what is broken must not be asked for ever. */
const answered = <T>(asking: Promise<T>): Promise<T> => within(asking, () => 'no answer', HOPELESS_MS / 3)

/** Runs the service under a workload and a nemesis, in rounds, and judges every conversation. */
export async function chaos (t: Pick<Test, 'teardown'>, { seed, minutes, apis = 2, workers = 3, conversations = 10, brief = false, say = () => {} }: ChaosOptions): Promise<Chaos> {
  const violations: string[] = []
  let folder: string | null = null
  let faulty = true
  const [server, model, tools] = await Promise.all([privateRedis(t), startModelServer(), startToolServer()])
  t.teardown(() => Promise.all([model.close(), tools.close()]))
  const said = provide(model, seed, () => faulty)
  const direct = new Redis(server.url, { maxRetriesPerRequest: 1, commandTimeout: 2000, retryStrategy: () => 50 })
  direct.on('error', () => { /* it is killed now and then */ })
  const journal = openJournal(() => direct.ping())
  t.teardown(() => {
    journal.close()
    direct.disconnect()
  })
  const keys = createKeys('il', 16)
  const fleet = await openFleet(t, {
    redisUrl: server.url,
    apis,
    workers,
    wrong: (what) => { violations.push(`process: ${what}`) },
    env: {
      OPENAI_BASE_URL: model.baseUrl, OPENAI_MODEL: 'test', INTERLOCK_ALLOWED_TOOL_HOSTS: '127.0.0.1', INTERLOCK_MODEL_IDLE_MS: '4000', INTERLOCK_MODEL_TIMEOUT_MS: '4000',
      INTERLOCK_LOCK_TTL_MS: String(LOCK_TTL_MS), INTERLOCK_SWEEP_MS: String(SWEEP_MS), INTERLOCK_STALLED_MS: String(STALLED_MS), INTERLOCK_GRACE_MS: '1500'
    }
  })
  let sessions: Session[] = []

  /** For the figures: the judge knows nothing but what can be seen from outside. */
  async function claimed (by: string[] | 'any'): Promise<string[]> {
    const open = sessions.filter(({ over }) => !over).flatMap(({ conversation }) => conversation ?? [])
    if (open.length === 0) return []
    const pipeline = direct.pipeline()
    for (const conversation of open) pipeline.hget(keys.row(conversation), 'state')
    const rows = await pipeline.exec() ?? []
    return open.filter((_, i) => typeof rows[i]?.[1] === 'string' && claimsOf(JSON.parse(rows[i][1]) as State).some(({ worker }) => by === 'any' || by.includes(worker)))
  }

  const nemesis = createNemesis({ random: createRandom(seed, 'nemesis'), fleet, journal, server, direct, prefix: 'il', lockTtlMs: LOCK_TTL_MS, claimed })
  const figures: Figures = {
    seed, minutes, rounds: 0, conversations: 0, runs: {}, messages: 0, llm_calls: 0, wasted: {}, tool_executions: 0, tool_executions_again: 0, kills: 0, faults: nemesis.struck,
    excused: { own: 0, all: 0 }, requests: 0, streams: 0, recovery: {}, rest_ms: 0, violations: 0
  }
  const recovery = new Map<string, number[]>()

  async function round (number: number): Promise<void> {
    const random = createRandom(seed, `round ${number}`)
    const before = { kills: nemesis.kills(), violations: violations.length }
    sessions = []
    faulty = true
    const end = now() + SAFETY_MS
    const gone = new AbortController()
    const town = { urls: fleet.urls, toolUrl: tools.url, closing: () => now() > end, gone: gone.signal }
    const street = async () => {
      while (now() < end) {
        const session = newSession(`conv:s${seed}-r${number}-${sessions.length}`)
        sessions.push(session)
        await live(session, { ...town, random: createRandom(seed, session.marker) }).catch((error: Error) => { session.wrong.push(`chaos: ${String(error.stack)}`) })
        session.over = true
      }
    }
    const streets = Promise.all(Array.from({ length: conversations }, street))

    const strikes: Promise<void>[] = []
    while (now() < end) {
      await sleep(random.int(150, 1100))
      strikes.push(within(nemesis.strike(), () => 'a fault does not end', 2 * PATIENCE_MS).catch((error: Error) => { violations.push(`chaos: ${String(error.stack)}`) }))
    }
    await nemesis.heal()
    await Promise.all(strikes)
    await nemesis.heal()
    faulty = false
    await fleet.whole()
    const healed = now()
    await atRest(streets, healed)
    figures.rest_ms = Math.max(figures.rest_ms, now() - healed)
    gone.abort()
    try {
      await answered(streets)
      await judgeRound(number)
    } catch (error) {
      violations.push(`I14: what round ${number} left cannot be read: ${String((error as Error).stack)}`)
    }
    const killed = nemesis.kills() - before.kills
    say(`round ${number}: ${sessions.length} conversations, ${sessions.reduce((sum, { runs }) => sum + runs.length, 0)} runs, ${killed} kills, ` +
      `at rest ${((now() - healed) / 1000).toFixed(1)} s after healing, ${violations.length - before.violations} violations`)
    figures.rounds++
  }

  /** I13: once everything is healed every conversation goes on, whenever one looks, until nothing is left to do. */
  async function atRest (streets: Promise<unknown>, healed: number): Promise<void> {
    let done = false
    void streets.then(() => { done = true })
    const seen = new Map<string, { seq: number, at: number }>()
    while (!done && now() - healed < HOPELESS_MS) {
      await Promise.race([streets, sleep(250)])
      for (const { conversation, over, deleted } of sessions) {
        if (conversation === null || over || deleted) continue
        const state = await direct.hget(keys.row(conversation), 'state').catch(() => null)
        if (state == null) continue
        const known = seen.get(conversation)
        const { seq, run } = JSON.parse(state) as State
        const idle = run === null
        if (known?.seq !== seq || idle) seen.set(conversation, { seq, at: now() })
        else if (now() - known.at > T_MS + OWN_MS + 3 * journal.starved(known.at, now())) {
          violations.push(`I13: ${conversation} does nothing for ${Math.round(now() - known.at)} ms, though everything is healed: ${describe(JSON.parse(state) as State)}`)
          return
        }
      }
    }
    if (!done) violations.push(`I13: not at rest ${HOPELESS_MS} ms after healing`)
  }

  async function judgeRound (number: number): Promise<void> {
    const [url] = fleet.urls()
    const client = createClient(url ?? '', { patient: true })
    const logs = new Map<string, Event[]>()
    const found: string[] = []
    const requests = model.requests()
    const attempts = tools.attempts
    for (const fault of model.violations.splice(0)) found.push(`I3: ${fault.conversation} request ${fault.n}: ${fault.rule} ${fault.at} ${fault.message}`)
    for (const session of sessions) {
      let evidence: Evidence | null = null
      if (session.conversation !== null) evidence = await answered(gather(client, session.conversation, { streams: [], requests, attempts }))
      if (evidence === null && session.conversation !== null && !session.deleted) session.wrong.push(`I14: ${session.conversation} is gone`)
      if (evidence !== null && session.deleted && session.sent.some(({ what, outcome }) => what === 'delete' && outcome === 'accepted')) session.wrong.push(`I21: ${session.conversation} was deleted and is there`)
      const own = requests.filter(({ conversation }) => conversation === session.marker)
      const runs = new Set(session.runs.map(({ id }) => id))
      const executed = attempts.filter(({ headers }) => runs.has(String(headers['interlock-run-id'])))
      const wrong = judgeCase({ session, evidence, requests: own, attempts: executed, said, journal, lapseMs: T_MS + 4000, lockTtlMs: LOCK_TTL_MS, excuse: (reason) => { figures.excused[reason]++ } })
      found.push(...wrong.map((what) => `${session.marker} ${session.conversation}: ${what}`))
      if (wrong.length > 0) keep(session, evidence, wrong)
      count(session, evidence, executed)
      if (evidence !== null) logs.set(session.conversation ?? '', evidence.events)
    }
    await judgeStrangers(client, found)
    await judgeKeys(client, found)
    await judgeLogs(found)
    for (const [kind, times] of recoveries(journal, logs)) recovery.set(kind, [...recovery.get(kind) ?? [], ...times])
    if (found.length > 0) {
      keepJournal(number, journal.faults)
      for (const what of found.slice(0, 20)) say(`VIOLATION ${what}`)
    }
    for (const { process } of fleet.members) process.logs.length = 0
    violations.push(...found)
    figures.llm_calls += requests.length
    figures.kills = nemesis.kills()
    model.forget()
    tools.reset()
    said.clear()
    journal.faults.splice(0, journal.faults.length, ...journal.faults.filter(({ to }) => to > now() - 60_000))
  }

  function count (session: Session, evidence: Evidence | null, executed: { headers: Record<string, unknown> }[]): void {
    figures.conversations++
    figures.requests += session.sent.length
    figures.messages += session.sent.filter(({ what, outcome }) => what === 'message' && outcome === 'accepted').length
    figures.streams += session.segments.length
    figures.tool_executions += executed.length
    figures.tool_executions_again += executed.length - new Set(executed.map(({ headers }) => headers['interlock-call-id'])).size
    if (evidence === null) {
      figures.runs.deleted = (figures.runs.deleted ?? 0) + session.runs.length
      return
    }
    for (const { run } of evidence.runs) figures.runs[run.status] = (figures.runs[run.status] ?? 0) + 1
    for (const [reason, n] of Object.entries(wasted(evidence.events, new Set(evidence.requests.map(({ requestId }) => requestId ?? ''))))) figures.wasted[reason] = (figures.wasted[reason] ?? 0) + n
  }

  /** I5: there are no runs that nobody has made. */
  async function judgeStrangers (client: ReturnType<typeof createClient>, found: string[]): Promise<void> {
    const known = new Set(sessions.flatMap(({ conversation }) => conversation ?? []))
    const unsure = sessions.some(({ conversation }) => conversation === null)
    for (let cursor = ''; ;) {
      const { data, next_cursor: next } = await answered(client.get<{ data: Run[], next_cursor: string | null }>(`/runs?limit=100${cursor}`))
      for (const run of data) if (!known.has(run.conversation_id) && !unsure) found.push(`I5: ${run.id} is there, and nobody has made it`)
      if (next === null) return
      cursor = `&cursor=${encodeURIComponent(next)}`
    }
  }

  /** I20, I21: at rest no lock is held and no job is active; when everything is deleted, nothing is left that has no end of its own. */
  async function judgeKeys (client: ReturnType<typeof createClient>, found: string[]): Promise<void> {
    const scan = async (pattern: string) => {
      const all: string[] = []
      for await (const some of direct.scanStream({ match: pattern, count: 1000 }) as AsyncIterable<string[]>) all.push(...some)
      return all
    }
    const settled = async (what: string, look: () => Promise<string[]>) => {
      const until = now() + T_MS + 2000
      for (;;) {
        const left = await look()
        if (left.length === 0) return
        if (now() > until) return void found.push(`I20: ${what}: ${left.slice(0, 5).join(', ')}${left.length > 5 ? ` and ${left.length - 5} more` : ''}`)
        await sleep(200)
      }
    }
    await settled('locks are held at rest', () => scan('*:lock'))
    await settled('jobs are active at rest', () => direct.lrange('{il-queue}:advance:active', 0, -1))
    await settled('conversations are due at rest', async () => {
      const due = await Promise.all(Array.from({ length: 16 }, (_, i) => direct.zrange(keys.due(i), '0', '-1')))
      return due.flat()
    })
    for (const { conversation, deleted } of sessions) {
      if (conversation === null) continue
      const { status, text } = await answered(client.request('DELETE', `/conversations/${conversation}`))
      if (status !== 204 && status !== 404) found.push(`I21: DELETE of ${conversation} was answered ${status} ${text}`)
      if (status === 404 && !deleted) found.push(`I14: ${conversation} is gone`)
    }
    await settled('something is left of conversations that were deleted', async () => {
      const left = await scan('il:*')
      const ages = await Promise.all(left.map((key) => direct.pttl(key)))
      // The epoch is the partition's, not a conversation's.
      return left.filter((key, i) => ages[i] === -1 && key !== keys.meta && !key.endsWith(':epoch'))
    })
  }

  /** What a process logs as an error is one, and no text of anybody is in its log. */
  async function judgeLogs (found: string[]): Promise<void> {
    for (const { id, process } of fleet.members) {
      for (const line of process.logs) {
        if (!line.startsWith('{')) continue
        const { level, msg, status } = JSON.parse(line) as { level: number, msg: string, status?: number }
        // Redis is away now and then: that is no error of theirs.
        const away = status === 503 || line.includes('"type":"UnavailableError"')
        if (level >= 50 && !away) found.push(`log: ${id} logged an error: ${msg}: ${line.slice(0, 600)}`)
        if (/sk-canary|conv:s\d/.test(line)) found.push(`log: ${id} logged a key or a text: ${msg}`)
      }
    }
  }

  function keep (session: Session, evidence: Evidence | null, wrong: string[]): void {
    const trace = {
      wrong,
      session: { ...session, segments: session.segments.length },
      events: evidence?.events.map((event) => JSON.stringify(event)) ?? null,
      messages: evidence?.messages,
      requests: evidence?.requests.map((request) => {
        const { from, to } = timesOf(request)
        return {
          requestId: request.requestId, from: new Date(from).toISOString(), to: to === Infinity ? null : new Date(to).toISOString(), aborted: request.aborted,
          inFlight: request.inFlight, caller: callerOf(request), messages: request.body.messages
        }
      }),
      attempts: evidence?.attempts,
      streams: session.segments
    }
    writeFileSync(join(place(), `${session.marker.replace(':', '-')}.json`), JSON.stringify(trace, null, 1))
  }
  function keepJournal (number: number, faults: Fault[]): void {
    const lines = [...faults].sort((a, b) => a.from - b.from).map(({ kind, at, targets, from, to, hit }) => {
      return `${new Date(from).toISOString()} ${to === Infinity ? 'open' : `${Math.round(to - from)} ms`} ${kind}${at === undefined ? '' : ` (${at})`} ${targets.join()} hits ${hit.join() || 'nobody known'}`
    })
    writeFileSync(join(place(), `round-${number}-nemesis.log`), lines.join('\n'))
    for (const { id, process } of fleet.members) if (process.logs.length > 0) writeFileSync(join(place(), `round-${number}-${id}.log`), process.logs.join('\n'))
  }
  function place (): string {
    folder ??= mkdtempSync(join(tmpdir(), `interlock-chaos-${seed}-`))
    mkdirSync(folder, { recursive: true })
    return folder
  }

  const started = now()
  for (let number = 1; now() - started < minutes * 60_000; number++) {
    await round(number)
    if (brief && violations.length > 0) break
  }
  await fleet.close()
  figures.recovery = Object.fromEntries([...recovery].map(([kind, times]) => [kind, spread(times)]))
  figures.violations = violations.length
  return { figures, violations, folder }
}

function describe ({ run, queue, waiting }: State): string {
  return JSON.stringify({ run: run === null ? null : { status: run.status, phase: run.phase }, queue: queue.length, waiting: waiting.length }).slice(0, 600)
}
