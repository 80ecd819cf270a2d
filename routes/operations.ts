import type { FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { ProblemError } from '../src/errors.js'
import { Health } from '../src/schemas/offer.js'
import { json, openProblems, problems } from '../src/schemas/request.js'

const tags = ['Operations']
const open = { open: true, quiet: true }
const security: never[] = []

/** For whoever runs the service. */
export default (async (app) => {
  const { health, metrics } = app.services

  app.get('/health/live', {
    config: open,
    schema: { operationId: 'live', summary: 'Whether the process is there', tags, security, response: { 200: json('It is.', Health), ...openProblems() } }
  }, async () => ({ status: 'ok' as const }))

  app.get('/health/ready', {
    config: open,
    schema: { operationId: 'ready', summary: 'Whether the process can work', tags, security, response: { 200: json('It can.', Health), ...openProblems() } }
  }, async () => {
    const { ready, checks } = await health.ready()
    if (!ready) throw new ProblemError('unavailable', 'This process cannot work right now; "checks" says why.', { checks, retry_after_s: 1 })
    return { status: 'ok' as const, checks }
  })

  app.get('/metrics', {
    config: { quiet: true },
    schema: {
      operationId: 'metrics',
      summary: 'Metrics for Prometheus',
      tags,
      response: { 200: { description: 'Prometheus text.', content: { 'text/plain': { schema: { type: 'string' } } } }, ...problems() }
    }
  }, async (_request, reply) => {
    const { contentType, body } = await metrics()
    return reply.header('content-type', contentType).send(body)
  })
}) satisfies FastifyPluginAsyncTypebox
