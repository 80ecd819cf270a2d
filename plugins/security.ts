import helmet from '@fastify/helmet'
import fp from 'fastify-plugin'
import { badRequest, forbidden } from '../src/errors.js'

const LOOPBACK = ['localhost', '127.0.0.1', '[::1]']

/** Headers for every answer, and the check of `Host`. */
export default fp(async (app) => {
  await app.register(helmet, {
    // What /docs needs, from our own address only: it works offline, and no other page may frame it.
    contentSecurityPolicy: {
      useDefaults: false,
      directives: {
        defaultSrc: ['\'none\''],
        scriptSrc: ['\'self\''],
        styleSrc: ['\'self\'', '\'unsafe-inline\''],
        imgSrc: ['\'self\'', 'data:'],
        connectSrc: ['\'self\''],
        baseUri: ['\'none\''],
        formAction: ['\'none\''],
        frameAncestors: ['\'none\'']
      }
    },
    referrerPolicy: { policy: 'no-referrer' },
    frameguard: { action: 'deny' },
    // Whoever puts TLS before us decides this for the whole domain.
    strictTransportSecurity: false
  })

  // Without keys, a web page that makes its own name point to loopback could read everything (DNS rebinding, FAULTS S20): it cannot forge Host.
  const open = app.config.apiKeys.length === 0
  const names = new Set([...LOOPBACK, app.config.host.toLowerCase(), `[${app.config.host.toLowerCase()}]`])

  app.addHook('onRequest', async (request, reply) => {
    reply.headers({ 'x-request-id': request.id, 'cache-control': 'no-store' })
    const { host } = request.raw.headers
    if (host === undefined && request.raw.httpVersion !== '1.0') throw badRequest('The Host header is missing.')
    if (open && !names.has((host ?? '').toLowerCase().replace(/:\d*$/, ''))) {
      throw forbidden('As long as no API key is configured, this server only answers to loopback names and to the host it listens on.')
    }
  })
}, { name: 'security', dependencies: ['errors'] })
