import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { Redis } from 'ioredis'
import type { Test } from 'tap'
import { obtainServer } from '../../src/redis/embedded.js'
import { silent } from './redis.js'

const SLOTS = 16_384

/** A Redis Cluster of three primaries on this machine, each with a third of the slots. Ended with `t`. Resolves with the address for `connectRedis`. */
export async function redisCluster (t: Test): Promise<{ url: string, ports: number[] }> {
  const { bin } = await obtainServer(undefined, silent)
  const folder = mkdtempSync(join(tmpdir(), 'interlock-cluster-'))
  const ports = await freePorts(6)
  const nodes = [0, 1, 2].map((i) => {
    const [port, bus] = [ports[i] as number, ports[i + 3] as number]
    const args = ['--bind', '127.0.0.1', '--port', `${port}`, '--cluster-enabled', 'yes', '--cluster-port', `${bus}`, '--cluster-config-file', `nodes-${i}.conf`,
      '--cluster-announce-ip', '127.0.0.1', '--dir', folder, '--save', '', '--appendonly', 'no']
    return { port, bus, child: spawn(bin, args, { stdio: 'ignore' }), redis: new Redis({ port, retryStrategy: () => 20, maxRetriesPerRequest: null }) }
  })
  t.teardown(async () => {
    await Promise.all(nodes.map(async ({ child, redis }) => {
      redis.disconnect()
      const gone = once(child, 'exit')
      child.kill('SIGKILL')
      await gone
    }))
    rmSync(folder, { recursive: true, force: true })
  })

  for (const { redis } of nodes) redis.on('error', () => {}) // not up yet
  const [first] = nodes
  await Promise.all(nodes.map(async ({ redis, port, bus }, i) => {
    const [from, to] = [Math.ceil(SLOTS * i / 3), Math.ceil(SLOTS * (i + 1) / 3) - 1]
    await redis.call('CLUSTER', 'ADDSLOTSRANGE', `${from}`, `${to}`)
    if (first !== undefined && i > 0) await first.redis.call('CLUSTER', 'MEET', '127.0.0.1', `${port}`, `${bus}`)
  }))
  const isWhole = async ({ redis }: { redis: Redis }) => {
    const info = String(await redis.call('CLUSTER', 'INFO'))
    return info.includes('cluster_state:ok') && info.includes('cluster_known_nodes:3')
  }
  while (!(await Promise.all(nodes.map(isWhole))).every(Boolean)) await sleep(20)
  return { url: `redis+cluster://${nodes.map(({ port }) => `127.0.0.1:${port}`).join(',')}`, ports: nodes.map(({ port }) => port) }
}

/** Ports nobody listens on now. */
async function freePorts (count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, '127.0.0.1'))
  await Promise.all(servers.map((server) => once(server, 'listening')))
  const ports = servers.map((server) => (server.address() as AddressInfo).port)
  await Promise.all(servers.map((server) => once(server.close(), 'close')))
  return ports
}
