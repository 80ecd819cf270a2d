import { STATUS_CODES } from 'node:http'
import type { Socket } from 'node:net'
import type { ServerResponse } from 'node:http'
import type { FastifyError, FastifyReply, FastifyRequest } from 'fastify'
import { badRequest, headersTooLarge, requestTimeout, toProblem, uriTooLong, type ProblemError } from '../errors.js'

export const PROBLEM_TYPE = 'application/problem+json; charset=utf-8'

/** What Fastify refuses before it knows a route: the hooks and the error handler do not run. */
export function frameworkProblem (error: FastifyError, request: FastifyRequest, reply: FastifyReply): void {
  const problem = error.statusCode === 414 ? uriTooLong() : badRequest('The path is not properly percent-encoded.')
  void reply.code(problem.status).header('content-type', PROBLEM_TYPE).send(JSON.stringify(toProblem(problem, request.id)))
}

/** What Node's parser refuses: there is no request, only a connection, and it ends with the answer. */
export function answerClientError (error: NodeJS.ErrnoException, socket: Socket): void {
  const { _httpMessage: answering } = socket as Socket & { _httpMessage?: ServerResponse | null }
  // In the middle of an answer (a stream, say) a second one would only corrupt it.
  if (error.code === 'ECONNRESET' || !socket.writable || answering?.headersSent === true) {
    socket.destroy()
    return
  }
  socket.end(rawProblem(problemOf(error.code)))
}

function problemOf (code: string | undefined): ProblemError {
  if (code === 'ERR_HTTP_REQUEST_TIMEOUT') return requestTimeout()
  if (code === 'HPE_HEADER_OVERFLOW') return headersTooLarge()
  return badRequest('The request is not well-formed HTTP/1.1.')
}

/** A whole response, for where there is no `ServerResponse` to write it to. */
export function rawProblem (problem: ProblemError): string {
  const body = JSON.stringify(toProblem(problem))
  return [
    `HTTP/1.1 ${problem.status} ${STATUS_CODES[problem.status]}`,
    `Content-Type: ${PROBLEM_TYPE}`,
    `Content-Length: ${Buffer.byteLength(body)}`,
    'Connection: close',
    '', body
  ].join('\r\n')
}
