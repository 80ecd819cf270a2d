import { Type, type TProperties, type TSchema } from 'typebox'
import { CallId, ConversationId, MessageId, RunId } from './ids.js'
import { StreamData } from './event.js'
import { EVENT_ID } from '../http/event-id.js'
import { Problem } from './problem.js'

export const runParams = Type.Object({ run_id: RunId })
export const callParams = Type.Object({ run_id: RunId, call_id: CallId })
export const messageParams = Type.Object({ run_id: RunId, message_id: MessageId })
export const conversationParams = Type.Object({ conversation_id: ConversationId })

/** A query of these parameters and no others. */
export const query = <Properties extends TProperties>(properties: Properties) => Type.Object(properties, { additionalProperties: false })

/** Where a reader of events goes on. */
export const after = {
  after: Type.Optional(Type.String({
    pattern: EVENT_ID,
    description: 'Only what comes behind the event with this SSE `id`: `<seq>`, or `<seq>.<epoch>` in a later epoch. 0: from the beginning. `last_seq` and `epoch` of a conversation make one as well.',
    examples: ['12', '12.1795629600000']
  }))
}
export const lastEventId = Type.Object({
  'last-event-id': Type.Optional(Type.String({ pattern: EVENT_ID, description: 'As `after`, and stronger: browsers send it when they reconnect.' }))
})

/** What every POST takes. */
export const idempotencyKey = {
  'idempotency-key': Type.Optional(Type.String({
    pattern: '^[\\x21-\\x7e]{1,255}$',
    description: 'Makes a repeat harmless: the same key and body get the first answer, with `Idempotency-Replayed: true`. 1 to 255 visible ASCII characters, yours alone.'
  }))
}
export const postHeaders = Type.Object(idempotencyKey)

const text = (description: string) => ({ type: 'string', description })
export const replayedHeader = { 'Idempotency-Replayed': { type: 'string', enum: ['true'], description: 'This is the answer of an earlier request with the same `Idempotency-Key`.' } }
export const locationHeader = { Location: text('Path of what was created.') }

const described: Record<number, string> = {
  400: 'The request does not parse.',
  401: 'No valid API key.',
  403: 'Not by this name: a server without keys only answers to loopback names and its own.',
  404: 'There is no such thing, or it is another tenant\'s.',
  406: 'None of the accepted media types is on offer.',
  409: 'Something stands in the way; the problem names it.',
  410: 'Those events are no longer kept.',
  413: 'The body is too large.',
  415: 'The body is not JSON.',
  422: 'The request is not valid; `errors` says where.',
  429: 'Too much at once.',
  500: 'Something went wrong here; the log knows it by the id in `instance`.',
  503: 'The service cannot work right now.'
}

/** Problem answers by status. Every route has those that any request can meet. */
export const problems = (...statuses: number[]) => openProblems(401, ...statuses)

/** The same for routes that need no key. */
export function openProblems (...statuses: number[]): Record<number, unknown> {
  return Object.fromEntries([400, 403, 500, 503, ...statuses].sort().map((status) => [status, {
    description: described[status],
    ...(status === 429 || status === 503 ? { headers: { 'Retry-After': { type: 'integer', description: 'Seconds to wait.' } } } : {}),
    content: { 'application/problem+json': { schema: Problem } }
  }]))
}

/** A JSON answer. */
export const json = (description: string, schema: TSchema, headers?: Record<string, unknown>) => ({
  description,
  ...(headers === undefined ? {} : { headers }),
  content: { 'application/json': { schema } }
})

const STREAM_EXAMPLE = [
  'retry: 1000\n',
  'id: 3', 'event: turn.started', 'data: {"seq":3,"run_seq":3,"type":"turn.started", …}\n',
  'event: turn.delta', 'data: {"type":"turn.delta","turn":1,"attempt":1,"lane":"main","offset":0,"text":"The"}\n\n'
].join('\n')

/** The event stream as one of the media types of an answer. */
export const streamContent = {
  'text/event-stream': {
    schema: {
      type: 'string',
      description: 'Frames of an `Event` each: `id` is its `seq`, with `.<epoch>` behind it in a later epoch; `event` is its type. Between them `turn.delta` and `stream.reset`, without an id. `contentSchema` is that of one frame\'s data.',
      contentSchema: StreamData
    },
    example: STREAM_EXAMPLE
  }
}
