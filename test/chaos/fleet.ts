import type { Test } from 'tap'
import { within } from '../support/client.js'
import { redisProxy, type RedisProxy } from '../support/redis-proxy.js'
import { spawnProcess, type Env, type SpawnedProcess } from '../support/service.js'

/** A place in the fleet, with a proxy of its own; processes come and go in it. */
export interface Place { name: string, kind: 'api' | 'worker', proxy: RedisProxy, member: Member | null }

/** One process. */
export interface Member {
  /** The place and a number: `worker-2.7`. Its key at the model server ends in it, so that every LLM request names its caller. */
  id: string
  place: Place
  process: SpawnedProcess
  /** Null until it listens. */
  url: string | null
  /** The name it claims work by; null until it has given a first sign of life, and for an API. */
  worker: string | null
  /** Somebody meant to end it. */
  doomed: boolean
  gone: boolean
  frozen: boolean
}

export interface Fleet {
  places: Place[]
  /** All there ever were. */
  members: Member[]
  start: (place: Place) => Member
  /** SIGKILL, and another one in its place after so many milliseconds. */
  kill: (member: Member, restartMs: number) => void
  /** SIGTERM and another one at once. Resolves when the first has gone. */
  replace: (member: Member) => Promise<void>
  freeze: (member: Member) => void
  thaw: (member: Member) => void
  /** Addresses of the API, also of processes that do not answer: a client does not know. */
  urls: () => string[]
  /** Resolves when every place has a process that works. */
  whole: () => Promise<void>
  /** Ends them all. */
  close: () => Promise<void>
}

/** A process starts in a second or two, and on a machine that does ten other things in a minute or two. Milliseconds. */
export const PATIENCE_MS = 240_000

export const CALLER = 'sk-canary-of-'

/** `wrong` is told of processes that end by themselves, complain, or do not end as they should. */
export async function openFleet (
  t: Pick<Test, 'teardown'>, { redisUrl, env, apis, workers, wrong }: { redisUrl: string, env: Env, apis: number, workers: number, wrong: (what: string) => void }
): Promise<Fleet> {
  const names = [...Array.from({ length: apis }, (_, i) => `api-${i + 1}`), ...Array.from({ length: workers }, (_, i) => `worker-${i + 1}`)]
  const places = await Promise.all(names.map(async (name): Promise<Place> => {
    return { name, kind: name.startsWith('api') ? 'api' : 'worker', proxy: await redisProxy(t, redisUrl), member: null }
  }))
  const members: Member[] = []
  const restarts = new Set<NodeJS.Timeout>()
  let closed = false

  function start (place: Place): Member {
    const id = `${place.name}.${members.length + 1}`
    const process = spawnProcess(t, place.kind, { ...env, REDIS_URL: place.proxy.url, OPENAI_API_KEY: `${CALLER}${id}` })
    const member: Member = { id, place, process, url: null, worker: null, doomed: false, gone: false, frozen: false }
    place.member = member
    place.proxy.victim(() => { kill(member, 300) })
    members.push(member)
    // Whoever gives a first sign of life now is the new one.
    place.proxy.watch(({ name, keys: [key = ''] }) => {
      const worker = name === 'SET' ? /:worker:([^:]+)$/.exec(key)?.[1] : undefined
      if (worker !== undefined && member.worker === null && !members.some((one) => one.worker === worker)) member.worker = worker
    })
    process.listening.then((url) => { member.url = url }, () => { /* it ended before: see below */ })
    void process.exited.then(({ code, signal }) => {
      member.gone = true
      if (closed) return
      if (!member.doomed) wrong(`${id} ended by itself (${code ?? signal}): ${process.stderr().slice(0, 500)}`)
      else if (process.stderr() !== '') wrong(`${id} complained: ${process.stderr().slice(0, 500)}`)
      if (place.member === member) {
        place.member = null
        if (!member.doomed) start(place)
      }
    })
    return member
  }

  function kill (member: Member, restartMs: number): void {
    member.doomed = true
    void member.process.kill()
    const { place } = member
    if (place.member !== member) return
    place.member = null
    const timer = setTimeout(() => {
      restarts.delete(timer)
      if (place.member === null && !closed) start(place)
    }, restartMs)
    restarts.add(timer)
  }

  for (const place of places) start(place)
  const fleet: Fleet = {
    places,
    members,
    start,
    kill,
    async replace (member) {
      member.doomed = true
      member.process.signal('SIGTERM')
      start(member.place)
      const { code, signal } = await within(member.process.exited, () => `${member.id} does not end on SIGTERM`, PATIENCE_MS)
      // A second signal may have been stronger.
      if (code !== 0 && signal !== 'SIGKILL') wrong(`${member.id} ended with ${code ?? signal} on SIGTERM: ${member.process.stderr().slice(0, 500)}`)
    },
    freeze (member) {
      member.frozen = true
      member.process.signal('SIGSTOP')
    },
    thaw (member) {
      member.frozen = false
      member.process.signal('SIGCONT')
    },
    urls: () => places.flatMap(({ kind, member }) => kind === 'api' && member?.url != null ? [member.url] : []),
    async close () {
      closed = true
      for (const timer of restarts) clearTimeout(timer)
      await Promise.all(members.map(({ process }) => process.kill()))
    },
    async whole () {
      for (const place of places) {
        for (;;) {
          const { member } = place
          if (member !== null && await within(member.process.ready.then(() => true, () => false), () => `${member.id} does not become ready: ${member.process.logs.slice(-5).join('\n')}`, PATIENCE_MS)) break
          await new Promise((resolve) => setTimeout(resolve, 100))
        }
      }
    }
  }
  await fleet.whole()
  return fleet
}
