import t from 'tap'
import { redisBench } from '../support/redis-bench.js'
import { redisCluster } from '../support/redis-cluster.js'
import { storeConformance } from '../support/store-conformance.js'

const { url, ports } = await redisCluster(t)
const bench = await redisBench(t, url, 'il', ports.map((port) => `redis://127.0.0.1:${port}`))

storeConformance(t, bench)

t.test('the conversations are spread over all nodes of the cluster', async (t) => {
  for (const node of bench.nodes) t.ok(await node.dbsize() > 0)
})
