import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { EditMessage, MessageReceipt, PostedMessage, PostMessage } from '../src/schemas/message.js'
import { page } from '../src/schemas/page.js'
import { json, messageParams, postHeaders, problems, replayedHeader, runParams } from '../src/schemas/request.js'

const tags = ['Messages']

/** Messages while a run is active. */
export default (async (app) => {
  const { messages } = app.services

  app.post('/runs/:run_id/messages', {
    schema: {
      operationId: 'postMessage',
      summary: 'Send a message while the run is active',
      description: 'Interrupts, steers or queues. 202 means durable: the message will appear in the ledger exactly once, in order.',
      tags,
      params: runParams,
      headers: postHeaders,
      body: PostMessage,
      response: { 202: json('The message is stored.', MessageReceipt, replayedHeader), ...problems(404, 409, 413, 415, 422, 429) }
    }
  }, async (request, reply) => {
    const { run_id: runId } = request.params
    return reply.answer(await request.once(async (caller) => {
      const receipt = await messages.post(caller, runId, request.body)
      return { code: 202, headers: {}, body: JSON.stringify(receipt) }
    }))
  })

  app.get('/runs/:run_id/messages', {
    schema: {
      operationId: 'listWaitingMessages',
      summary: 'List messages that wait for delivery',
      description: 'In the order in which they will be delivered.',
      tags,
      params: runParams,
      response: { 200: json('The messages.', page(PostedMessage, 'PostedMessagePage')), ...problems(404) }
    }
  }, ({ caller, params }) => messages.list(caller, params.run_id))

  app.patch('/runs/:run_id/messages/:message_id', {
    schema: {
      operationId: 'editWaitingMessage',
      summary: 'Change a message that waits for delivery',
      tags,
      params: messageParams,
      body: EditMessage,
      response: { 200: json('The message as it waits now.', PostedMessage), ...problems(404, 409, 413, 415, 422) }
    }
  }, ({ caller, params, body }) => messages.edit(caller, params.run_id, params.message_id, body.content))

  app.delete('/runs/:run_id/messages/:message_id', {
    schema: {
      operationId: 'withdrawWaitingMessage',
      summary: 'Take a waiting message back',
      tags,
      params: messageParams,
      response: { 204: { description: 'It will not be delivered.', type: 'null' }, ...problems(404, 409) }
    }
  }, async ({ caller, params }, reply) => {
    await messages.withdraw(caller, params.run_id, params.message_id)
    return reply.code(204).send(null)
  })
}) satisfies FastifyPluginAsyncTypebox
