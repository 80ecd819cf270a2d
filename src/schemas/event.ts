import { Type, type TProperties, type TSchema } from 'typebox'
import type { EventType } from '../core/event.js'
import { Content } from '../core/message.js'
import { CallError, RunError, StopReason, Usage } from '../core/run.js'
import { OrphanReason, SuspendedCall, SuspensionKind } from './action.js'
import { Conversation, Epoch } from './conversation.js'
import { CreateRun, Run as RunView } from './run.js'
import { ConversationId, RunId } from './ids.js'

const Time = Type.String({ format: 'date-time' })
const turn = { turn: Type.Integer({ minimum: 1 }), lane: Type.String({ description: '`main`: this version has no other.' }) }
const batch = { ...turn, batch_id: Type.String() }
const call = { ...batch, call_id: Type.String(), name: Type.String() }
const args = Type.Object({}, { additionalProperties: true, description: 'As the model wrote them, parsed.' })
const RequestedCall = Type.Object({
  call_id: Type.String(), name: Type.String(), arguments: args,
  raw_arguments: Type.Optional(Type.String({ description: 'What the model wrote, where that could not be read or is not valid: `arguments` is empty then.' }))
}, { title: 'RequestedCall' })
const TokenUsage = Type.Object({ input_tokens: Type.Integer(), output_tokens: Type.Integer(), total_tokens: Type.Integer() }, { title: 'TokenUsage' })
const message = { message_id: Type.String(), turn: Type.Optional(turn.turn), lane: Type.Optional(turn.lane) }
const duration = { duration_ms: Type.Number({ minimum: 0 }) }
const attempt = { attempt: Type.Integer({ minimum: 1 }) }
const end = {
  output: Type.Unknown(),
  usage: Usage,
  stop_reason: Type.Union([StopReason, Type.Null()]),
  error: Type.Union([RunError, Type.Null()])
}
const Run = { run_seq: Type.Integer({ minimum: 1, description: 'Counts the events of the run, without a gap.' }), run_id: RunId }

/** For what can happen to a conversation while no run is active, or after the run it belonged to. */
const MaybeRun = { run_seq: Type.Optional(Run.run_seq), run_id: Type.Optional(RunId) }

const event = (type: EventType, description: string, data: TProperties, run: typeof Run | typeof MaybeRun = Run) => Type.Object({
  seq: Type.Integer({ minimum: 1, description: 'Counts the events of the conversation, without a gap.' }),
  ...run,
  type: Type.Literal(type),
  conversation_id: ConversationId,
  time: Time,
  caused_by: Type.Array(Type.Integer(), { description: '`seq` of the events this one follows from.' }),
  ...data
}, { title: `${type.replace(/(?:^|[._])([a-z])/g, (_, letter: string) => letter.toUpperCase())}Event`, description })

