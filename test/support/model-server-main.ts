import { Socket } from 'node:net'
import { parseArgs } from 'node:util'
import { startModelServer } from './model-server.js'
import { turnsScript } from './turns-script.js'

/**
 * The recording model server in a process of its own: `--script=3x5` (see `turnsScript`). Prints `{"port": …}` on one line when it listens;
 * `GET /_stats` says what it has seen. Ends on SIGTERM, or when whoever started it with a pipe as standard input is gone.
 */
const { values: { script } } = parseArgs({ options: { script: { type: 'string', default: '3x5' } } })
const server = await startModelServer({ keep: false })
server.otherwise(turnsScript(script))
process.stdout.write(`${JSON.stringify({ port: server.port })}\n`)

const end = () => void server.close().then(() => process.exit(0))
process.once('SIGTERM', end)
process.once('SIGINT', end)
if (process.stdin instanceof Socket) process.stdin.resume().once('close', end)
