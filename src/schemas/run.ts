import { Type, type Static } from 'typebox'
import { Content } from '../core/message.js'
import { CallError, CallStatus, Limits, RunError, RunStatus, StopReason, ToolPolicy, Usage } from '../core/run.js'
import { ToolDefinition } from '../core/tool.js'
import { RequiredAction } from './action.js'
import { CallId, CONVERSATION_ID, ConversationId, RunId } from './ids.js'

const closed = { additionalProperties: false }
const nullable = <T extends ReturnType<typeof Type.String> | ReturnType<typeof Type.Integer> | ReturnType<typeof Type.Number>>(type: T, description?: string) =>
  Type.Union([type, Type.Null()], description === undefined ? {} : { description })
const Time = Type.String({ format: 'date-time' })

/** Names of a client's own. Values come back unchanged and can be filtered by in `GET /runs`. */
export const Metadata = Type.Record(Type.String({ pattern: '^[a-zA-Z0-9_.-]{1,64}$' }), Type.String({ maxLength: 512 }), {
  maxProperties: 16, title: 'Metadata', description: 'Names of your own: they come back unchanged, and `GET /runs` can filter by them.', examples: [{ team: 'search' }]
})
export type Metadata = Static<typeof Metadata>

/** Passed to the provider as they are. The fields Interlock sets itself (`messages`, `tools`, `stream` …) are refused. */
export const ModelOptions = Type.Object({
  temperature: Type.Optional(Type.Number({ minimum: 0, maximum: 2 })),
  top_p: Type.Optional(Type.Number({ minimum: 0, maximum: 1 })),
  max_completion_tokens: Type.Optional(Type.Integer({ minimum: 1 })),
  max_tokens: Type.Optional(Type.Integer({ minimum: 1 })),
  frequency_penalty: Type.Optional(Type.Number({ minimum: -2, maximum: 2 })),
  presence_penalty: Type.Optional(Type.Number({ minimum: -2, maximum: 2 })),
  seed: Type.Optional(Type.Integer()),
  stop: Type.Optional(Type.Union([Type.String(), Type.Array(Type.String(), { minItems: 1, maxItems: 4 })])),
  reasoning_effort: Type.Optional(Type.String({ maxLength: 32 })),
  tool_choice: Type.Optional(Type.Union([
    Type.Literal('auto'), Type.Literal('none'), Type.Literal('required'),
    Type.Object({ type: Type.Literal('function'), function: Type.Object({ name: Type.String() }, closed) }, closed)
  ])),
  response_format: Type.Optional(Type.Object({}, { additionalProperties: true }))
}, { ...closed, title: 'ModelOptions', description: 'Passed to the provider as they are.' })
export type ModelOptions = Static<typeof ModelOptions>

export const InputMessage = Type.Object({ role: Type.Literal('user'), content: Content }, { ...closed, title: 'InputMessage' })

const model = { minLength: 1, maxLength: 256 }

