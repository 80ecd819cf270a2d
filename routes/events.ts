import { Type, type FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import type { FastifyReply } from 'fastify'
import { eventsTrimmed, notAcceptable, validationFailed } from '../src/errors.js'
import { preferred } from '../src/http/accept.js'
import { eventId, readEventId } from '../src/http/event-id.js'
import { EventPage } from '../src/schemas/event.js'
import { DEFAULT_LIMIT, eventLimit } from '../src/schemas/page.js'
import { after, conversationParams, lastEventId, problems, query, runParams, streamContent } from '../src/schemas/request.js'
import type { Caller, EventCursor, EventSource } from '../src/services/services.js'

const tags = ['Events']

const schema = {
  tags,
  headers: lastEventId,
  querystring: query({ ...after, limit: Type.Optional(eventLimit) }),
  response: {
    200: { description: 'The stream, or with `Accept: application/json` a page.', content: { ...streamContent, 'application/json': { schema: EventPage } } },
    ...problems(404, 406, 410, 422, 429)
  }
}

/**
 * The log, live or by page. No `HEAD`: it would run the endless handler. A page is written from the stored bytes, so that an event is the
 * same on every read.
 */
export default (async (app) => {
  const { runs, conversations, events } = app.services

  app.get('/runs/:run_id/events', {
    exposeHeadRoute: false,
    schema: {
      ...schema,
      operationId: 'streamRunEvents',
      summary: 'Events of a run',
      description: 'From the beginning or from where a reader stopped, then live. Ends after the last event of the run; who has that already is answered 204, which also stops a browser from reconnecting.',
      params: runParams,
      response: { ...schema.response, 204: { description: 'The run has ended, and there is nothing after that cursor.', type: 'null' } }
    }
  }, async ({ caller, params, headers, query }, reply) => {
    const where = { run_id: params.run_id }
    const from = readEventId(headers['last-event-id'] ?? query.after ?? '0')
    if (wantsPage(headers.accept, query.limit)) return eventPage(caller, where, from, reply, query.limit)
    const run = await runs.get(caller, params.run_id)
    if (run.ended_at !== null) {
      const { data, fault } = await events.page(caller, where, from, 1)
      if (data.length === 0 && fault === null) return reply.code(204).send(null)
    }
    return reply.stream(200, (signal) => events.live(caller, where, { after: from, signal }))
  })

  app.get('/conversations/:conversation_id/events', {
    exposeHeadRoute: false,
    schema: {
      ...schema,
      operationId: 'streamConversationEvents',
      summary: 'Events of a conversation',
      description: 'One stream over all its runs. Does not end by itself.',
      params: conversationParams
    }
  }, async ({ caller, params, headers, query }, reply) => {
    const where = { conversation_id: params.conversation_id }
    const from = readEventId(headers['last-event-id'] ?? query.after ?? '0')
    if (wantsPage(headers.accept, query.limit)) return eventPage(caller, where, from, reply, query.limit)
    await conversations.get(caller, params.conversation_id)
    return reply.stream(200, (signal) => events.live(caller, where, { after: from, signal }))
  })

  async function eventPage (caller: Caller, where: EventSource, after: EventCursor, reply: FastifyReply, limit = DEFAULT_LIMIT): Promise<FastifyReply> {
    const { data, fault, first_seq: oldest, last_seq: newest, epoch } = await events.page(caller, where, after, limit)
    if (fault === 'events_trimmed') throw eventsTrimmed(oldest)
    if (fault !== null) {
      const detail = fault === 'cursor_ahead' ? `is ahead of the newest event, ${newest}: what it counted is lost` : `names an event that is lost; the numbers up to ${newest} are of others now`
      throw validationFailed([{ in: 'query', pointer: '/after', detail }])
    }
    const last = data.at(-1)
    const next = last !== undefined && data.length === limit && last.seq < newest ? JSON.stringify(eventId(last)) : 'null'
    return reply.header('content-type', 'application/json; charset=utf-8').send(`{"data":[${data.map(({ json }) => json).join(',')}],"next_cursor":${next},"epoch":${epoch}}`)
  }
}) satisfies FastifyPluginAsyncTypebox

function wantsPage (accept: string | undefined, limit: number | undefined): boolean {
  const type = preferred(accept, ['text/event-stream', 'application/json'])
  if (type === undefined) throw notAcceptable(['text/event-stream', 'application/json'])
  if (type === 'text/event-stream' && limit !== undefined) throw validationFailed([{ in: 'query', pointer: '/limit', detail: 'is for pages: send "Accept: application/json" with it' }])
  return type === 'application/json'
}
