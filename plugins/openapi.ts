import { readFile } from 'node:fs/promises'
import swagger from '@fastify/swagger'
import swaggerUi from '@fastify/swagger-ui'
import fp from 'fastify-plugin'
import { closedRecords } from '../src/http/union.js'
import { withComponents } from '../src/http/components.js'

const description = `Runs tool-calling LLM conversations durably: turns one at a time, tools in parallel, every event stored before it is seen.

JSON is snake_case, times are RFC 3339 UTC. Unknown fields are refused, never ignored; of a field given twice the last counts. Errors are problems (RFC 9457) with a stable \`code\`.`

/** openapi.yaml, made from the schemas the routes validate with, and the pages under /docs that show it. */
export default fp(async (app) => {
  await app.register(swagger, {
    convertConstToEnum: false,
    openapi: {
      openapi: '3.1.0',
      info: { title: 'Interlock', version: await version(), description, license: { name: 'MIT', identifier: 'MIT' } },
      servers: [{ url: '/', description: 'Where this document comes from.' }],
      tags: [
        { name: 'Runs', description: 'Pieces of work on a conversation, from input to final answer.' },
        { name: 'Messages', description: 'What is said to a run while it is active.' },
        { name: 'Actions', description: 'What a run in `requires_action` waits for: decisions of people, outputs of client tools.' },
        { name: 'Orphans', description: 'Results that came after their calls were settled.' },
        { name: 'Events', description: 'The log: durable, in order, without a gap.' },
        { name: 'Conversations', description: 'The ledgers a model sees.' },
        { name: 'Server', description: 'What this server offers.' },
        { name: 'Operations', description: 'For whoever runs it.' }
      ],
      security: [{ bearer: [] }],
      components: {
        securitySchemes: { bearer: { type: 'http', scheme: 'bearer', description: 'An API key of this server. A server without keys, on a loopback address, needs none.' } }
      }
    },
    transform: ({ schema, url }) => ({ schema: closedRecords(schema) as typeof schema, url }),
    transformObject: (documents) => {
      if (!('openapiObject' in documents)) throw new Error('this plugin writes OpenAPI 3')
      return withComponents(spelled(documents.openapiObject))
    }
  })
  await app.register(swaggerUi, { routePrefix: '/docs', uiConfig: { deepLinking: true, tryItOutEnabled: true }, theme: { title: 'Interlock' } })
}, { name: 'openapi', dependencies: ['errors', 'security'] })

async function version (): Promise<string> {
  // One level up in the source tree, two in dist.
  for (const up of ['../package.json', '../../package.json']) {
    const text = await readFile(new URL(up, import.meta.url), 'utf8').catch(() => null)
    if (text !== null) return (JSON.parse(text) as { version: string }).version
  }
  throw new Error('package.json is missing')
}

interface Parameter { in: string, name: string, required?: boolean, schema?: { default?: unknown, [keyword: string]: unknown }, [field: string]: unknown }
interface Operation { parameters?: Parameter[], operationId?: string }

/** Header names as they are usually written, parameters with a default as optional, and the one a schema of properties cannot say. */
function spelled<T extends { paths?: object }> (document: T): T {
  for (const item of Object.values(document.paths ?? {}) as Record<string, Operation>[]) {
    for (const operation of Object.values(item)) {
      for (const parameter of operation.parameters ?? []) {
        if (parameter.in === 'header') parameter.name = parameter.name.replace(/\b[a-z]/g, (letter) => letter.toUpperCase()).replace(/Id$/, 'ID')
        if (parameter.schema?.default !== undefined) parameter.required = false
      }
      if (operation.operationId === 'listRuns') operation.parameters?.push(METADATA)
    }
  }
  return document
}

const METADATA = {
  in: 'query',
  name: 'metadata',
  required: false,
  description: 'Runs with this metadata: `metadata.team=search`. Several names have to match all.',
  style: 'form',
  explode: true,
  schema: { type: 'object', propertyNames: { pattern: '^metadata\\.[a-zA-Z0-9_.-]{1,64}$' }, additionalProperties: { type: 'string', maxLength: 512 } }
}
