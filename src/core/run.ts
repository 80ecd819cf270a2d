import { Type, type Static } from 'typebox'

const closed = { additionalProperties: false }

/** What bounds a run. Every number is checked before the step that would pass it. */
export const Limits = Type.Object({
  max_turns: Type.Integer({ minimum: 1, maximum: 10_000, default: 20, description: 'LLM turns of this run; a further one ends it as `incomplete`, `stop_reason: max_turns`.' }),
  max_tool_concurrency: Type.Integer({ minimum: 1, maximum: 1024, default: 16, description: 'Calls of this run that run at once; the others wait in request order.' }),
  tool_timeout_ms: Type.Integer({ minimum: 1, maximum: 86_400_000, default: 30_000, description: 'Milliseconds a call may take, unless its tool says otherwise.' }),
  run_timeout_ms: Type.Integer({ minimum: 1, maximum: 2_592_000_000, default: 3_600_000, description: 'Milliseconds from the start of the first turn until the run ends as `incomplete`, `stop_reason: run_timeout`.' }),
  max_total_tokens: Type.Union([Type.Integer({ minimum: 1 }), Type.Null()], { default: null, description: 'No further turn starts once this many tokens are used.' }),
  max_result_chars: Type.Integer({ minimum: 100, maximum: 10_000_000, default: 60_000, description: 'Characters of a tool output that the model and the events are given; `GET /runs/:id/calls/:call_id` has all of it.' }),
  max_queued_messages: Type.Integer({ minimum: 1, maximum: 10_000, default: 100, description: 'Messages of this run that wait for delivery; one more is refused with 429 `queue_full`.' })
}, { ...closed, title: 'Limits' })
export type Limits = Static<typeof Limits>

export const ToolPolicy = Type.Object({
  on_error: Type.Enum(['continue', 'fail_run'], { default: 'continue', description: '`continue`: a failed call goes to the model as its result. `fail_run`: once its batch has settled the run fails.' }),
  message_order: Type.Enum(['request', 'completion'], { default: 'request', description: 'Order of a batch\'s results in the ledger.' }),
  cancelled_calls: Type.Enum(['remove', 'tombstone_started', 'tombstone'], { default: 'remove', description: 'What an interrupt leaves of unsettled calls in the ledger. `remove`: nothing. `tombstone_started`: calls with `effects: write` that had started keep their place, with a result that says they were cancelled. `tombstone`: all do.' }),
  final_answer_tool: Type.Union([Type.Literal('final_answer'), Type.Null()], { default: null, description: 'Offers the builtin `final_answer`; its first successful call in request order ends the run with that answer once its batch has settled.' }),
  on_final_answer: Type.Enum(['settle', 'cancel'], { default: 'settle', description: 'What a successful final answer does to the calls beside it. `settle`: they finish. `cancel`: they are cancelled, and the run ends at once.' }),
  suspension: Type.Enum(['grouped', 'sequential', 'barrier'], { default: 'grouped', description: 'How calls that need a person or the client are raised, once nothing else of the batch can go on. `grouped`: all at once. `sequential`: one after the other. `barrier`: one after the other, and calls behind one do not start before it is decided.' }),
  parallel: Type.Boolean({ default: true, description: '`false` runs the calls of a batch one at a time in request order.' })
}, { ...closed, title: 'ToolPolicy' })
export type ToolPolicy = Static<typeof ToolPolicy>

/** What a run has cost so far. Attempts that gave no answer count too. */
export const Usage = Type.Object({
  input_tokens: Type.Integer({ minimum: 0 }),
  output_tokens: Type.Integer({ minimum: 0 }),
  total_tokens: Type.Integer({ minimum: 0 }),
  llm_calls: Type.Integer({ minimum: 0 }),
  tool_calls: Type.Integer({ minimum: 0 })
}, { ...closed, title: 'Usage' })
export type Usage = Static<typeof Usage>

export const RunStatus = Type.Enum(['queued', 'running', 'requires_action', 'completed', 'incomplete', 'failed', 'cancelled'], { title: 'RunStatus' })
export type RunStatus = Static<typeof RunStatus>
export type EndStatus = Exclude<RunStatus, 'queued' | 'running' | 'requires_action'>

export const StopReason = Type.Enum(['max_turns', 'max_total_tokens', 'run_timeout', 'length'], { title: 'StopReason' })
export type StopReason = Static<typeof StopReason>

/** Why a run failed. `message` is one sentence and a next step; `failures` lists all failed calls under `on_error: fail_run`, first one first. */
export const RunError = Type.Object({
  code: Type.String(),
  message: Type.String(),
  retryable: Type.Boolean(),
  failures: Type.Optional(Type.Array(Type.Object({ call_id: Type.String(), name: Type.String(), code: Type.String(), message: Type.String() }, closed)))
}, { ...closed, title: 'RunError' })
export type RunError = Static<typeof RunError>

export const CallStatus = Type.Enum(['pending', 'running', 'suspended', 'completed', 'failed', 'cancelled'], { title: 'CallStatus' })
export type CallStatus = Static<typeof CallStatus>

/** A failed call, as the model is told of it. */
export const CallError = Type.Object({ code: Type.String(), message: Type.String() }, { ...closed, title: 'CallError' })
export type CallError = Static<typeof CallError>
