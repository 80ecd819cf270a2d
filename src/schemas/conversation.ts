import { Type, type Static } from 'typebox'
import { Content } from '../core/message.js'
import { CONVERSATION_ID, ConversationId, RunId } from './ids.js'
import { Metadata } from './run.js'

const closed = { additionalProperties: false }

/** A message a new conversation starts with. Tool calls must be answered, in order, right behind their message. */
export const SeedMessage = Type.Union([
  Type.Object({ role: Type.Literal('system'), content: Type.String({ minLength: 1 }) }, closed),
  Type.Object({ role: Type.Literal('user'), content: Content }, closed),
  Type.Object({
    role: Type.Literal('assistant'),
    content: Type.Optional(Type.String()),
    tool_calls: Type.Optional(Type.Array(Type.Object({ id: Type.String({ minLength: 1, maxLength: 64 }), name: Type.String({ pattern: '^[a-zA-Z0-9_-]{1,64}$' }), arguments: Type.Object({}, { additionalProperties: true }) }, closed), { minItems: 1, maxItems: 128 }))
  }, closed),
  Type.Object({ role: Type.Literal('tool'), tool_call_id: Type.String({ minLength: 1, maxLength: 64 }), content: Type.String({ minLength: 1 }) }, closed)
], { title: 'SeedMessage' })
export type SeedMessage = Static<typeof SeedMessage>

export const CreateConversation = Type.Object({
  id: Type.Optional(Type.String({ pattern: CONVERSATION_ID, description: 'A name of your own choosing; no two conversations of a server have the same, also of different tenants. Absent: one is minted.' })),
  messages: Type.Optional(Type.Array(SeedMessage, { maxItems: 1000, description: 'What was said before. A system message only as the first.' })),
  metadata: Type.Optional(Metadata)
}, {
  ...closed,
  title: 'CreateConversation',
  examples: [{ messages: [{ role: 'system', content: 'You are a librarian.' }] }]
})
export type CreateConversation = Static<typeof CreateConversation>

const Time = Type.Union([Type.String({ format: 'date-time' }), Type.Null()])

/** What one unsettled call of the open batch waits for. */
export const WaitingCall = Type.Object({
  call_id: Type.String(),
  name: Type.String(),
  waits_for: Type.Enum(['worker', 'result', 'retry', 'call', 'resource', 'limit', 'approval', 'client_tool'], {
    description: '`worker`: that one takes it. `result`: it runs. `retry`: the time of its next try. `call`: calls it refers to, or that must be decided on first. `resource`: calls that hold a resource of it. `limit`: room under the run\'s or its tool\'s limit, or its turn where calls go one at a time. `approval`, `client_tool`: a decision, an output of the client.'
  }),
  behind: Type.Array(Type.String(), { description: 'The calls that stand in its way.' }),
  attempt: Type.Integer({ description: 'How often it was started.' }),
  worker: Type.Union([Type.String(), Type.Null()], { description: 'Who runs it.' }),
  due_at: Time
}, { ...closed, title: 'WaitingCall' })

/** What a conversation is waiting for, in words a person can act on; null when nothing is going on. */
export const WaitingFor = Type.Object({
  kind: Type.Enum(['worker', 'model', 'tools', 'action', 'retry', 'due_time']),
  detail: Type.String(),
  since: Type.Union([Type.String({ format: 'date-time' }), Type.Null()], { description: 'Since when; null where only the time it lasts is known.' }),
  due_at: Type.Union([Type.String({ format: 'date-time' }), Type.Null()], { description: 'When time ends the wait if nothing else does: a retry, an expiry, a due time, else the run\'s timeout. null: it does not.' }),
  run_id: Type.Union([RunId, Type.Null()], { description: 'The active run.' }),
  worker: Type.Union([Type.String(), Type.Null()], { description: 'Who has the LLM call.' }),
  calls: Type.Array(WaitingCall, { description: 'The unsettled calls of the open batch, in request order.' })
}, { ...closed, title: 'WaitingFor' })

/** Which of the histories of Redis this is read from. */
export const Epoch = Type.Integer({
  minimum: 1,
  description: '1 on a fresh Redis; greater when it was restarted or failed over since, because what it had acknowledged may be lost then, and when a conversation of this name was deleted before. Within one epoch `version` and `last_seq` never go back, and a `seq` names one content.'
})

export const Conversation = Type.Object({
  id: ConversationId,
  version: Type.Integer({ description: 'Raised by every change.' }),
  epoch: Epoch,
  turn: Type.Integer({ description: 'Turns so far: the conversation\'s logical clock.' }),
  message_count: Type.Integer({ description: 'Messages in the ledger.' }),
  last_seq: Type.Integer({ description: '`seq` of its newest event.' }),
  active_run_id: Type.Union([RunId, Type.Null()]),
  queued_run_ids: Type.Array(RunId, { description: 'Runs that wait, in order.' }),
  waiting_for: Type.Union([WaitingFor, Type.Null()], { description: 'What has to happen next; null when nothing is going on.' }),
  metadata: Metadata,
  created_at: Type.String({ format: 'date-time' })
}, { ...closed, title: 'Conversation' })
export type Conversation = Static<typeof Conversation>

/** The state row as operators see it. */
export const ConversationState = Type.Object({
  version: Type.Integer(),
  epoch: Epoch,
  state: Type.Object({}, { additionalProperties: true, description: 'The row as it is. Its fields are not part of the contract.' })
}, { ...closed, title: 'ConversationState' })
export type ConversationState = Static<typeof ConversationState>
