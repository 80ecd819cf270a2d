import { startToolServer } from './tool-server.js'

// The tool server in a process of its own: prints {"port": …} as its first line, ends on SIGTERM or when its standard input ends.
const server = await startToolServer({ port: Number(process.argv[2] ?? 0) })
process.stdout.write(`${JSON.stringify({ port: server.port })}\n`)

const end = (): void => { void server.close().then(() => process.exit(0)) }
process.once('SIGTERM', end)
process.stdin.once('end', end).resume()
