import { runProcess } from './process.js'

/** API and worker in one process; with `--api` the API alone. */
await runProcess({ api: true, worker: !process.argv.includes('--api') })
