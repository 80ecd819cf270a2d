import { createHash, timingSafeEqual } from 'node:crypto'
import fp from 'fastify-plugin'
import { unauthorized } from '../src/errors.js'
import type { Caller } from '../src/services/services.js'

declare module 'fastify' {
  interface FastifyRequest {
    /** Who asks. Its `operation` is this request's id, unless an `Idempotency-Key` gives it another (plugins/idempotency.ts). */
    caller: Caller
  }
  interface FastifyContextConfig {
    /** Answered without a key. */
    open?: boolean
  }
}

/** Bearer keys. Everything needs one once there are any, but for what says `open`, and the pages under /docs. */
export default fp(async (app) => {
  const keys = app.config.apiKeys.map(({ sha256: hash, tenant }) => ({ hash: Buffer.from(hash, 'hex'), tenant }))

  app.decorateRequest('caller')
  app.addHook('onRequest', async (request) => {
    const tenant = keys.length === 0 ? 'default' : tenantOf(request.headers.authorization)
    if (tenant !== undefined) {
      request.caller = { tenant, operation: request.id }
    } else if (!isOpen(request.routeOptions)) {
      throw unauthorized()
    }
  })

  /** Looks at every key, and compares hashes of one length: the time it takes does not tell how much of a key was right. */
  function tenantOf (authorization: string | undefined): string | undefined {
    const [, key] = /^bearer +([^\s]+) *$/i.exec(authorization ?? '') ?? []
    if (key === undefined) return undefined
    const hash = createHash('sha256').update(key).digest()
    return keys.filter((one) => timingSafeEqual(one.hash, hash))[0]?.tenant
  }
}, { name: 'auth', dependencies: ['security', 'shutdown'] })

const isOpen = ({ url, config }: { url?: string, config: { open?: boolean } }): boolean => config.open === true || /^\/docs(\/|$)/.test(url ?? '')
