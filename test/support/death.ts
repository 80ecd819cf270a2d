import type { Test } from 'tap'
import type { Event } from '../../src/core/event.js'
import type { CreateRun, Run } from '../../src/schemas/run.js'
import type { Client, EventStream } from './client.js'
import { redisProxy } from './redis-proxy.js'
import type { Env, Service } from './service.js'
import type { World } from './world.js'

/** Settings under which a lost worker is missed soon. */
export const SHORT: Env = { INTERLOCK_LOCK_TTL_MS: '1000', INTERLOCK_SWEEP_MS: '200', INTERLOCK_STALLED_MS: '1000' }

/** What the death of a worker may cost under `SHORT`: lock TTL, one sweep, and a second. Milliseconds. */
export const BOUND_MS = 1000 + 200 + 1000

export const API = { roles: { api: true, worker: false } }
export const WORKER = { roles: { api: false, worker: true } }

/** Times a row of the fault matrix is repeated. `CHAOS_REPEATS` multiplies it, for a run that may take its time. */
export const repeats = (n: number): number => Math.ceil(n * Number(process.env.CHAOS_REPEATS ?? 1))

/** An instant between a worker and its Redis: a request with `text` is not sent any more, or is carried out and its answer does not arrive. */
export interface Instant { text: string, at: 'unsent' | 'answered' }

export interface Death {
  client: Client
  run: Run
  stream: EventStream
  /** The run's whole log, once it is over. */
  log: Event[]
  /** The events stored when the worker died; those behind them came from its successor. */
  before: Event[]
  /** From its death to the first of those, in milliseconds; null: there were none. */
  costMs: number | null
  survivor: Service
}

/** A run whose worker is killed at exactly that instant. Resolves when the run has ended at another worker. */
export async function dieAt (t: Test, { service, process, redis }: World, { text, at }: Instant, body: CreateRun, env: Env = {}): Promise<Death> {
  const proxy = await redisProxy(t, redis.url)
  const [doomed, { client }] = await Promise.all([process('worker', { REDIS_URL: proxy.url, ...env }), service({ ...API, env })])
  const reached = proxy.cut(text, at)
  const run = await client.start(body)
  const stream = await client.follow(run)
  await reached
  const survivor = await service({ ...WORKER, env })
  const before = await client.log({ run: run.id })
  await doomed.kill()
  const died = Date.now()
  await stream.ended
  const log = await client.log({ run: run.id })
  const next = log[before.length]
  return { client, run, stream, log, before, costMs: next === undefined ? null : Date.parse(next.time) - died, survivor }
}

/** Asserts that what follows a death follows in time. */
export function inTime (t: Test, { costMs, log, before }: Death, boundMs = BOUND_MS): void {
  t.ok(costMs !== null && costMs <= boundMs, `${log[before.length]?.type} ${costMs} ms after the death; at most ${boundMs}`)
}
