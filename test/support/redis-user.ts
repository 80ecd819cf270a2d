/**
 * A process that uses the embedded Redis of the data folder in argv[2]: says `ready <socket>`, and lets go of it on SIGTERM.
 * It ignores SIGINT, as a process does that is still draining after Ctrl-C.
 */
import { loadConfig } from '../../src/config.js'
import { openRedis } from '../../src/redis/embedded.js'

const log = { info: () => {}, warn: () => {} }
const redis = await openRedis(loadConfig({ INTERLOCK_DATA_DIR: process.argv[2] }), log)
process.on('SIGINT', () => process.stdout.write('interrupted\n'))
process.once('SIGTERM', () => { redis.stop().then(() => process.exit(0), () => process.exit(1)) })
process.stdout.write(`ready ${redis.url}\n`)
