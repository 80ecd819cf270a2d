import { Type, type Static } from 'typebox'

/** Fields every kind of tool has. What a field promises stands in its description, which is also what openapi.yaml says. */
const common = {
  name: Type.String({ pattern: '^[a-zA-Z0-9_-]{1,64}$', description: 'The name the model calls it by; unique within the run.' }),
  timeout_ms: Type.Optional(Type.Integer({ minimum: 1, maximum: 86_400_000, description: 'Milliseconds until the call is aborted and fails with `timeout`. Default: `limits.tool_timeout_ms`.' })),
  effects: Type.Optional(Type.Enum(['read', 'write'], { default: 'write', description: 'After the death of a worker a started `read` call is run again; a started `write` fails with `outcome_unknown`, unless it is `idempotent`.' })),
  idempotent: Type.Optional(Type.Boolean({ default: false, description: 'The tool honours `Idempotency-Key`, so that a started call may be run again after the death of a worker.' })),
  placement: Type.Optional(Type.Enum(['local', 'spread'], { default: 'local', description: '`spread` gives the call to whichever worker is free instead of the one that opened the batch.' }))
}
const described = {
  description: Type.Optional(Type.String({ maxLength: 4096 })),
  parameters: Type.Optional(Type.Object({}, { additionalProperties: true, description: 'JSON Schema of the arguments, an object schema. Default: no arguments.' }))
}
const closed = { additionalProperties: false }

export const HttpTool = Type.Object({
  kind: Type.Literal('http'),
  ...common,
  ...described,
  url: Type.String({ format: 'uri', pattern: '^https?://', maxLength: 2048 }),
  method: Type.Optional(Type.Enum(['GET', 'POST', 'PUT', 'PATCH', 'DELETE'], { default: 'POST', description: 'The arguments are the JSON body; for GET and DELETE the query.' })),
  headers: Type.Optional(Type.Record(Type.String({ pattern: '^[A-Za-z0-9!#$%&\'*+.^_`|~-]{1,128}$' }), Type.String({ maxLength: 4096, pattern: '^[\\t\\x20-\\x7e]*$' }), { maxProperties: 32, description: 'Sent with every call. Hop-by-hop headers and the ones Interlock sets are refused.' }))
}, { ...closed, title: 'HttpTool' })

export const BuiltinTool = Type.Object({
  kind: Type.Literal('builtin'),
  ...common,
  name: Type.Enum(['http_fetch', 'final_answer'])
}, { ...closed, title: 'BuiltinTool' })

export const ModuleTool = Type.Object({
  kind: Type.Literal('module'),
  ...common
}, { ...closed, title: 'ModuleTool' })

/** A tool as a run declares it. Description and parameters of builtin and module tools come from the server. */
export const ToolDefinition = Type.Union([HttpTool, BuiltinTool, ModuleTool], { title: 'ToolDefinition' })
export type ToolDefinition = Static<typeof ToolDefinition>
export type HttpTool = Static<typeof HttpTool>
