import { createHash } from 'node:crypto'
import fp from 'fastify-plugin'
import { malformedJson, unsupportedMediaType, validationFailed } from '../src/errors.js'
import { jsonFault } from '../src/http/json-scan.js'

declare module 'fastify' {
  interface FastifyRequest {
    /** SHA-256 of the body's bytes; empty unless the request has an `Idempotency-Key`, for which it is made. */
    bodyHash: string
  }
}

/** JSON, and nothing else. What could not be given back as it came is refused before it is parsed (FAULTS 4.3). */
export default fp(async (app) => {
  const parse = app.getDefaultJsonParser('error', 'error')

  app.decorateRequest('bodyHash', '')
  app.removeAllContentTypeParsers()
  app.addContentTypeParser<Buffer>('application/json', { parseAs: 'buffer' }, (request, bytes, done) => {
    if (request.headers['idempotency-key'] !== undefined) request.bodyHash = createHash('sha256').update(bytes).digest('base64url')
    if (bytes.length === 0) return done(null, undefined)
    const fault = jsonFault(bytes)
    if (fault !== null) return done(malformedJson(fault))
    // The parser's own error repeats what was sent.
    void parse(request, bytes.toString(), (error, body) => {
      done(error === null ? null : malformedJson('The body does not parse as JSON, or has a key like __proto__.'), body)
    })
  })

  app.addHook('preParsing', async ({ headers }) => {
    const charset = /charset\s*=\s*"?([^";\s]*)/i.exec(headers['content-type'] ?? '')?.[1]
    if (charset !== undefined && charset.toLowerCase() !== 'utf-8') throw unsupportedMediaType()
    if ((headers['content-encoding'] ?? 'identity') !== 'identity') throw unsupportedMediaType()
  })

  // What a route does not describe it would ignore.
  app.addHook('preValidation', async ({ body, query, routeOptions: { schema, config } }) => {
    if (schema?.operationId === undefined || config.open === true) return
    const [parameter] = Object.keys(query as object)
    if (schema.querystring === undefined && parameter !== undefined) throw validationFailed([{ in: 'query', pointer: `/${parameter}`, detail: 'unknown field' }])
    if (schema.body === undefined && body !== undefined && JSON.stringify(body) !== '{}') throw validationFailed([{ pointer: '', detail: 'this request takes no body' }])
  })
}, { name: 'body', dependencies: ['errors', 'auth'] })
