import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { Decisions, ToolOutputs } from '../src/schemas/action.js'
import { json, postHeaders, problems, replayedHeader, runParams } from '../src/schemas/request.js'
import { Run } from '../src/schemas/run.js'

const tags = ['Actions']

/** What a run in `requires_action` waits for. */
export default (async (app) => {
  const { actions } = app.services

  app.post('/runs/:run_id/decisions', {
    schema: {
      operationId: 'decide',
      summary: 'Decide on calls that need approval',
      description: 'Approves, rejects, edits or answers them: all that is sent, or nothing. Each decision is kept; with the last one that is missing the run goes on.',
      tags,
      params: runParams,
      headers: postHeaders,
      body: Decisions,
      response: { 200: json('The run.', Run, replayedHeader), ...problems(404, 409, 413, 415, 422) }
    }
  }, async (request, reply) => {
    const { run_id: runId } = request.params
    return reply.answer(await request.once(async (caller) => {
      return { code: 200, headers: {}, body: JSON.stringify(await actions.decide(caller, runId, request.body)) }
    }))
  })

  app.post('/runs/:run_id/tool_outputs', {
    schema: {
      operationId: 'submitToolOutputs',
      summary: 'Give the outputs of client tools',
      description: [
        'Singly or together: all that is sent is taken, or nothing.',
        'If one of the calls is none of this run\'s that the client was handed, the answer is 404, and nothing has changed, whatever else was sent.',
        'If some of them are settled, the answer is 409 and names them: their outputs came too late and are kept among the orphans, and the others still wait.'
      ].join(' '),
      tags,
      params: runParams,
      headers: postHeaders,
      body: ToolOutputs,
      response: { 200: json('The run.', Run, replayedHeader), ...problems(404, 409, 413, 415, 422) }
    }
  }, async (request, reply) => {
    const { run_id: runId } = request.params
    return reply.answer(await request.once(async (caller) => {
      return { code: 200, headers: {}, body: JSON.stringify(await actions.submit(caller, runId, request.body)) }
    }))
  })
}) satisfies FastifyPluginAsyncTypebox
