import { randomUUID } from 'node:crypto'
import { setTimeout as sleep } from 'node:timers/promises'
import type { Problem } from '../../src/errors.js'
import type { Decisions, RequiredAction } from '../../src/schemas/action.js'
import type { CreateRun, Run } from '../../src/schemas/run.js'
import type { Random } from '../simulation/random.js'
import { createClient, type Answer } from '../support/client.js'
import { now } from './journal.js'
import { readAlong, type Segment } from './reader.js'

/** A request of a client, and what it knows of it in the end. */
export interface Sent {
  what: 'run' | 'message' | 'cancel' | 'decide' | 'output' | 'delete'
  /** The text that is to appear in the ledger, where there is one. */
  text: string
  body: unknown
  at: number
  /** `unknown`: some try of it had no answer, and the last one did not say either. */
  outcome: 'accepted' | 'refused' | 'unknown'
  /** Whether a try may have been done without its sender learning it. */
  doubtful: boolean
  answer: Answer | null
  answeredAt: number
}

/** One conversation's life, as its clients know it. */
export interface Session {
  marker: string
  conversation: string | null
  runs: { id: string, text: string, ended: boolean }[]
  sent: Sent[]
  segments: Segment[]
  deleted: boolean
  /** What its clients found wrong. */
  wrong: string[]
  over: boolean
}

export interface Town {
  random: Random
  urls: () => string[]
  toolUrl: string
  /** After this nobody begins anything new. */
  closing: () => boolean
  /** Nobody waits for anything any more. */
  gone: AbortSignal
}

/** How long a client waits for an answer before it tries again. Milliseconds. */
const PATIENCE_MS = 4000

export function newSession (marker: string): Session {
  return { marker, conversation: null, runs: [], sent: [], segments: [], deleted: false, wrong: [], over: false }
}

const PARAMETERS = { type: 'object', properties: { value: { type: 'string' }, ms: { type: 'integer' } }, required: ['value'] }

/** Every kind of tool there is to get wrong, by name. */
function toolbox (url: string): NonNullable<CreateRun['tools']> {
  const http = (name: string, route: string, over: object) => ({ kind: 'http' as const, name, url: `${url}/${route}`, headers: { 'x-tool': name }, parameters: PARAMETERS, ...over })
  return [
    http('read', 'echo', { effects: 'read' }),
    http('write', 'echo', { effects: 'write' }),
    http('idem', 'echo', { idempotent: true }),
    http('slow_read', 'sleep', { effects: 'read' }),
    http('slow_write', 'sleep', { effects: 'write' }),
    http('spread', 'sleep', { effects: 'read', placement: 'spread' }),
    http('fail', 'fail', { effects: 'read' }),
    http('stubborn', 'fail', { idempotent: true, retry: { attempts: 2, backoff_ms: 50 } }),
    http('late', 'sleep', { effects: 'read', timeout_ms: 800 }),
    http('deaf', 'sleep', { effects: 'write', cancellable: false }),
    http('one_by_one', 'echo', { effects: 'write', resources: ['thing'] }),
    http('pay', 'echo', { effects: 'write', approval: 'always' }),
    { kind: 'client', name: 'ask', parameters: PARAMETERS }
  ]
}

/** Tools that may be executed once at most. */
export const ONCE = new Set(['write', 'slow_write', 'deaf', 'one_by_one', 'pay'])

