import { randomUUID } from 'node:crypto'
import { Agent, request, type IncomingMessage } from 'node:http'
import { text as textOf } from 'node:stream/consumers'
import { setTimeout as sleep } from 'node:timers/promises'

/** What befalls a run of the soak test. */
export type Fate = 'plain' | 'interrupted' | 'steered' | 'queued' | 'cancelled' | 'left' | 'approved'

/** How many runs a conversation of a lane sees before its client deletes it; in every fourth the model takes its time, so that messages meet it at work. */
const RUNS_PER_CONVERSATION = 3

const FATES: Fate[] = ['interrupted', 'left', 'cancelled', 'steered', 'interrupted', 'approved', 'cancelled', 'queued']

/** Four of ten runs are met by something: the same for the same number, whatever the machine does. */
function fateOf (run: number): Fate {
  return run % 5 < 3 ? 'plain' : FATES[Math.floor(run / 5) * 2 % FATES.length + run % 5 - 3] ?? 'plain'
}

export interface Lane {
  /** One run, from its POST to the end of its stream. Throws when anything is not as it should be. */
  run: (number: number) => Promise<void>
  /** The conversation it is in, if it still exists. */
  conversation: () => string | null
  /** Deletes that. */
  leave: () => Promise<void>
}

export interface LaneClient {
  openLane: (name: string) => Lane
  /** POSTs so far, each under a key of its own. */
  posts: () => number
  close: () => void
}

