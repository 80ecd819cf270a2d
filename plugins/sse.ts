import type { ServerResponse } from 'node:http'
import fp from 'fastify-plugin'
import type { FastifyReply } from 'fastify'
import { ProblemError, tooManyStreams, unavailable } from '../src/errors.js'
import { errorFacts } from '../src/error-facts.js'
import { requestFacts } from '../src/http/request-log.js'
import { frameOf } from '../src/http/sse-frame.js'
import type { LiveItem } from '../src/services/services.js'

declare module 'fastify' {
  interface FastifyInstance {
    /** Streams open in this process. */
    openStreams: () => number
    /** Throws `too_many_streams` or `unavailable` when no further stream can begin: for those who would do something before they stream. */
    checkStreamRoom: () => void
  }
  interface FastifyReply {
    /**
     * Answers with an event stream of `items` and resolves when it is over: they end, the reader leaves or stops reading, or the app
     * closes. `items` is handed a signal that fires in the last three cases. Throws `too_many_streams` and `unavailable` before anything is sent.
     */
    stream: (status: number, items: (signal: AbortSignal) => AsyncIterable<LiveItem>) => Promise<FastifyReply>
  }
}

/**
 * Proxies must neither keep, change nor collect what is streamed (FAULTS E1). One stream, one connection: on one that is to be used again a
 * reader who leaves (fetch in Node) waits for the end of what it no longer wants.
 */
const HEADERS = {
  'content-type': 'text/event-stream; charset=utf-8',
  'cache-control': 'no-cache, no-transform',
  'x-accel-buffering': 'no',
  connection: 'close'
}

const RETRY_MS = 1000

/** When many readers lose their stream at once, they come back over this many milliseconds. */
const SPREAD_MS = 4000

interface Stream { res: ServerResponse, stop: AbortController, quietTicks: number }

/**
 * Server-sent events. One timer serves all streams: it writes the heartbeats, and runs while there are any. Memory per reader is bounded
 * because nothing is taken from `items` while the socket is full: one event waits beside Node's own buffer, and `items` holds a bounded number itself.
 */
export default fp(async (app) => {
  const { heartbeatMs, stallMs, maxStreams } = app.config
  const streams = new Set<Stream>()
  const ticks = 15
  let heart: NodeJS.Timeout | undefined
  const beat = () => {
    for (const stream of streams) {
      if (++stream.quietTicks >= ticks && isWritable(stream.res)) write(stream, ':\n\n')
    }
  }

  app.closing.addEventListener('abort', () => {
    for (const { res, stop } of streams) {
      // Somebody who is not reading would keep us open.
      if (isWritable(res)) res.end(retry()); else res.destroy()
      stop.abort()
    }
  })

  app.decorate('openStreams', () => streams.size)

  const checkRoom = () => {
    if (app.closing.aborted) throw unavailable()
    if (streams.size >= maxStreams) throw tooManyStreams(10)
  }
  app.decorate('checkStreamRoom', checkRoom)

  app.decorateReply('stream', async function (this: FastifyReply, status, items) {
    checkRoom()
    const { raw: res, request } = this
    const stream: Stream = { res, stop: new AbortController(), quietTicks: 0 }
    const { signal } = stream.stop
    this.hijack()
    // The reader left while we looked for what it wanted: there is nothing to write to, and `close` has been.
    if (res.closed) return this
    streams.add(stream)
    heart ??= setInterval(beat, heartbeatMs / ticks)
    res.once('close', () => {
      streams.delete(stream)
      stream.stop.abort()
      // An answer that was finished is logged as every request is.
      if (!res.writableFinished) request.log.info(requestFacts(request), 'stream cut off')
      if (streams.size > 0) return
      clearInterval(heart)
      heart = undefined
    })
    // A write that meets a connection just gone; `close` follows and says all.
    res.on('error', () => {})
    // Node restarts this clock with every write and while bytes leave: it runs out when a reader takes nothing at all.
    res.setTimeout(stallMs, () => res.destroy())
    for (const [name, value] of Object.entries({ ...this.getHeaders(), ...HEADERS })) res.setHeader(name, value ?? '')
    res.writeHead(status)
    write(stream, `retry: ${RETRY_MS}\n\n`)
    try {
      for await (const item of items(signal)) {
        if (signal.aborted) break
        if (!write(stream, frameOf(item))) await drained(res, signal)
      }
    } catch (error) {
      if (!signal.aborted) {
        // Redis away is no error of ours: the reader comes back, as whoever is answered 503 does.
        const level = error instanceof ProblemError && error.code === 'unavailable' ? 'warn' : 'error'
        request.log[level]({ ...requestFacts(request), error: errorFacts(error) }, 'stream failed')
        write(stream, retry())
      }
    }
    res.end()
    return this
  })
}, { name: 'sse', dependencies: ['auth', 'shutdown'] })

const retry = (): string => `retry: ${RETRY_MS + Math.floor(Math.random() * SPREAD_MS)}\n\n`

const isWritable = (res: ServerResponse): boolean => !res.writableEnded && !res.destroyed && !res.writableNeedDrain

/** One frame, one write. False: the socket is full. */
function write (stream: Stream, frame: Buffer | string): boolean {
  stream.quietTicks = 0
  return stream.res.write(frame)
}

/** Until there is room again, or nobody left to write to: `drain` alone never comes once the reader is gone (FAULTS E4). */
function drained (res: ServerResponse, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      res.off('drain', done)
      signal.removeEventListener('abort', done)
      resolve()
    }
    if (signal.aborted) return resolve()
    res.on('drain', done)
    signal.addEventListener('abort', done)
  })
}
