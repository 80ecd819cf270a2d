import type { NewMessage } from '../core/command.js'
import type { Message } from '../core/message.js'
import { conversationExists, noCursor, notFound, unavailable, validationFailed, type FieldError } from '../errors.js'
import type { Ids } from '../engine/ports.js'
import type { SeedMessage } from '../schemas/conversation.js'
import { answering, rowOf, type Context } from './context.js'
import { conversationView } from './conversation-view.js'
import { createRepairService } from './repair.js'
import type { Services } from './services.js'

/** Conversations: created, read, looked after, removed. */
export function createConversationService (context: Context): Services['conversations'] {
  const { store, reads, executed, clock, ids } = context
  return {
    create: (caller, body) => answering(async () => {
      const id = body.id ?? `conv_${caller.operation}`
      const messages = body.messages ?? []
      const faults = seedFaults(messages)
      if (faults.length > 0) throw validationFailed(faults)
      const { refusal, row } = await executed.execute(id, {
        type: 'CreateConversation',
        at: clock.now(),
        conversation_id: id,
        operation: caller.operation,
        tenant: caller.tenant,
        metadata: body.metadata ?? {},
        messages: seed(messages, ids),
        has_system: messages[0]?.role === 'system'
      })
      const repeated = refusal === 'exists' && row?.state.tenant === caller.tenant && row.state.seen.includes(caller.operation)
      if (row === null) throw unavailable()
      if (refusal !== null && !repeated) throw conversationExists(id)
      return conversationView(row, clock.now())
    }),

    get: (caller, id) => answering(async () => conversationView(await rowOf(context, caller, id), clock.now())),

    state: (caller, id) => answering(async () => {
      const { version, epoch, state } = await rowOf(context, caller, id)
      return { version, epoch, state: state as unknown as Record<string, unknown> }
    }),

    messages: (caller, id, { cursor, limit }) => answering(async () => {
      const { state } = await rowOf(context, caller, id)
      const from = cursor === undefined ? 0 : Number(cursor)
      if (!Number.isSafeInteger(from) || from < 0) throw noCursor()
      const data = (await reads.ledger(id, from, limit)).map((json) => JSON.parse(json) as Message)
      const next = from + data.length
      return { data, next_cursor: next < state.messages ? String(next) : null }
    }),

    repair: createRepairService(context),

    remove: (caller, id) => answering(async () => {
      const { state } = await rowOf(context, caller, id)
      const runs = [...state.queue.map((run) => run.id), ...state.run === null ? [] : [state.run.id]]
      for (const run of runs) await executed.execute(id, { type: 'CancelRun', at: clock.now(), run_id: run, reason: 'conversation_deleted' })
      if (!await store.remove(id)) throw notFound('conversation')
      executed.forget(id)
    })
  }
}

/** Tool calls must be answered, all of them, in order, right behind their message: providers accept nothing else. */
function seedFaults (messages: SeedMessage[]): FieldError[] {
  const faults: FieldError[] = []
  const used = new Set<string>()
  let open: string[] = []
  messages.forEach((message, i) => {
    const pointer = `/messages/${i}`
    if (message.role === 'system' && i > 0) faults.push({ pointer: `${pointer}/role`, detail: 'a system message only as the first' })
    if (message.role === 'tool') {
      if (open[0] !== message.tool_call_id) faults.push({ pointer: `${pointer}/tool_call_id`, detail: 'must answer the next unanswered tool call of the assistant message before it' })
      open = open.slice(1)
      return
    }
    if (open.length > 0) faults.push({ pointer, detail: `the tool calls ${open.join(', ')} must be answered first` })
    open = []
    if (message.role !== 'assistant') return
    const calls = message.tool_calls ?? []
    if (calls.length === 0 && (message.content ?? '') === '') faults.push({ pointer: `${pointer}/content`, detail: 'required: the message has no tool calls' })
    for (const [k, { id }] of calls.entries()) {
      if (used.has(id)) faults.push({ pointer: `${pointer}/tool_calls/${k}/id`, detail: 'used before in this conversation' })
      used.add(id)
      open.push(id)
    }
  })
  if (open.length > 0) faults.push({ pointer: `/messages/${messages.length - 1}`, detail: `the tool calls ${open.join(', ')} are not answered` })
  return faults
}

function seed (messages: SeedMessage[], ids: Ids): NewMessage[] {
  const callIds = new Map<string, string>()
  return messages.map((message): NewMessage => {
    const id = `msg_${ids.next()}`
    switch (message.role) {
      case 'system':
      case 'user': return { id, ...message }
      case 'tool': return { id, role: 'tool', content: message.content, tool_call_id: callIds.get(message.tool_call_id) as string }
      case 'assistant': {
        const calls = message.tool_calls?.map(({ id: provider, name, arguments: args }) => {
          const callId = `call_${ids.next()}`
          callIds.set(provider, callId)
          return { call_id: callId, name, arguments: args, provider_id: provider }
        })
        return { id, role: 'assistant', content: message.content ?? '', ...(calls && { tool_calls: calls }) }
      }
    }
  })
}