/** A client on kept connections that keeps nothing of what it has read. */
export function createLaneClient (origin: string): LaneClient {
  const agent = new Agent({ keepAlive: true, maxSockets: Infinity })
  let posts = 0

  function send (method: string, path: string, body?: object, headers: Record<string, string> = {}): Promise<IncomingMessage> {
    const bytes = body === undefined ? undefined : JSON.stringify(body)
    return new Promise((resolve, reject) => {
      const sent = request(origin + path, {
        method, agent, headers: { ...headers, ...(bytes !== undefined && { 'content-type': 'application/json', 'content-length': Buffer.byteLength(bytes) }) }
      }, resolve)
      sent.on('error', reject)
      sent.end(bytes)
    })
  }

  /** Comes again when it is told to, as a starved machine may. Null: one of the statuses that may come as well. */
  async function ask (method: string, path: string, wanted: number, { body, or = [] }: { body?: object, or?: number[] } = {}) {
    const headers: Record<string, string> = method === 'POST' ? { 'idempotency-key': randomUUID() } : {}
    if (method === 'POST') posts++
    for (let tries = 1; ; tries++) {
      const response = await send(method, path, body, headers)
      const answer = await textOf(response)
      if (response.statusCode === wanted) return answer === '' ? null : JSON.parse(answer) as Record<string, unknown>
      const wait = Number(response.headers['retry-after'])
      // A deletion that was not answered may have been done.
      if (!(wait > 0) && (or.includes(response.statusCode ?? 0) || (method === 'DELETE' && tries > 1 && response.statusCode === 404))) return null
      if (!(wait > 0)) throw new Error(`${method} ${path} answered ${response.statusCode}: ${answer.slice(0, 300)}`)
      await sleep(1000 * wait)
    }
  }

  /** Reads a stream to its end, or until `hear` says that it has had enough. Resolves with the last event's type and id. */
  async function follow (path: string, after: number, hear: (type: string, data: string) => boolean): Promise<{ type: string, seq: number }> {
    const response = await send('GET', path, undefined, { accept: 'text/event-stream', ...(after > 0 && { 'last-event-id': String(after) }) })
    if (Number(response.headers['retry-after']) > 0) {
      response.resume()
      await sleep(1000)
      return await follow(path, after, hear)
    }
    if (response.statusCode !== 200) throw new Error(`GET ${path} answered ${response.statusCode}`)
    const last = { type: '', seq: after }
    let rest = ''
    response.setEncoding('utf8')
    try {
      for await (const piece of response as AsyncIterable<string>) {
        const frames = (rest + piece).split('\n\n')
        rest = frames.pop() ?? ''
        for (const frame of frames) {
          const id = /^id: (\d+)$/m.exec(frame)?.[1]
          const type = /^event: (.*)$/m.exec(frame)?.[1]
          if (type === undefined) continue
          if (id !== undefined) {
            if (Number.parseInt(id) <= last.seq) throw new Error(`${path} told event ${id} behind ${last.seq}`)
            Object.assign(last, { type, seq: Number.parseInt(id) })
          }
          if (!hear(type, frame.slice(frame.indexOf('data: ') + 6))) return last
        }
      }
    } finally {
      response.destroy()
    }
    return last
  }

  function openLane (name: string): Lane {
    let conversation: string | null = null
    let runs = 0
    let conversations = 0

    async function leave (): Promise<void> {
      if (conversation !== null) await ask('DELETE', `/conversations/${conversation}`, 204)
      conversation = null
      runs = 0
    }

    async function run (number: number): Promise<void> {
      const fate = fateOf(number)
      if (conversation === null) conversations++
      const slow = conversations % 4 === 0
      const waits = fate === 'interrupted' || fate === 'cancelled' || fate === 'left'
      const body = {
        // The first message of a conversation says how its model behaves.
        input: `conv:${name} ${slow ? 'script:2x2@40' : 'script:2x2'}`,
        model: 'soak',
        tools: [{ kind: 'module', name: waits ? 'work_100ms' : 'work', ...(fate === 'approved' && { approval: 'always' }) }],
        ...(conversation !== null && { conversation_id: conversation })
      }
      const posted = await ask('POST', '/runs', 201, { body })
      const { id, conversation_id: where } = posted as { id: string, conversation_id: string }
      conversation = where
      const path = `/runs/${id}/events`

      let met = false
      const errors: unknown[] = []
      const doing: Promise<unknown>[] = []
      const act = (task: () => Promise<unknown>) => {
        met = true
        doing.push(task().catch((error: unknown) => errors.push(error)))
      }
      const say = (mode: string) => ask('POST', `/runs/${id}/messages`, 202, { body: { content: 'And now?', mode }, or: [409] })
      let last = await follow(path, 0, (type, data) => {
        const atWork = type === (slow ? 'turn.started' : 'batch.started')
        if (type === 'suspension.created') {
          const { suspension_id: suspension, calls } = JSON.parse(data) as { suspension_id: string, calls: { call_id: string }[] }
          const decisions = calls.map(({ call_id: call }, i) => ({ call_id: call, decision: i === 0 ? 'approve' : 'reject' }))
          act(() => ask('POST', `/runs/${id}/decisions`, 200, { body: { suspension_id: suspension, decisions } }))
        } else if (atWork && !met) {
          if (fate === 'interrupted') act(() => say('interrupt'))
          else if (fate === 'steered') act(() => say('steer'))
          else if (fate === 'queued') act(() => say('queue'))
          else if (fate === 'cancelled') act(() => ask('POST', `/runs/${id}/cancel`, 200, { or: [409] }))
          else if (fate === 'left') met = true
        }
        return !(fate === 'left' && met)
      })
      if (fate === 'left' && met) {
        // It comes back for the rest, as a reader whose connection broke does.
        await sleep(5)
        last = await follow(path, last.seq, () => true)
      }
      await Promise.all(doing)
      if (errors.length > 0) throw errors[0]
      const wanted = fate === 'cancelled' && met ? ['run.cancelled', 'run.completed'] : ['run.completed']
      if (!wanted.includes(last.type)) throw new Error(`run ${number} (${fate}) of ${where} ended with ${last.type}`)
      if (++runs === RUNS_PER_CONVERSATION) await leave()
    }

    return { run, conversation: () => conversation, leave }
  }

  return { openLane, posts: () => posts, close: () => agent.destroy() }
}
