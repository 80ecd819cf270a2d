import { Type, type Static } from 'typebox'
import { Conversation } from './conversation.js'
import { CallId } from './ids.js'

const closed = { additionalProperties: false }
const Time = Type.Union([Type.String({ format: 'date-time' }), Type.Null()])
const reason = { reason: Type.Optional(Type.String({ minLength: 1, maxLength: 1024, description: 'Why, in your words: `conversation.recovered` says it, and a failed call tells the model.' })) }

/** Body of `POST /conversations/:id/repair`. */
export const Repair = Type.Union([
  Type.Object({ action: Type.Literal('explain', { description: 'Changes nothing.' }) }, closed),
  Type.Object({ action: Type.Literal('retry_turn', { description: 'Takes the LLM call away from its worker, or ends the wait for its next try: it begins again at once.' }), ...reason }, closed),
  Type.Object({ action: Type.Literal('fail_call', { description: 'Settles an unsettled call, whatever it waits for, as failed with the code `repaired`.' }), call_id: CallId, ...reason }, closed),
  Type.Object({ action: Type.Literal('release', { description: 'Gives up every claim, as if the workers had died: the turn and calls that only read or are idempotent are tried again, other calls fail with `outcome_unknown`. Removes a lock that is left over, and wakes the workers.' }), ...reason }, closed)
], { title: 'Repair', examples: [{ action: 'explain' }] })
export type Repair = Static<typeof Repair>

/** How a conversation stands, and what was done about it. */
export const RepairReport = Type.Object({
  action: Type.Enum(['explain', 'retry_turn', 'fail_call', 'release']),
  changed: Type.Boolean(),
  detail: Type.Union([Type.String(), Type.Null()], { description: 'What was done, as `conversation.recovered` says it.' }),
  conversation: Conversation,
  claims: Type.Array(Type.Object({
    worker: Type.String(),
    alive: Type.Boolean({ description: 'It shows signs of life. Claims of one that does not are given up by the sweep.' }),
    alive_until: Time,
    turn: Type.Integer(),
    call_id: Type.Union([Type.String(), Type.Null()], { description: 'null: it has the LLM call.' }),
    attempt: Type.Integer()
  }, closed), { description: 'Who works for it.' }),
  lock: Type.Union([Type.Object({ held_until: Type.String({ format: 'date-time' }) }, closed), Type.Null()], { description: 'The lock on its LLM calls; null: it is free.' }),
  due_at: Type.Union([Type.String({ format: 'date-time' }), Type.Null()], { description: 'When the sweep looks at it next; null: never, as for a conversation in which nothing is going on.' }),
  jobs: Type.Array(Type.String(), { description: 'Work that nobody has taken yet.' }),
  findings: Type.Array(Type.String(), { description: 'What row and ledger disagree in; empty, as it always should be. Every action but `explain` mends it.' })
}, { ...closed, title: 'RepairReport' })
export type RepairReport = Static<typeof RepairReport>