/** Body of `POST /runs`. Options of API.md that this version does not have yet are unknown fields, and refused as such. */
export const CreateRun = Type.Object({
  input: Type.Union([Type.String({ minLength: 1 }), Type.Array(InputMessage, { minItems: 1, maxItems: 100 })], { description: 'What the user says: a text, or messages.' }),
  conversation_id: Type.Optional(Type.String({ pattern: CONVERSATION_ID, description: 'The conversation to go on with. Absent: a new one.' })),
  on_active_run: Type.Optional(Type.Enum(['queue', 'interrupt', 'rollback', 'reject'], { default: 'queue', description: 'While another run of the conversation is active. `queue`: wait for its end; 250 runs may wait or be scheduled, one more is refused with 429 `queue_full`. `interrupt`: end it as cancelled, keep what it has said, and start. `rollback`: end it and take everything it added out of the ledger. `reject`: answer 409 `run_active`. With `after_seconds` only `queue` and `reject`.' })),
  model: Type.Optional(Type.String({ ...model, description: 'Default: the server\'s own, see `GET /models`.' })),
  fallback_models: Type.Optional(Type.Array(Type.String(model), { maxItems: 8, description: 'Tried in order when a model keeps failing with a retryable error.' })),
  instructions: Type.Optional(Type.String({ minLength: 1, maxLength: 1_000_000, description: 'System prompt of this run.' })),
  model_options: Type.Optional(ModelOptions),
  tools: Type.Optional(Type.Array(ToolDefinition, { maxItems: 128, description: 'What the model may call, each under its own name.' })),
  limits: Type.Optional(Type.Partial(Limits, { ...closed, title: 'Limits', description: 'What bounds the run.' })),
  tool_policy: Type.Optional(Type.Partial(ToolPolicy, { ...closed, title: 'ToolPolicy', description: 'How the tool calls of a turn are run.' })),
  after_seconds: Type.Optional(Type.Number({ minimum: 0, maximum: 31_536_000, default: 0, description: 'Seconds until the run may start.' })),
  metadata: Type.Optional(Metadata)
}, {
  ...closed,
  title: 'CreateRun',
  examples: [{
    input: 'Which of the characters live in Minas Tirith?',
    instructions: 'Answer in one sentence.',
    tools: [{ kind: 'builtin', name: 'http_fetch', effects: 'read' }],
    limits: { max_turns: 10 }
  }]
})
export type CreateRun = Static<typeof CreateRun>

export const CurrentCall = Type.Object({ call_id: Type.String(), name: Type.String(), status: CallStatus, attempt: Type.Integer() }, { ...closed, title: 'CurrentCall' })

/** A run as clients see it. */
export const Run = Type.Object({
  id: RunId,
  conversation_id: ConversationId,
  status: RunStatus,
  turn: nullable(Type.Integer(), 'The newest turn of this run; null before its first.'),
  version: Type.Integer({ description: 'Version of the conversation this was read at.' }),
  created_at: Time,
  started_at: nullable(Time),
  ended_at: nullable(Time),
  model: Type.String(),
  output: Type.Unknown({ description: 'The final text, or the final answer\'s value; null until then.' }),
  usage: Usage,
  required_action: Type.Union([RequiredAction, Type.Null()], { description: 'What the run waits for from outside; null: nothing.' }),
  error: Type.Union([RunError, Type.Null()], { description: 'Why it `failed`.' }),
  stop_reason: Type.Union([StopReason, Type.Null()], { description: 'Which limit made it `incomplete`.' }),
  metadata: Metadata,
  current: Type.Union([
    Type.Object({ phase: Type.Enum(['scheduled', 'waiting', 'llm', 'retry', 'tools', 'action']), turn: Type.Union([Type.Integer(), Type.Null()]), calls: Type.Array(CurrentCall) }, closed),
    Type.Null()
  ], { description: 'What it does now; null once ended. `scheduled`: before its due time; `waiting`: for another run or a worker; `llm`; `retry`: between two tries of a turn; `tools`; `action`: what `required_action` says.' })
}, { ...closed, title: 'Run' })
export type Run = Static<typeof Run>

/** One tool call, with everything known of it. */
export const Call = Type.Object({
  call_id: CallId,
  run_id: RunId,
  turn: Type.Integer(),
  batch_id: Type.String(),
  name: Type.String(),
  arguments: Type.Unknown({ description: 'As the model wrote them, or as a person has edited them.' }),
  status: CallStatus,
  attempt: Type.Integer({ description: 'How often it was started; 0 before the first.' }),
  started_at: nullable(Time),
  ended_at: nullable(Time),
  duration_ms: nullable(Type.Number()),
  output: Type.Unknown({ description: 'The whole output, never cut; null unless completed.' }),
  error: Type.Union([CallError, Type.Null()]),
  reason: nullable(Type.String(), 'Why it was cancelled.')
}, { ...closed, title: 'Call' })
export type Call = Static<typeof Call>
