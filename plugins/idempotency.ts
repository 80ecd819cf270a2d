import { createHash } from 'node:crypto'
import fp from 'fastify-plugin'
import type { FastifyReply, FastifyRequest } from 'fastify'
import { idempotencyInProgress, idempotencyMismatch, ProblemError } from '../src/errors.js'
import { errorFacts } from '../src/error-facts.js'
import { requestFacts } from '../src/http/request-log.js'
import type { Caller } from '../src/services/services.js'

/** What a POST answers, and what is kept under its key. */
export interface Answer { code: number, headers: Record<string, string>, body: string }

declare module 'fastify' {
  interface FastifyRequest {
    /**
     * Does the work of a POST, once per `Idempotency-Key`: a repeat with the same method, address and body gets the first answer,
     * `replayed`. Throws `idempotency_in_progress` and `idempotency_mismatch`. Without the header it just does the work.
     */
    once: (work: (caller: Caller) => Promise<Answer>) => Promise<Answer & { replayed: boolean }>
  }
  interface FastifyReply {
    answer: (answer: Answer & { replayed: boolean }) => FastifyReply
  }
}

/** `Idempotency-Key` on every POST (M5): what was done under it once is answered again, not done again. */
export default fp(async (app) => {
  const { idempotency } = app.services

  app.decorateRequest('once', async function (this: FastifyRequest, work) {
    const key = this.headers['idempotency-key'] as string | undefined
    if (key === undefined) return { ...await work(this.caller), replayed: false }

    const { tenant } = this.caller
    const begun = await idempotency.begin(tenant, key, fingerprint(this), this.caller.operation)
    switch (begun.status) {
      case 'replay': return { code: begun.code, headers: begun.headers, body: begun.body, replayed: true }
      case 'busy': throw idempotencyInProgress()
      case 'mismatch': throw idempotencyMismatch()
    }
    // The operation of the first request with this key, should that one have died half-way: what it made is found again, not made twice.
    this.caller = { tenant, operation: begun.operation, repeated: begun.operation !== this.caller.operation }
    let answer: Answer
    try {
      answer = await work(this.caller)
    } catch (error) {
      // A refusal changed nothing, so the key is free again, unless this one has taken the place of one that may still be at work. After a 5xx nobody knows
      // what was done: the reservation stays and lapses, and the repeat goes on with the same operation.
      const isRefusal = error instanceof ProblemError && error.status < 500
      if (isRefusal && this.caller.repeated !== true) await settle(this, () => idempotency.abandon(tenant, key, begun.reservation))
      throw error
    }
    await settle(this, () => idempotency.finish(tenant, key, begun.reservation, answer))
    return { ...answer, replayed: false }
  })

  app.decorateReply('answer', function (this: FastifyReply, { code, headers, body, replayed }) {
    if (replayed) this.header('idempotency-replayed', 'true')
    return this.code(code).headers(headers).header('content-type', 'application/json; charset=utf-8').send(body)
  })
}, { name: 'idempotency', dependencies: ['auth', 'body'] })

/** The answer stands whether or not the key can be written: without it, the reservation lapses as if we had died here. */
async function settle (request: FastifyRequest, write: () => Promise<void>): Promise<void> {
  try {
    await write()
  } catch (error) {
    request.log.warn({ ...requestFacts(request), error: errorFacts(error) }, 'idempotency key not settled')
  }
}

const fingerprint = ({ method, url, bodyHash }: FastifyRequest): string => createHash('sha256').update(`${method} ${url} ${bodyHash}`).digest('base64url')
