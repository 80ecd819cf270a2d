import { Type, type FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Message } from '../src/core/message.js'
import { fromCursor, toCursor } from '../src/http/cursor.js'
import { eventId } from '../src/http/event-id.js'
import { Conversation, ConversationState, CreateConversation } from '../src/schemas/conversation.js'
import { page, pageQuery } from '../src/schemas/page.js'
import { Repair, RepairReport } from '../src/schemas/repair.js'
import { conversationParams, json, locationHeader, postHeaders, problems, query, replayedHeader } from '../src/schemas/request.js'

const tags = ['Conversations']

/** Bytes: a conversation may begin with a long history. */
const BODY_LIMIT = 8_388_608

const etagHeader = { ETag: { type: 'string', description: 'The version, with `.<epoch>` behind it in a later epoch; quoted.' } }

/** Conversations: create, read, repair, delete. */
export default (async (app) => {
  const { conversations } = app.services

  app.post('/conversations', {
    bodyLimit: BODY_LIMIT,
    schema: {
      operationId: 'createConversation',
      summary: 'Create a conversation',
      description: 'Only needed to begin with messages, or to choose the id: `POST /runs` makes one by itself.',
      tags,
      headers: postHeaders,
      body: CreateConversation,
      response: { 201: json('The conversation.', Conversation, { ...locationHeader, ...replayedHeader }), ...problems(409, 413, 415, 422) }
    }
  }, async (request, reply) => reply.answer(await request.once(async (caller) => {
    const conversation = await conversations.create(caller, request.body)
    return { code: 201, headers: { location: `/conversations/${conversation.id}` }, body: JSON.stringify(conversation) }
  })))

  app.get('/conversations/:conversation_id', {
    schema: {
      operationId: 'getConversation',
      summary: 'Read a conversation',
      description: 'Its numbers, its runs, and what it waits for.',
      tags,
      params: conversationParams,
      response: { 200: json('The conversation.', Conversation), ...problems(404) }
    }
  }, ({ caller, params }) => conversations.get(caller, params.conversation_id))

  app.delete('/conversations/:conversation_id', {
    schema: {
      operationId: 'deleteConversation',
      summary: 'Delete a conversation',
      description: 'With all its data. A run in progress is stopped first.',
      tags,
      params: conversationParams,
      response: { 204: { description: 'It is gone.', type: 'null' }, ...problems(404) }
    }
  }, async ({ caller, params }, reply) => {
    await conversations.remove(caller, params.conversation_id)
    return reply.code(204).send(null)
  })

  app.get('/conversations/:conversation_id/messages', {
    schema: {
      operationId: 'listMessages',
      summary: 'Read the ledger',
      description: 'What a model sees of the conversation, oldest first.',
      tags,
      params: conversationParams,
      querystring: query(pageQuery),
      response: { 200: json('A page of messages.', page(Message, 'MessagePage')), ...problems(404, 422) }
    }
  }, async ({ caller, params, query: { cursor, limit } }) => {
    const scope = ['messages', caller.tenant, params.conversation_id]
    const found = await conversations.messages(caller, params.conversation_id, { cursor: fromCursor(scope, cursor), limit })
    return { data: found.data, next_cursor: toCursor(scope, found.next_cursor) }
  })

  app.get('/conversations/:conversation_id/state', {
    schema: {
      operationId: 'getConversationState',
      summary: 'Read the state row',
      description: 'For operators: the versioned row as it is. Its fields are not part of the contract.',
      tags,
      params: conversationParams,
      headers: Type.Object({ 'if-none-match': Type.Optional(Type.String({ description: 'An `ETag`: 304 if the version is still that one.' })) }),
      response: {
        200: json('The row.', ConversationState, etagHeader),
        304: { description: 'The version is the one named.', headers: etagHeader, type: 'null' },
        ...problems(404)
      }
    }
  }, async ({ caller, params, headers }, reply) => {
    const row = await conversations.state(caller, params.conversation_id)
    // A version says nothing beyond its epoch.
    const etag = `"${eventId({ seq: row.version, epoch: row.epoch })}"`
    reply.headers({ etag, 'cache-control': 'private, no-cache' })
    return matches(headers['if-none-match'], etag) ? reply.code(304).send(null) : reply.send(row)
  })

  app.post('/conversations/:conversation_id/repair', {
    schema: {
      operationId: 'repairConversation',
      summary: 'Look after a conversation that does not go on',
      description: 'For operators. `explain` says what it waits for and who works for it; the others step in, which `conversation.recovered` tells. What does not fit its state is answered 409 and changes nothing.',
      tags,
      params: conversationParams,
      headers: postHeaders,
      body: Repair,
      response: { 200: json('How it stands now.', RepairReport, replayedHeader), ...problems(404, 409, 413, 415, 422) }
    }
  }, async (request, reply) => reply.answer(await request.once(async (caller) => {
    const report = await conversations.repair(caller, request.params.conversation_id, request.body)
    return { code: 200, headers: {}, body: JSON.stringify(report) }
  })))
}) satisfies FastifyPluginAsyncTypebox

/** Weak comparison, as `If-None-Match` wants it (RFC 9110, 13.1.2). */
const matches = (header: string | undefined, etag: string): boolean =>
  header !== undefined && header.split(',').map((one) => one.trim().replace(/^W\//, '')).some((one) => one === '*' || one === etag)
