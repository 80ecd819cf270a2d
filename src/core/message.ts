import { Type, type Static } from 'typebox'

const closed = { additionalProperties: false }

/** A part of a user message, as the provider takes it. */
export const ContentPart = Type.Union([
  Type.Object({ type: Type.Literal('text'), text: Type.String({ minLength: 1 }) }, closed),
  Type.Object({
    type: Type.Literal('image_url'),
    image_url: Type.Object({ url: Type.String({ minLength: 1 }), detail: Type.Optional(Type.Enum(['auto', 'low', 'high'])) }, closed)
  }, closed)
], { title: 'ContentPart' })
export type ContentPart = Static<typeof ContentPart>

/** Text, or parts of it. Never empty. */
export const Content = Type.Union([Type.String({ minLength: 1 }), Type.Array(ContentPart, { minItems: 1, maxItems: 64 })], { title: 'Content' })
export type Content = Static<typeof Content>

/** A call as the ledger keeps it. `provider_id` is the provider's own id; ours is `call_id`. */
export const LedgerCall = Type.Object({
  call_id: Type.String(),
  name: Type.String(),
  arguments: Type.Object({}, { additionalProperties: true }),
  provider_id: Type.Optional(Type.String())
}, { ...closed, title: 'LedgerCall' })
export type LedgerCall = Static<typeof LedgerCall>

/** A message of the ledger: what a model sees. */
export const Message = Type.Object({
  id: Type.String(),
  role: Type.Enum(['system', 'user', 'assistant', 'tool']),
  content: Type.Union([Content, Type.Literal('')]),
  turn: Type.Union([Type.Integer({ minimum: 0 }), Type.Null()], { description: 'The turn it came with; null for what was there before any turn.' }),
  run_id: Type.Union([Type.String(), Type.Null()]),
  created_at: Type.String({ format: 'date-time' }),
  tool_calls: Type.Optional(Type.Array(LedgerCall)),
  tool_call_id: Type.Optional(Type.String()),
  name: Type.Optional(Type.String())
}, { ...closed, title: 'Message' })
export type Message = Static<typeof Message>
