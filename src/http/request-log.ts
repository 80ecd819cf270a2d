import { LogController, type FastifyReply, type FastifyRequest } from 'fastify'
import { errorFacts } from '../error-facts.js'

const quiet = () => { /* told once, by requestCompleted or the errors plugin */ }

/**
 * One line per request, with ids as fields: never a body, a header, a query, or a path as the client wrote it. Readiness probes and
 * the like only show at level `debug`.
 */
export function createRequestLog (): LogController {
  return Object.assign(new LogController({ requestIdLogLabel: 'request_id' }), {
    incomingRequest: quiet,
    defaultErrorLog: quiet,
    routeNotFound: quiet,
    serviceUnavailable: quiet,
    requestCompleted (error: Error | null | undefined, request: FastifyRequest, reply: FastifyReply) {
      const level = reply.statusCode >= 500 ? 'error' : request.routeOptions.config.quiet === true ? 'debug' : 'info'
      request.log[level]({ ...requestFacts(request), status: reply.statusCode, ms: Math.round(reply.elapsedTime), ...(error == null ? {} : { error: errorFacts(error) }) }, 'request')
    },
    streamError (error: Error, request: FastifyRequest) {
      request.log.warn({ ...requestFacts(request), error: errorFacts(error) }, 'answer cut off')
    },
    writeHeadError (error: Error, request: FastifyRequest) {
      request.log.error({ ...requestFacts(request), error: errorFacts(error) }, 'headers refused')
    },
    serializerError (error: Error, request: FastifyRequest) {
      request.log.error({ ...requestFacts(request), error: errorFacts(error) }, 'answer cannot be written')
    }
  })
}

declare module 'fastify' {
  interface FastifyContextConfig {
    /** Asked so often by machines that a line each would drown the rest. */
    quiet?: boolean
  }
}

/** What a request was about. The route is the pattern, and ids are only taken when they look like ids. */
export function requestFacts (request: FastifyRequest): Record<string, unknown> {
  const ids = Object.entries((request.params ?? {}) as Record<string, unknown>)
    .filter(([name, value]) => name.endsWith('_id') && typeof value === 'string' && /^[\w-]{1,64}$/.test(value))
  return { method: request.method, route: request.routeOptions.url ?? null, tenant: request.caller?.tenant, ...Object.fromEntries(ids) }
}
