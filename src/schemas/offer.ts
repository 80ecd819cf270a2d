import { Type } from 'typebox'

const closed = { additionalProperties: false }

/** A tool the server itself has; a run names it with its `kind` and `name`. */
export const ToolListing = Type.Object({
  name: Type.String(),
  kind: Type.Enum(['builtin', 'module', 'mcp']),
  server: Type.Optional(Type.String({ description: 'The MCP server it is of: a run names that as `server`, and its tool in `allowed`.' })),
  description: Type.String(),
  parameters: Type.Object({}, { additionalProperties: true, description: 'JSON Schema of the arguments.' }),
  effects: Type.Enum(['read', 'write']),
  idempotent: Type.Boolean(),
  timeout_ms: Type.Union([Type.Integer(), Type.Null()], { description: 'Null: the run\'s `limits.tool_timeout_ms`.' }),
  placement: Type.Enum(['local', 'spread'])
}, { ...closed, title: 'ToolListing' })

export const ModelListing = Type.Object({
  id: Type.String(),
  default: Type.Boolean({ description: 'Whether it is taken by a run that names none.' })
}, { ...closed, title: 'ModelListing' })

export const Health = Type.Object({
  status: Type.Literal('ok'),
  checks: Type.Optional(Type.Record(Type.String(), Type.String(), { description: 'What was looked at, and how it is.' }))
}, { ...closed, title: 'Health' })
