import fp from 'fastify-plugin'
import { unavailable } from '../src/errors.js'

declare module 'fastify' {
  interface FastifyInstance {
    /** Aborted when the app begins to close: whoever waits for something slow answers now. */
    closing: AbortSignal
  }
}

/** Requests that still arrive on open connections while we close are sent elsewhere. */
export default fp(async (app) => {
  const closing = new AbortController()
  app.decorate('closing', closing.signal)
  app.addHook('preClose', async () => closing.abort())
  app.addHook('onRequest', async () => {
    if (closing.signal.aborted) throw unavailable()
  })
}, { name: 'shutdown', dependencies: ['errors', 'security'] })
