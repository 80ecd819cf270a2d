import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { openProblems } from '../src/schemas/request.js'

/** The contract, as this server keeps it. */
export default (async (app) => {
  app.get('/openapi.yaml', {
    config: { open: true },
    schema: {
      operationId: 'openapi',
      summary: 'This document',
      tags: ['Operations'],
      security: [],
      response: { 200: { description: 'OpenAPI 3.1.', content: { 'application/yaml': { schema: { type: 'string' } } } }, ...openProblems() }
    }
  }, async (_request, reply) => reply.header('content-type', 'application/yaml; charset=utf-8').send(app.swagger({ yaml: true })))
}) satisfies FastifyPluginAsyncTypebox
