import { Type, type Static } from 'typebox'

const NAME = '^[a-zA-Z0-9_-]{1,64}$'

/** Fields every kind of tool has. What a field promises stands in its description, which is also what openapi.yaml says. */
const common = {
  name: Type.String({ pattern: NAME, description: 'The name the model calls it by; unique within the run.' }),
  timeout_ms: Type.Optional(Type.Integer({ minimum: 1, maximum: 86_400_000, description: 'Milliseconds until the call is aborted and fails with `timeout`. Default: `limits.tool_timeout_ms`.' })),
  effects: Type.Optional(Type.Enum(['read', 'write'], { default: 'write', description: 'After the death of a worker a started `read` call is run again; a started `write` fails with `outcome_unknown`, unless it is `idempotent`.' })),
  idempotent: Type.Optional(Type.Boolean({ default: false, description: 'The tool honours `Idempotency-Key`, so that a started call may be run again after the death of a worker.' })),
  placement: Type.Optional(Type.Enum(['local', 'spread'], { default: 'local', description: '`spread` gives the call to whichever worker is free instead of the one that opened the batch.' })),
  retry: Type.Optional(Type.Object({
    attempts: Type.Integer({ minimum: 1, maximum: 10, description: 'How often a call is started, at most.' }),
    backoff_ms: Type.Integer({ minimum: 0, maximum: 3_600_000, description: 'Milliseconds before the second start; doubled for each further one.' })
  }, { additionalProperties: false, description: 'Failed calls (`timeout`, `http_error`, `tool_error`) are tried again under the same `Idempotency-Key`. Only for tools that are `idempotent`.' })),
  resources: Type.Optional(Type.Array(Type.String({ minLength: 1, maxLength: 256 }), {
    maxItems: 16,
    description: 'What a call reads or writes (`effects`), as names filled from its arguments: `orders/{order_id}`. In a batch, calls that write a resource run one by one in request order, calls that read it run together, and all others run at once. A name whose field is missing may be any.'
  })),
  exclusive: Type.Optional(Type.Boolean({ default: false, description: 'No other call of the batch runs beside it.' })),
  cancellable: Type.Optional(Type.Boolean({ default: true, description: '`false`: a call that is cancelled is left to finish. Its result then comes too late, and goes to the orphans.' })),
  approval: Type.Optional(Type.Enum(['never', 'always'], { default: 'never', description: '`always`: a call waits for a person\'s decision, see `POST /runs/{run_id}/decisions`.' })),
  approval_expires_seconds: Type.Optional(Type.Integer({ minimum: 1, maximum: 31_536_000, description: 'Seconds until a call nobody has decided on is not run. Default: it waits as long as it takes.' })),
  max_concurrency: Type.Optional(Type.Integer({ minimum: 1, maximum: 1024, description: 'Calls of this tool that run at once in this run.' })),
  max_calls: Type.Optional(Type.Integer({ minimum: 1, maximum: 1_000_000, description: 'Calls of this tool in this run; further ones fail with `max_calls`.' })),
  rate_limit: Type.Optional(Type.Object({
    max: Type.Integer({ minimum: 1, maximum: 10_000 }),
    per_ms: Type.Integer({ minimum: 1, maximum: 86_400_000 })
  }, { additionalProperties: false, description: 'At most `max` calls begin within any `per_ms` milliseconds, over all runs and processes that use the same tool; the others wait their turn.' }))
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

// What only a worker can do, or its death make necessary, is no option of a tool that no worker runs.
const { idempotent: _i, placement: _p, retry: _r, rate_limit: _l, cancellable: _c, ...commonOfClient } = common

/** Run by the caller. Its `timeout_ms`, where given, is how long the caller has. */
export const ClientTool = Type.Object({
  kind: Type.Literal('client'),
  ...commonOfClient,
  timeout_ms: Type.Optional(Type.Integer({ minimum: 1, maximum: 86_400_000, description: 'Milliseconds the caller has for an output, before the call fails with `timeout`. Default: as long as it takes.' })),
  effects: Type.Optional(Type.Enum(['read', 'write'], { default: 'write', description: 'How it uses its `resources`, and whether an interrupt may leave a tombstone of it.' })),
  max_concurrency: Type.Optional(Type.Integer({ minimum: 1, maximum: 1024, description: 'Calls of this tool that the caller is handed at once; the others follow when it has answered those.' })),
  ...described
}, { ...closed, title: 'ClientTool' })

const { approval: _a, ...commonOfMcp } = common

/** The tools of an MCP server: one definition for all of them. What is said of effects, limits and the like is said of each. */
export const McpTool = Type.Object({
  kind: Type.Literal('mcp'),
  ...commonOfMcp,
  name: Type.String({ pattern: NAME, description: 'What to call the server: its tools keep their own names, and one that the run has already becomes `<name>_<tool>`.' }),
  server: Type.Optional(Type.String({ minLength: 1, maxLength: 128, description: 'A server the operator has configured, see `GET /tools`. Either this or `server_url`.' })),
  server_url: Type.Optional(Type.String({ format: 'uri', pattern: '^https?://', maxLength: 2048, description: 'The address of a server with streamable HTTP.' })),
  headers: Type.Optional(HttpTool.properties.headers),
  allowed: Type.Optional(Type.Array(Type.String({ minLength: 1, maxLength: 128 }), { minItems: 1, maxItems: 128, description: 'The tools that are offered, by the server\'s names. Default: all it has.' })),
  approval: Type.Optional(Type.Union([Type.Enum(['never', 'always']), Type.Record(Type.String({ minLength: 1, maxLength: 128 }), Type.Enum(['never', 'always']))], {
    default: 'never', description: 'For all its tools, or by their names. `always`: a call waits for a person\'s decision.'
  }))
}, { ...closed, title: 'McpTool' })
export type McpTool = Static<typeof McpTool>

/** A tool as a run declares it. Description and parameters of builtin, module and MCP tools come from where they are. */
export const ToolDefinition = Type.Union([HttpTool, BuiltinTool, ModuleTool, ClientTool, McpTool], { title: 'ToolDefinition' })
export type ToolDefinition = Static<typeof ToolDefinition>

/** One tool of an MCP server, as it was when the run was created. */
export interface McpOffer extends Omit<McpTool, 'allowed' | 'approval' | 'effects' | 'idempotent'> {
  /** Its server's name for it. */
  tool: string
  description: string
  parameters: Record<string, unknown>
  effects: 'read' | 'write'
  idempotent: boolean
  approval?: 'never' | 'always'
}

/** A tool as a run has it: what the model is offered is one of these. */
export type RunTool = Exclude<ToolDefinition, McpTool> | McpOffer
export type HttpTool = Static<typeof HttpTool>
