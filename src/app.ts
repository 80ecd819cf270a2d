import { join } from 'node:path'
import autoload from '@fastify/autoload'
import type { TypeBoxTypeProvider } from '@fastify/type-provider-typebox'
import Fastify, { type FastifyBaseLogger, type FastifyInstance } from 'fastify'
import { ulid } from 'ulid'
import { answerClientError, frameworkProblem } from './http/raw-problem.js'
import { createRequestLog } from './http/request-log.js'
import { validatorCompiler } from './http/validator.js'
import type { Services } from './services/services.js'

export interface HttpConfig {
  /** Who may call, for which tenant: the key's SHA-256 in hexadecimal. Empty: whoever reaches us by a loopback name or by `host`, as tenant `default`. */
  apiKeys: { sha256: string, tenant: string }[]
  /** The host name or address we listen on. */
  host: string
  /** Milliseconds of silence after which a stream gets a comment. Default 15,000. */
  heartbeatMs?: number
  /** Milliseconds after which a reader that takes nothing is cut off. Default 60,000; more than `heartbeatMs`. */
  stallMs?: number
  /** Open streams of this process; one more is answered 429. Default 10,000. */
  maxStreams?: number
  /** Open connections of this process; one more is closed at once. Default 20,000. */
  maxConnections?: number
  /** Milliseconds a request may take to arrive. Default 15,000. */
  requestTimeoutMs?: number
}

export interface AppOptions {
  services: Services
  config: HttpConfig
  /** `operations`: only what an operator asks of a process that serves no API. Default: everything. */
  routes?: 'all' | 'operations'
  /** Absent: nothing is logged. */
  logger?: FastifyBaseLogger
}

declare module 'fastify' {
  interface FastifyInstance {
    services: Services
    config: Required<HttpConfig>
  }
}

/** Bytes of a body, unless its route says otherwise. */
const BODY_LIMIT = 1_048_576

/** Milliseconds without a byte either way after which a connection is closed while a request is under way. */
const CONNECTION_TIMEOUT = 60_000

/** The whole HTTP side, ready for `listen` or `inject`. Asks nothing of the services before the first request, and does not close them. */
export async function buildApp ({ services, config, routes = 'all', logger }: AppOptions): Promise<FastifyInstance> {
  const settings = { heartbeatMs: 15_000, stallMs: 60_000, maxStreams: 10_000, maxConnections: 20_000, requestTimeoutMs: 15_000, ...config }
  const app = Fastify({
    loggerInstance: logger,
    logController: createRequestLog(),
    genReqId: () => ulid(),
    bodyLimit: BODY_LIMIT,
    requestTimeout: settings.requestTimeoutMs,
    connectionTimeout: CONNECTION_TIMEOUT,
    // Longer than proxies keep theirs: a proxy must not send a request into a connection we are closing.
    keepAliveTimeout: 75_000,
    forceCloseConnections: 'idle',
    // Starting is slow on a machine that is busy; nothing is gained by giving up after the usual 10 s.
    pluginTimeout: 120_000,
    return503OnClosing: false,
    trustProxy: false,
    frameworkErrors: frameworkProblem,
    clientErrorHandler: answerClientError,
    http: {
      headersTimeout: settings.requestTimeoutMs,
      // Node looks for late requests at this interval, by default only every 30 s.
      connectionsCheckingInterval: Math.min(1000, settings.requestTimeoutMs / 2),
      // A peer that vanished without a word is noticed, also when there is nothing to send to it (FAULTS E7).
      keepAlive: true,
      keepAliveInitialDelay: 30_000,
      // Node would answer without a body; plugins/security.ts does it with a problem.
      requireHostHeader: false
    }
  }).withTypeProvider<TypeBoxTypeProvider>()

  app.decorate('services', services)
  app.decorate('config', settings)
  app.server.maxConnections = settings.maxConnections
  app.setValidatorCompiler(validatorCompiler)
  // Response schemas document. Answers are written as the services give them.
  app.setSerializerCompiler(() => (data) => JSON.stringify(data))

  const root = join(import.meta.dirname, '..')
  await app.register(autoload, { dir: join(root, 'plugins'), forceESM: true, maxDepth: 0 })
  const matchFilter = (path: string) => routes === 'all' || path.includes('operations')
  await app.register(autoload, { dir: join(root, 'routes'), forceESM: true, maxDepth: 0, matchFilter })
  return app
}
