import { runProcess } from './process.js'

/** A worker alone. It listens too, for its health and metrics. */
await runProcess({ api: false, worker: true })
