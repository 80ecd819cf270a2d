import { Type, type Static } from 'typebox'
import { Content } from '../core/message.js'

const closed = { additionalProperties: false }

/** A message while a run is active: what it says, and what it does to the work under way (API.md "Messages while a run is active"). */
export const PostMessage = Type.Object({
  content: Content,
  mode: Type.Optional(Type.Enum(['auto', 'interrupt', 'steer', 'queue'], { default: 'auto', description: '`interrupt`: stop the LLM call or the open batch and start a new turn with this message last. `steer`: deliver at the next turn boundary. `queue`: deliver when the model has given its final answer. `auto`: interrupt where something can be stopped, else deliver with the very next turn.' })),
  queued: Type.Optional(Type.Enum(['deliver', 'supersede'], { default: 'deliver', description: 'What an interrupt does with messages that wait already: deliver them before this one, in order, or mark them superseded.' })),
  completed_calls: Type.Optional(Type.Enum(['keep', 'discard'], { default: 'keep', description: 'What an interrupt does with the settled calls of the open batch: keep them with their results, or let them leave the ledger too.' })),
  after_seconds: Type.Optional(Type.Number({ minimum: 0, maximum: 31_536_000, default: 0, description: 'Seconds until it is due. It is then delivered as `steer`, and never interrupts.' }))
}, { ...closed, title: 'PostMessage' })
export type PostMessage = Static<typeof PostMessage>

export const EditMessage = Type.Object({ content: Content }, { ...closed, title: 'EditMessage' })

/** What became of a posted message. 202 means durable: it will appear in the ledger exactly once. */
export const MessageReceipt = Type.Object({
  message_id: Type.String(),
  receipt: Type.Enum(['interrupted', 'queued', 'scheduled']),
  mode: Type.Enum(['interrupt', 'steer', 'queue'], { description: 'How it is delivered: the mode asked for, or what `auto` came to.' }),
  cancelled_call_ids: Type.Array(Type.String()),
  position: Type.Integer({ description: 'Its place among the waiting messages of the run, from 1; 0: it waits for none.' })
}, { ...closed, title: 'MessageReceipt' })

/** A message that waits for delivery. */
export const PostedMessage = Type.Object({
  message_id: Type.String(),
  mode: Type.Enum(['steer', 'queue']),
  content: Content,
  due_at: Type.Union([Type.String({ format: 'date-time' }), Type.Null()]),
  position: Type.Integer({ minimum: 1 })
}, { ...closed, title: 'PostedMessage' })
export type PostedMessage = Static<typeof PostedMessage>
