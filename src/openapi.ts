/**
 * Writes openapi.yaml from the routes. With `--check` only compares, and exits 1 when the file is stale.
 */
import { readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { buildApp } from './app.js'
import type { Services } from './services/services.js'

const file = join(import.meta.dirname, '..', 'openapi.yaml')

// Routes keep the services for later: none is asked before a request comes.
const app = await buildApp({ services: {} as Services, config: { apiKeys: [], host: 'localhost' } })
await app.ready()
const wanted = app.swagger({ yaml: true })
await app.close()

if (!process.argv.includes('--check')) {
  await writeFile(file, wanted)
  console.log('openapi.yaml is written.')
} else if (await readFile(file, 'utf8').catch(() => '') !== wanted) {
  console.error('openapi.yaml is stale: run "npm run openapi" and look at the difference.')
  process.exitCode = 1
}