/** What each event says beside the fields all have. Readers ignore fields and types they do not know: later versions add some. */
export const events = {
  'run.created': event('run.created', 'The run is stored.', { input: CreateRun.properties.input, model: Type.String(), on_active_run: Type.String() }),
  'run.started': event('run.started', 'Its first turn is about to begin.', {}),
  'run.requires_action': event('run.requires_action', 'The run waits for a person or the client.', { suspension_id: Type.String(), kind: SuspensionKind }),
  'run.resumed': event('run.resumed', 'Everything it waited for is there.', {}),
  'run.completed': event('run.completed', 'Last event of a run that gave its answer.', end),
  'run.incomplete': event('run.incomplete', 'Last event of a run that reached a limit.', end),
  'run.failed': event('run.failed', 'Last event of a run that could not go on.', end),
  'run.cancelled': event('run.cancelled', 'Last event of a run that was stopped.', { ...end, reason: Type.String() }),
  'turn.started': event('turn.started', 'An LLM call begins; exactly one per turn number.', { ...turn, ...attempt, model: Type.String(), message_count: Type.Integer() }),
  'turn.retrying': event('turn.retrying', 'The turn is tried again: a provider error, a stream that was cut, or a worker that was lost or handed it over.', {
    ...turn, ...attempt, reason: Type.String(), delay_ms: Type.Number(), model: Type.String()
  }),
  'turn.completed': event('turn.completed', 'The model has answered.', {
    ...turn, ...attempt, text: Type.String(), finish_reason: Type.String(), tool_calls: Type.Array(RequestedCall), usage: Type.Union([TokenUsage, Type.Null()])
  }),
  'turn.cancelled': event('turn.cancelled', 'The LLM call was stopped; nothing of it counts.', { ...turn, reason: Type.String() }),
  'batch.started': event('batch.started', 'The tool calls of a turn, in request order.', { ...batch, calls: Type.Array(RequestedCall) }),
  'batch.completed': event('batch.completed', 'Every call of the batch is settled; exactly one per batch that reached its barrier.', {
    ...batch, ...duration, counts: Type.Object({ completed: Type.Integer(), failed: Type.Integer(), cancelled: Type.Integer() })
  }),
  'tool.started': event('tool.started', 'A call is dispatched.', { ...call, arguments: args, ...attempt }),
  'tool.progress': event('tool.progress', 'What a running tool tells: five times a second at most, the newest of it.', { ...call, data: Type.Unknown() }),
  'tool.completed': event('tool.completed', 'A call gave its output. A long one is cut at `max_result_chars`; `GET /runs/{run_id}/calls/{call_id}` has all of it.', {
    ...call, ...duration, output: Type.Unknown(), truncated: Type.Optional(Type.Literal(true))
  }),
  'tool.failed': event('tool.failed', 'A call failed. The model is told so, and goes on.', { ...call, ...duration, error: CallError }),
  'tool.cancelled': event('tool.cancelled', 'A call was stopped, or never started.', { ...call, ...duration, reason: Type.String() }),
  'tool.orphaned': event('tool.orphaned', 'A result came after its call was settled. It is kept for you, and the model is not told.', {
    ...call, reason: OrphanReason, output: Type.Unknown(), truncated: Type.Optional(Type.Literal(true))
  }, MaybeRun),
  'suspension.created': event('suspension.created', 'Calls wait for a person or the client, and nothing else of the batch can go on without them.', {
    ...batch, suspension_id: Type.String(), kind: SuspensionKind, calls: Type.Array(SuspendedCall), expires_at: Type.Union([Time, Type.Null()])
  }),
  'suspension.resolved': event('suspension.resolved', 'Nothing of it waits any more.', {
    ...batch, suspension_id: Type.String(), outcome: Type.Enum(['decided', 'expired', 'superseded'])
  }),
  'message.accepted': event('message.accepted', 'A message for the run is stored: it will appear in the ledger exactly once.', {
    ...message, mode: Type.String(), receipt: Type.Enum(['interrupted', 'queued', 'scheduled']), content: Content, due_at: Type.Optional(Time), edited: Type.Optional(Type.Literal(true))
  }, MaybeRun),
  'message.delivered': event('message.delivered', 'A message entered the ledger, in front of this turn.', message, MaybeRun),
  'message.superseded': event('message.superseded', 'A message was overtaken by another before the model saw it.', message, MaybeRun),
  'message.withdrawn': event('message.withdrawn', 'A message was taken back before the model saw it.', message, MaybeRun),
  'conversation.recovered': event('conversation.recovered', 'Something in the conversation was not as it should be and was mended, or an operator stepped in.', {
    turn: message.turn, lane: message.lane, detail: Type.Unknown()
  }, MaybeRun)
} satisfies Record<EventType, TSchema>

export const Event = Type.Union(Object.values(events), { title: 'Event', description: 'A fact of the log, the same bytes on every read. Ignore types and fields you do not know.' })

/** Streamed text. Published, not stored: it has no `seq` and no SSE `id`. */
export const TurnDelta = Type.Object({
  type: Type.Literal('turn.delta'),
  conversation_id: ConversationId,
  run_id: RunId,
  ...turn,
  ...attempt,
  offset: Type.Integer({ minimum: 0, description: 'Keep `text = text.slice(0, offset) + delta`: exact across reconnects and retries. Whoever connects in mid-turn first gets all text so far, at 0.' }),
  text: Type.String()
}, { title: 'TurnDelta', description: 'SSE event `turn.delta`: a piece of the text the model is writing.' })

/** Tells a reader that its cursor is worth nothing. */
export const StreamReset = Type.Object({
  type: Type.Literal('stream.reset'),
  conversation_id: ConversationId,
  reason: Type.String({ description: '`cursor_ahead`, `events_lost`: Redis lost what it had acknowledged, so that the log ends before the cursor, or has others in the place of those the reader saw. `events_trimmed`: what follows the cursor is no longer kept.' }),
  epoch: Epoch,
  last_seq: Type.Integer({ minimum: 0, description: 'Newest event there is; the stream goes on behind it.' }),
  snapshot: Type.Union([RunView, Conversation, Type.Null()], { description: 'What the stream is of, as it stands now.' })
}, { title: 'StreamReset', description: 'SSE event `stream.reset`: the cursor is worth nothing. Read the conversation or run anew, then go on with what follows.' })

/** The data of one SSE frame. */
export const StreamData = Type.Union([Event, TurnDelta, StreamReset])

export const EventPage = Type.Object({
  data: Type.Array(Event),
  next_cursor: Type.Union([Type.String(), Type.Null()], { description: 'Send it as `after` for what follows; null: nothing does, yet.' }),
  epoch: Epoch
}, { additionalProperties: false, title: 'EventPage' })
