import fp from 'fastify-plugin'
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import { badRequest, internal, methodNotAllowed, notFound, payloadTooLarge, ProblemError, statusOf, toProblem, unsupportedMediaType } from '../src/errors.js'
import { PROBLEM_TYPE, rawProblem } from '../src/http/raw-problem.js'
import { errorFacts } from '../src/error-facts.js'
import { requestFacts } from '../src/http/request-log.js'

/** Every error becomes a problem (RFC 9457), whoever raised it: services, Fastify, a crash, an address that is not there. */
export default fp(async (app) => {
  const routes: { path: RegExp, methods: string[] }[] = []
  app.addHook('onRoute', ({ url, method }) => {
    const path = new RegExp(`^${url.split('/').map((part) => part.startsWith(':') ? '[^/]+' : part === '*' ? '.*' : escaped(part)).join('/')}$`)
    routes.push({ path, methods: [method].flat() })
  })

  app.setErrorHandler((error: FastifyError | ProblemError, request, reply) => {
    const problem = problemOf(error, request)
    if (problem.code === 'internal') request.log.error({ ...requestFacts(request), error: errorFacts(error) }, 'request failed')
    // That Redis is away, its connection has said; what it objects to, nobody else says.
    const { cause } = problem
    if (problem.code === 'unavailable' && cause instanceof Error && cause.name === 'ReplyError') {
      request.log.warn({ ...requestFacts(request), error: errorFacts(cause) }, 'Redis refused a command')
    }
    return send(problem, request, reply)
  })

  app.setNotFoundHandler((request, reply) => {
    const path = request.url.split('?', 1)[0] as string
    const allow = [...new Set(routes.filter((route) => route.path.test(path)).flatMap(({ methods }) => methods))].sort()
    return send(allow.length === 0 || allow.includes(request.method) ? notFound('address') : methodNotAllowed(allow), request, reply)
  })

  // Node would answer these two without a body. An expectation may be ignored (RFC 9110, 10.1.1); CONNECT is for proxies.
  app.server.on('checkExpectation', app.routing)
  app.server.on('connect', (_request, socket) => socket.end(rawProblem(badRequest('This is no proxy.'))))
}, { name: 'errors' })

const escaped = (text: string): string => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')

function send (problem: ProblemError, request: FastifyRequest, reply: FastifyReply): FastifyReply {
  const { retry_after_s: retryAfter, allow } = problem.facts
  if (retryAfter !== undefined) reply.header('retry-after', retryAfter)
  if (allow !== undefined) reply.header('allow', allow.join(', '))
  if (problem.status === statusOf('unauthorized')) reply.header('www-authenticate', 'Bearer realm="interlock"')
  return reply.code(problem.status).header('content-type', PROBLEM_TYPE).send(JSON.stringify(toProblem(problem, request.id)))
}

function problemOf (error: FastifyError | ProblemError, request: FastifyRequest): ProblemError {
  if (error instanceof ProblemError) return error
  // Files of /docs that are none, or lie outside of it.
  if (request.routeOptions.url?.startsWith('/docs/') === true && (error.statusCode ?? 500) < 500) return notFound('address')
  switch (error.code) {
    case 'FST_ERR_CTP_BODY_TOO_LARGE': return payloadTooLarge(request.routeOptions.bodyLimit)
    case 'FST_ERR_CTP_INVALID_MEDIA_TYPE': return unsupportedMediaType()
    case 'FST_ERR_CTP_INVALID_CONTENT_LENGTH': return badRequest('The body does not have the length that Content-Length says.')
    case 'ECONNRESET': return badRequest('The connection was closed before the request was complete.')
    default: return internal({ cause: error })
  }
}
