import { spawnSync } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'
import t from 'tap'
import { testApp } from '../support/app.js'

interface Operation {
  operationId?: string
  tags?: string[]
  summary?: string
  parameters?: { name: string, in: string }[]
  responses: Record<string, { $ref?: string, content?: Record<string, { schema: { $ref?: string } }> }>
}

interface Document {
  openapi: string
  tags: { name: string }[]
  paths: Record<string, Record<string, Operation>>
  components: { schemas: Record<string, object>, responses: Record<string, { content: object }> }
}

const root = join(import.meta.dirname, '..', '..')

t.test('openapi.yaml is what the routes say', async (t) => {
  const { app } = await testApp(t)
  const file = await readFile(join(root, 'openapi.yaml'), 'utf8')
  t.ok(file === app.swagger({ yaml: true }), 'if not: run "npm run openapi" and look at the difference')
  const served = await app.inject('/openapi.yaml')
  t.match(served.headers['content-type'], /^application\/yaml/)
  t.ok(served.body === file)
})

t.test('openapi.yaml has no fault that a linter finds', async (t) => {
  const cli = join(dirname(createRequire(import.meta.url).resolve('@redocly/cli/package.json')), 'bin', 'cli.js')
  const { status, stdout, stderr } = spawnSync(process.execPath, [cli, 'lint', '--max-problems=20', join(root, 'openapi.yaml')], {
    cwd: root, encoding: 'utf8', env: { ...process.env, NODE_OPTIONS: '', REDOCLY_TELEMETRY: 'off', REDOCLY_SUPPRESS_UPDATE_NOTICE: 'true' }
  })
  t.equal(status, 0, `${stdout}${stderr}`.slice(-2000))
  t.match(`${stdout}${stderr}`, /is valid/)
  t.notMatch(`${stdout}${stderr}`, /[1-9]\d* (warning|error)/)
})

t.test('every operation has a name, a tag that is explained, and problems for its errors', async (t) => {
  const { app } = await testApp(t)
  const { paths, tags, components } = app.swagger() as unknown as Document
  const names = new Set<string>()
  for (const [path, item] of Object.entries(paths)) {
    for (const [method, { operationId, tags: own, summary, responses }] of Object.entries(item)) {
      const at = `${method} ${path}`
      t.ok(operationId !== undefined && !names.has(operationId), `${at} has a name of its own`)
      names.add(operationId ?? '')
      t.ok(own?.length === 1 && tags.some(({ name }) => name === own[0]), `${at} has a tag`)
      t.ok(summary, `${at} says what it does`)
      const errors = Object.entries(responses).filter(([status]) => Number(status) >= 400)
      t.ok(errors.some(([status]) => status.startsWith('4')), `${at} has errors`)
      for (const [status, { $ref }] of errors) t.equal($ref, `#/components/responses/Problem${status}`)
      t.ok(Object.keys(responses).some((status) => status.startsWith('2')), `${at} has a success`)
    }
  }
  for (const response of Object.values(components.responses)) t.strictSame(Object.keys(response.content), ['application/problem+json'])
})

t.test('what API.md lists is there', async (t) => {
  const { app } = await testApp(t)
  const { paths } = app.swagger() as unknown as Document
  for (const [path, methods] of Object.entries({
    '/runs': ['get', 'post'],
    '/runs/{run_id}': ['get'],
    '/runs/{run_id}/events': ['get'],
    '/runs/{run_id}/cancel': ['post'],
    '/runs/{run_id}/calls': ['get'],
    '/runs/{run_id}/calls/{call_id}': ['get'],
    '/conversations': ['post'],
    '/conversations/{conversation_id}': ['delete', 'get'],
    '/conversations/{conversation_id}/messages': ['get'],
    '/conversations/{conversation_id}/events': ['get'],
    '/conversations/{conversation_id}/state': ['get'],
    '/tools': ['get'],
    '/models': ['get'],
    '/health/live': ['get'],
    '/health/ready': ['get'],
    '/metrics': ['get'],
    '/openapi.yaml': ['get']
  })) t.strictSame(Object.keys(paths[path] ?? {}).sort(), methods, path)
})

t.test('streams are documented beside pages, and every event by a schema of its own', async (t) => {
  const { app } = await testApp(t)
  const { paths, components } = app.swagger() as unknown as Document
  for (const path of ['/runs/{run_id}/events', '/conversations/{conversation_id}/events']) {
    t.strictSame(Object.keys(paths[path]?.get?.responses[200]?.content ?? {}).sort(), ['application/json', 'text/event-stream'])
  }
  t.ok(paths['/runs']?.post?.responses[201]?.content?.['text/event-stream'])
  const { anyOf } = components.schemas.Event as { anyOf: { $ref: string }[] }
  for (const { $ref } of anyOf) {
    const schema = components.schemas[$ref.split('/').at(-1) as string] as { properties: Record<string, { const?: string }>, description: string }
    t.match(schema.properties.type?.const, /^[a-z]+\.[a-z_]+$/)
    t.ok(schema.description)
    for (const field of ['seq', 'run_seq', 'run_id', 'conversation_id', 'time', 'caused_by']) t.ok(schema.properties[field], `${$ref} has ${field}`)
  }
})
