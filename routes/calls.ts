import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { fromCursor, toCursor } from '../src/http/cursor.js'
import { page, pageQuery } from '../src/schemas/page.js'
import { callParams, json, problems, query, runParams } from '../src/schemas/request.js'
import { Call } from '../src/schemas/run.js'

const tags = ['Runs']

/** Tool calls of a run, with all that is known of each. */
export default (async (app) => {
  const { runs } = app.services

  app.get('/runs/:run_id/calls', {
    schema: {
      operationId: 'listCalls',
      summary: 'List the tool calls of a run',
      description: 'Oldest first, in request order.',
      tags,
      params: runParams,
      querystring: query(pageQuery),
      response: { 200: json('A page of calls.', page(Call, 'CallPage')), ...problems(404, 422) }
    }
  }, async ({ caller, params, query: { cursor, limit } }) => {
    const scope = ['calls', caller.tenant, params.run_id]
    const found = await runs.calls(caller, params.run_id, { cursor: fromCursor(scope, cursor), limit })
    return { data: found.data, next_cursor: toCursor(scope, found.next_cursor) }
  })

  app.get('/runs/:run_id/calls/:call_id', {
    schema: {
      operationId: 'getCall',
      summary: 'Read a tool call',
      description: 'With its whole output, never cut.',
      tags,
      params: callParams,
      response: { 200: json('The call.', Call), ...problems(404) }
    }
  }, ({ caller, params }) => runs.call(caller, params.run_id, params.call_id))
}) satisfies FastifyPluginAsyncTypebox
