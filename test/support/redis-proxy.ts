import { once } from 'node:events'
import { connect, createServer, type AddressInfo, type Socket } from 'node:net'
import type { Test } from 'tap'
import { parseRedisUrl } from '../../src/redis/url.js'

export interface RedisProxy {
  /** For the process whose connection is to be cut. */
  url: string
  /**
   * Cuts the connection that sends a request holding `text`, in both directions, so that the sender waits. `answered`: the request was forwarded, and
   * the promise resolves when Redis has answered it; `unsent`: it was not. Whoever is then killed has died at exactly that point.
   */
  cut: (text: string, at: 'answered' | 'unsent') => Promise<void>
  /** From now on every connection that sends a request holding `text` is cut there, unsent: it stays open, and nothing comes back. Resolves with the first. */
  swallow: (text: string) => Promise<void>
}

/** A proxy before Redis, for one process of a test: it reaches every instant between a process and its Redis without any code in the product. */
export async function redisProxy (t: Test, redisUrl: string): Promise<RedisProxy> {
  const target = parseRedisUrl(redisUrl)
  if (target?.kind !== 'single') throw new Error('the proxy stands before a single server')
  const { path, host, port } = target.options
  const open = new Set<Socket>()
  let swallowed: { text: string, done: () => void } | undefined
  let rule: { text: string, at: 'answered' | 'unsent', done: () => void } | undefined

  const server = createServer((client) => {
    const upstream = path === undefined ? connect(port ?? 6379, host ?? '127.0.0.1') : connect(path)
    for (const socket of [client, upstream]) {
      open.add(socket)
      socket.on('error', () => { /* `close` follows */ })
      socket.on('close', () => {
        open.delete(socket)
        client.destroy()
        upstream.destroy()
      })
    }
    let cut: typeof rule
    let tail = ''
    client.on('data', (chunk: Buffer) => {
      if (cut !== undefined) return
      // The text may come in two pieces.
      const seen = tail + chunk.toString('latin1')
      tail = seen.slice(-100)
      if (swallowed !== undefined && seen.includes(swallowed.text)) {
        cut = { ...swallowed, at: 'unsent' }
        return cut.done()
      }
      if (rule !== undefined && seen.includes(rule.text)) {
        cut = rule
        rule = undefined
        if (cut.at === 'unsent') return cut.done()
      }
      upstream.write(chunk)
    })
    upstream.on('data', (chunk: Buffer) => {
      if (cut === undefined) client.write(chunk)
      else cut.done()
    })
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.teardown(async () => {
    for (const socket of open) socket.destroy()
    await new Promise((resolve) => server.close(resolve))
  })
  return {
    url: `redis://127.0.0.1:${(server.address() as AddressInfo).port}`,
    cut: (text, at) => new Promise((resolve) => { rule = { text, at, done: resolve } }),
    swallow: (text) => new Promise((resolve) => { swallowed = { text, done: resolve } })
  }
}
