import type { Message } from '../../src/core/message.js'
import { TERMINAL } from '../../src/core/event.js'
import { conversationExists, notFound, validationFailed } from '../../src/errors.js'
import type { Conversation } from '../../src/schemas/conversation.js'
import type { PostedMessage } from '../../src/schemas/message.js'
import type { Call, Run } from '../../src/schemas/run.js'
import type { Caller, EventCursor, LiveItem, Page, Services, StoredEvent } from '../../src/services/services.js'

interface FakeRun { tenant: string, run: Run, calls: Call[], messages: PostedMessage[] }
interface FakeConversation { tenant: string, row: Conversation, messages: Message[], events: StoredEvent[] }
interface Where { conversation_id?: string, run_id?: string }

const TIME = '2026-11-20T10:00:00.000Z'
const USAGE = { input_tokens: 0, output_tokens: 0, total_tokens: 0, llm_calls: 0, tool_calls: 0 }

/**
 * Services that keep everything in memory and let a test say what happens: `emit` an event, `say` a piece of text, `end` a run, `fail` a
 * method. Runs do nothing by themselves.
 */
export function fakeServices () {
  const runs = new Map<string, FakeRun>()
  const conversations = new Map<string, FakeConversation>()
  const keys = new Map<string, { fingerprint: string, operation: string, answer?: { code: number, headers: Record<string, string>, body: string } }>()
  const failures = new Map<string, Error>()
  const calls: string[] = []
  const listeners = new Set<(delta?: { run_id: string, json: string }) => void>()
  let live = 0

  const runOf = ({ tenant }: Caller, id: string): FakeRun => {
    const found = runs.get(id)
    if (found?.tenant !== tenant) throw notFound('run')
    return found
  }
  const conversationOf = ({ tenant }: Caller, id: string): FakeConversation => {
    const found = conversations.get(id)
    if (found?.tenant !== tenant) throw notFound('conversation')
    return found
  }
  const logOf = (caller: Caller, where: Where): FakeConversation =>
    conversationOf(caller, where.conversation_id ?? runOf(caller, where.run_id ?? '').run.conversation_id)
  const isOf = (where: Where) => (event: StoredEvent) => where.run_id === undefined || event.run_id === where.run_id

  function newConversation (tenant: string, id: string, metadata: Record<string, string> = {}): FakeConversation {
    const row: Conversation = {
      id, version: 1, epoch: 1, turn: 0, message_count: 0, last_seq: 0, active_run_id: null, queued_run_ids: [], waiting_for: null, metadata, created_at: TIME
    }
    const made = { tenant, row, messages: [], events: [] }
    conversations.set(id, made)
    return made
  }

  /** Appends an event to the log of a run's conversation. */
  function emit (runId: string, type: string, data: Record<string, unknown> = {}): StoredEvent {
    const { run } = runs.get(runId) as FakeRun
    const { events, row } = conversations.get(run.conversation_id) as FakeConversation
    const seq = events.length + 1
    const runSeq = events.filter((event) => event.run_id === runId).length + 1
    const head = { seq, run_seq: runSeq, type, run_id: runId, conversation_id: run.conversation_id, time: TIME }
    const json = JSON.stringify({ ...head, caused_by: seq === 1 ? [] : [seq - 1], ...data })
    const event = { seq, epoch: row.epoch, type, run_id: runId, json }
    events.push(event)
    row.last_seq = seq
    for (const listener of listeners) listener()
    return event
  }

  /** A piece of streamed text. */
  function say (runId: string, offset: number, text: string): void {
    const { run } = runs.get(runId) as FakeRun
    const json = JSON.stringify({ type: 'turn.delta', conversation_id: run.conversation_id, run_id: runId, turn: 1, attempt: 1, lane: 'main', offset, text })
    for (const listener of listeners) listener({ run_id: runId, json })
  }

  function end (runId: string, status: 'completed' | 'incomplete' | 'failed' | 'cancelled' = 'completed', output: unknown = 'done'): void {
    const { run } = runs.get(runId) as FakeRun
    Object.assign(run, { status, ended_at: TIME, output, current: null })
    emit(runId, `run.${status}`, { output, usage: USAGE, stop_reason: null, error: null, ...(status === 'cancelled' && { reason: 'cancelled' }) })
  }

  function paged<T> (kind: string, items: T[], cursor: string | undefined, limit: number): Page<T> {
    const [name, position] = (cursor ?? `${kind}:0`).split(':')
    if (name !== kind || !/^\d+$/.test(position ?? '')) throw validationFailed([{ in: 'query', pointer: '/cursor', detail: 'is no cursor of this list' }])
    const to = Number(position) + limit
    return { data: items.slice(Number(position), to), next_cursor: to < items.length ? `${kind}:${to}` : null }
  }

  const services: Services = {
    runs: {
      create: async (caller, body) => {
        const conversation = body.conversation_id === undefined
          ? newConversation(caller.tenant, `conv_${caller.operation}`)
          : conversationOf(caller, body.conversation_id)
        const id = `run_${caller.operation}0H`
        const known = runs.get(id)
        if (known !== undefined) return { run: known.run, events: [] }
        const run: Run = {
          id, conversation_id: conversation.row.id, status: 'queued', turn: null, version: 1, created_at: TIME, started_at: null, ended_at: null,
          model: body.model ?? 'scripted', output: null, usage: USAGE, required_action: null, error: null, stop_reason: null,
          metadata: body.metadata ?? {}, current: { phase: 'waiting', turn: null, calls: [] }
        }
        runs.set(id, { tenant: caller.tenant, run, calls: [], messages: [] })
        emit(id, 'run.created', { input: body.input, model: run.model, on_active_run: body.on_active_run ?? 'queue' })
        return { run: { ...run }, events: [] }
      },
      get: async (caller, id) => runOf(caller, id).run,
      list: async (caller, { status, conversation_id: conversation, metadata, cursor, limit }) => paged('runs', [...runs.values()].reverse()
        .filter(({ tenant, run }) => tenant === caller.tenant &&
          (status?.includes(run.status) ?? true) &&
          (conversation ?? run.conversation_id) === run.conversation_id &&
          Object.entries(metadata ?? {}).every(([name, value]) => run.metadata[name] === value))
        .map(({ run }) => run), cursor, limit),
      cancel: async (caller, id) => {
        const { run } = runOf(caller, id)
        if (run.ended_at === null) end(id, 'cancelled', null)
        return run
      },
      wait: async (caller, id, ms) => {
        const { run } = runOf(caller, id)
        await new Promise<void>((resolve) => {
          const look = () => {
            if (run.ended_at === null) return
            clearTimeout(timer)
            listeners.delete(look)
            resolve()
          }
          const timer = setTimeout(() => {
            listeners.delete(look)
            resolve()
          }, ms)
          listeners.add(look)
          look()
        })
        return run
      },
      calls: async (caller, id, { cursor, limit }) => paged('calls', runOf(caller, id).calls, cursor, limit),
      call: async (caller, id, callId) => {
        const found = runOf(caller, id).calls.find((call) => call.call_id === callId)
        if (found === undefined) throw notFound('call')
        return found
      }
    },
    messages: {
      post: async (caller, runId, body) => {
        const { messages } = runOf(caller, runId)
        const message = { message_id: `msg_${caller.operation}`, mode: 'steer' as const, content: body.content, due_at: null, position: messages.length + 1 }
        messages.push(message)
        return { message_id: message.message_id, receipt: 'queued', mode: 'steer', cancelled_call_ids: [], position: message.position }
      },
      list: async (caller, runId) => ({ data: runOf(caller, runId).messages, next_cursor: null }),
      edit: async (caller, runId, messageId, content) => {
        const found = runOf(caller, runId).messages.find((message) => message.message_id === messageId)
        if (found === undefined) throw notFound('message')
        found.content = content
        return found
      },
      withdraw: async (caller, runId, messageId) => {
        const held = runOf(caller, runId)
        if (!held.messages.some((message) => message.message_id === messageId)) throw notFound('message')
        held.messages = held.messages.filter((message) => message.message_id !== messageId)
      }
    },
    actions: {
      decide: async (caller, runId) => runOf(caller, runId).run,
      submit: async (caller, runId) => runOf(caller, runId).run
    },
    orphans: {
      list: async (caller, runId) => {
        runOf(caller, runId)
        return { data: [], next_cursor: null }
      },
      discard: async (caller, runId) => {
        runOf(caller, runId)
        throw notFound('orphan')
      },
      attach: async (caller, runId) => {
        runOf(caller, runId)
        return { message_id: `msg_${caller.operation}`, receipt: 'queued', mode: 'steer', cancelled_call_ids: [], position: 1 }
      }
    },
    conversations: {
      create: async (caller, body) => {
        const id = body.id ?? `conv_${caller.operation}`
        if (conversations.has(id)) throw conversationExists(id)
        const made = newConversation(caller.tenant, id, body.metadata)
        made.messages.push(...(body.messages ?? []).map((message, index): Message => ({
          id: `msg_${index}`, role: message.role, content: message.content ?? '', turn: null, run_id: null, created_at: TIME
        })))
        made.row.message_count = made.messages.length
        return made.row
      },
      get: async (caller, id) => conversationOf(caller, id).row,
      state: async (caller, id) => {
        const { row } = conversationOf(caller, id)
        return { version: row.version, epoch: row.epoch, state: { id } }
      },
      messages: async (caller, id, { cursor, limit }) => paged('messages', conversationOf(caller, id).messages, cursor, limit),
      repair: async (caller, id, { action }) => ({
        action, changed: action !== 'explain', detail: action === 'explain' ? null : action, conversation: conversationOf(caller, id).row, claims: [], lock: null, due_at: null, jobs: [], findings: []
      }),
      remove: async (caller, id) => {
        conversationOf(caller, id)
        conversations.delete(id)
      }
    },
    events: {
      page: async (caller, where, after, limit) => {
        const { events, row } = logOf(caller, where)
        const fault = isGood(events, after) ? null : after.seq > events.length ? 'cursor_ahead' : 'events_lost'
        return { data: fault === null ? events.slice(after.seq).filter(isOf(where)).slice(0, limit) : [], fault, first_seq: 1, last_seq: events.length, epoch: row.epoch }
      },
      live: (caller, where, { after, signal }) => follow(logOf(caller, where), where, after, signal)
    },
    tools: async () => [{
      name: 'http_fetch', kind: 'builtin', description: 'GET a URL', parameters: { type: 'object' }, effects: 'read', idempotent: true, timeout_ms: null, placement: 'local'
    }],
    models: async () => [{ id: 'scripted', default: true }],
    idempotency: {
      begin: async (tenant, key, fingerprint, operation) => {
        const name = `${tenant} ${key}`
        const known = keys.get(name)
        if (known === undefined) {
          keys.set(name, { fingerprint, operation })
          return { status: 'fresh', operation, reservation: '' }
        }
        if (known.fingerprint !== fingerprint) return { status: 'mismatch' }
        return known.answer === undefined ? { status: 'busy' } : { status: 'replay', ...known.answer }
      },
      finish: async (tenant, key, _reservation, answer) => {
        const known = keys.get(`${tenant} ${key}`)
        if (known !== undefined) known.answer = answer
      },
      abandon: async (tenant, key) => {
        keys.delete(`${tenant} ${key}`)
      }
    },
    health: { ready: async () => ({ ready: true, checks: { redis: 'ok' } }) },
    metrics: async () => ({ contentType: 'text/plain; version=0.0.4; charset=utf-8', body: '# HELP up\nup 1\n' })
  }

  const isGood = (log: StoredEvent[], { seq, epoch }: EventCursor) => seq === 0 || (log[seq - 1]?.epoch ?? Infinity) <= epoch

  async function* follow ({ events: log, row }: FakeConversation, where: Where, after: EventCursor, signal: AbortSignal): AsyncGenerator<LiveItem> {
    const deltas: string[] = []
    let wake = () => {}
    const listener = (delta?: { run_id: string, json: string }) => {
      if (delta !== undefined && (where.run_id ?? delta.run_id) === delta.run_id) deltas.push(delta.json)
      wake()
    }
    const stop = () => wake()
    listeners.add(listener)
    signal.addEventListener('abort', stop)
    live++
    try {
      let seq = after.seq
      if (!isGood(log, after)) {
        const reason = seq > log.length ? 'cursor_ahead' : 'events_lost'
        seq = log.length
        yield { kind: 'reset', json: JSON.stringify({ type: 'stream.reset', conversation_id: where.conversation_id ?? '', reason, epoch: row.epoch, last_seq: seq, snapshot: null }) }
      }
      while (!signal.aborted) {
        for (let json = deltas.shift(); json !== undefined; json = deltas.shift()) yield { kind: 'delta', json }
        const event = log[seq]
        if (event === undefined) {
          await new Promise<void>((resolve) => { wake = resolve })
          continue
        }
        seq = event.seq
        if (isOf(where)(event)) yield { kind: 'event', event }
        if (where.run_id === event.run_id && TERMINAL.has(event.type)) return
      }
    } finally {
      live--
      listeners.delete(listener)
      signal.removeEventListener('abort', stop)
    }
  }

  const watched = watch(services, '')

  /** Every method says that it was called, and throws what the test wants it to. */
  function watch<T extends object> (target: T, path: string): T {
    return Object.fromEntries(Object.entries(target).map(([name, part]: [string, unknown]) => {
      const full = path + name
      if (typeof part === 'object') return [name, watch(part as object, `${full}.`)]
      return [name, (...args: unknown[]) => {
        calls.push(full)
        const failure = failures.get(full)
        if (failure !== undefined) throw failure
        return (part as (...args: unknown[]) => unknown)(...args)
      }]
    })) as T
  }

  return {
    services: watched,
    /** Names of the methods that were called, in order. */
    calls,
    /** From now on this method throws; without an error it works again. */
    fail: (method: string, error?: Error) => error === undefined ? failures.delete(method) : failures.set(method, error),
    emit,
    say,
    end,
    /** Readers that have not been let go. */
    readers: () => live,
    run: (id: string) => runs.get(id) as FakeRun,
    conversation: (id: string) => conversations.get(id) as FakeConversation,
    count: () => ({ runs: runs.size, conversations: conversations.size })
  }
}

export type FakeServices = ReturnType<typeof fakeServices>