/** Lives one conversation to its end. */
export async function live (session: Session, { random, urls, toolUrl, closing, gone }: Town): Promise<void> {
  let texts = 0
  const say = () => `${++texts} in ${session.marker}`

  async function ask (what: Sent['what'], method: string, path: string, body?: unknown, text = ''): Promise<Sent> {
    const sent: Sent = { what, text, body, at: now(), outcome: 'unknown', doubtful: false, answer: null, answeredAt: 0 }
    session.sent.push(sent)
    const headers: Record<string, string> = method === 'POST' ? { 'idempotency-key': randomUUID() } : {}
    while (!gone.aborted) {
      const from = urls()
      if (from.length === 0) {
        await sleep(100)
        continue
      }
      try {
        const answer = await createClient(random.pick(from)).request(method, path, { body, headers, signal: AbortSignal.any([gone, AbortSignal.timeout(PATIENCE_MS)]) })
        sent.answer = answer
        sent.answeredAt = now()
        if (answer.status >= 500 && answer.status !== 503) session.wrong.push(`I-: ${method} ${path} was answered ${answer.status}`)
        const retryable = answer.status >= 400 && (JSON.parse(answer.text) as Problem).retryable
        if (answer.status < 300 || !retryable) {
          // Whoever deletes twice is told the second time that there is nothing, and knows that it was the first time.
          const done = answer.status < 300 || (what === 'delete' && answer.status === 404 && sent.doubtful)
          sent.outcome = done ? 'accepted' : 'refused'
          return sent
        }
        if (answer.status === 503) sent.doubtful = true
        await sleep(random.int(100, 600))
      } catch {
        sent.doubtful = true
        await sleep(random.int(50, 400))
      }
    }
    return sent
  }

  async function start (first: boolean): Promise<void> {
    const text = say()
    const body: CreateRun = {
      input: text,
      ...(session.conversation !== null && { conversation_id: session.conversation }),
      ...(!first && { on_active_run: random.pick(['queue', 'queue', 'interrupt', 'reject'] as const) }),
      tools: toolbox(toolUrl).filter(() => random.chance(0.6)),
      limits: { tool_timeout_ms: 5000 },
      tool_policy: { suspension: random.pick(['grouped', 'grouped', 'sequential', 'barrier']), parallel: random.chance(0.9) }
    }
    const sent = await ask('run', 'POST', '/runs', body, text)
    if (sent.outcome !== 'accepted') return
    const run = JSON.parse(sent.answer?.text ?? '') as Run
    session.conversation ??= run.conversation_id
    if (run.conversation_id !== session.conversation) session.wrong.push(`I5: ${run.id} is in ${run.conversation_id}, not in ${session.conversation}`)
    session.runs.push({ id: run.id, text, ended: false })
  }

  async function act (): Promise<void> {
    const run = random.pick(session.runs)
    const kind = random.next()
    if (kind < 0.3) return await start(false)
    if (kind < 0.42) {
      await ask('cancel', 'POST', `/runs/${run.id}/cancel`)
      return
    }
    if (kind < 0.47) {
      const sent = await ask('delete', 'DELETE', `/conversations/${session.conversation}`)
      session.deleted = sent.outcome !== 'refused'
      return
    }
    const content = say()
    await ask('message', 'POST', `/runs/${run.id}/messages`, {
      content, mode: random.pick(['auto', 'interrupt', 'steer', 'queue']), ...(random.chance(0.2) && { queued: 'supersede' }), ...(random.chance(0.2) && { completed_calls: 'discard' })
    }, content)
  }

  /** What people and clients answer, in parts, in every way, and now and then two at once. */
  async function answer (run: string, action: RequiredAction): Promise<void> {
    const some = action.calls.filter(() => random.chance(0.7))
    const approvals = some.filter(({ kind }) => kind === 'approval')
    const outputs = some.filter(({ kind }) => kind === 'client_tool')
    const decide = async () => {
      const decisions = approvals.map(({ call_id, arguments: args }): Decisions['decisions'][number] => {
        const kind = random.next()
        if (kind < 0.5) return { call_id, decision: 'approve' }
        if (kind < 0.7) return { call_id, decision: 'reject', reason: 'no' }
        return { call_id, decision: 'edit', arguments: { ...args, value: `${String((args as { value?: unknown }).value)} edited ${random.int(1, 1_000_000)}` } }
      })
      if (decisions.length > 0) await ask('decide', 'POST', `/runs/${run}/decisions`, { suspension_id: action.suspension_id, decisions })
    }
    const submit = async () => {
      if (outputs.length > 0) await ask('output', 'POST', `/runs/${run}/tool_outputs`, { outputs: outputs.map(({ call_id }) => ({ call_id, output: `output ${random.int(1, 1_000_000)} for ${call_id}` })) })
    }
    await Promise.all([decide(), submit(), ...random.chance(0.3) ? [decide(), submit()] : []])
  }

  /** Looks after its runs until none is left. */
  async function attend (acting: () => boolean): Promise<void> {
    while (!gone.aborted && !session.deleted && (acting() || session.runs.some(({ ended }) => !ended))) {
      await sleep(random.int(200, 500))
      for (const run of session.runs.filter(({ ended }) => !ended)) {
        const [url] = [random.pick(urls())]
        if (url === undefined) continue
        const found = await createClient(url).request('GET', `/runs/${run.id}`, { signal: AbortSignal.any([gone, AbortSignal.timeout(PATIENCE_MS)]) }).catch(() => null)
        if (found?.status === 404 && !session.sent.some(({ what }) => what === 'delete')) session.wrong.push(`I14: ${run.id} is gone`)
        if (found?.status !== 200) continue
        const { ended_at: ended, required_action: action } = JSON.parse(found.text) as Run
        run.ended = ended !== null
        if (action !== null) await answer(run.id, action)
      }
    }
  }

  await start(true)
  if (session.conversation !== null) {
    const following = Array.from({ length: random.int(1, 2) }, () => {
      const path = random.chance(0.5) ? `/conversations/${session.conversation}/events` : `/runs/${session.runs[0]?.id}/events`
      return readAlong({ path, random, urls, segments: session.segments, over: () => session.over || session.deleted || gone.aborted })
    })
    let acting = true
    const actions = async () => {
      for (let left = random.int(0, 4); left > 0 && !closing() && !session.deleted; left--) {
        await sleep(random.int(50, 2000))
        if (!closing()) await act()
      }
      acting = false
    }
    await Promise.all([actions(), attend(() => acting)])
    session.over = true
    await Promise.all(following)
  }
  session.over = true
}
