import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Orphan } from '../src/schemas/action.js'
import { MessageReceipt } from '../src/schemas/message.js'
import { page } from '../src/schemas/page.js'
import { callParams, json, postHeaders, problems, replayedHeader, runParams } from '../src/schemas/request.js'

const tags = ['Orphans']

/** Results that came after their calls were settled. */
export default (async (app) => {
  const { orphans } = app.services

  app.get('/runs/:run_id/orphans', {
    schema: {
      operationId: 'listOrphans',
      summary: 'List results that came too late',
      description: 'Oldest first. The model has not seen them. The newest 50 of a conversation are kept, for seven days.',
      tags,
      params: runParams,
      response: { 200: json('The orphans.', page(Orphan, 'OrphanPage')), ...problems(404) }
    }
  }, ({ caller, params }) => orphans.list(caller, params.run_id))

  app.delete('/runs/:run_id/orphans/:call_id', {
    schema: {
      operationId: 'discardOrphan',
      summary: 'Discard a late result',
      tags,
      params: callParams,
      response: { 204: { description: 'It is gone.', type: 'null' }, ...problems(404) }
    }
  }, async ({ caller, params }, reply) => {
    await orphans.discard(caller, params.run_id, params.call_id)
    return reply.code(204).send(null)
  })

  app.post('/runs/:run_id/orphans/:call_id/attach', {
    schema: {
      operationId: 'attachOrphan',
      summary: 'Hand a late result to the model',
      description: 'As a user message in front of the next LLM call: of the active run, or of the next one. It leaves the orphans.',
      tags,
      params: callParams,
      headers: postHeaders,
      response: { 202: json('The message is stored.', MessageReceipt, replayedHeader), ...problems(404, 409, 415, 422) }
    }
  }, async (request, reply) => {
    const { run_id: runId, call_id: callId } = request.params
    return reply.answer(await request.once(async (caller) => {
      return { code: 202, headers: {}, body: JSON.stringify(await orphans.attach(caller, runId, callId)) }
    }))
  })
}) satisfies FastifyPluginAsyncTypebox
