import t from 'tap'
import type { Signal } from '../../src/store/store.js'
import { redisBench } from '../support/redis-bench.js'
import { redisCluster } from '../support/redis-cluster.js'
import { lookout, storeConformance } from '../support/store-conformance.js'

const { url, ports } = await redisCluster(t)
const bench = await redisBench(t, url, 'il', ports.map((port) => `redis://127.0.0.1:${port}`))

storeConformance(t, bench)

t.test('the conversations are spread over all nodes of the cluster', async (t) => {
  for (const node of bench.nodes) t.ok(await node.dbsize() > 0)
})

t.test('P10: a reader whose node goes away is told of a gap, and hears what comes behind it from another node', async (t) => {
  const nodeOf = async () => {
    const heard = await Promise.all(bench.nodes.map(async (node) => String(await node.client('LIST', 'TYPE', 'PUBSUB')).includes('interlock-subscriber')))
    return heard.indexOf(true)
  }
  const heard: Signal[] = []
  const { look, until } = lookout()
  const heardOf = (kind: Signal['kind']) => until(() => heard.some((signal) => signal.kind === kind))
  t.teardown(await bench.feed.subscribe('moved', (signal) => {
    heard.push(signal)
    look()
  }))
  const before = await nodeOf()
  await bench.nodes[before]?.client('KILL', 'TYPE', 'PUBSUB')
  await heardOf('gap')
  t.not(await nodeOf(), before)
  await bench.feed.announce('moved', 'run', 'w')
  await heardOf('stopped')
})
