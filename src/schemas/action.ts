import { Type, type Static } from 'typebox'
import { CallId, RunId } from './ids.js'

const closed = { additionalProperties: false }
const Time = Type.String({ format: 'date-time' })
const SuspensionId = Type.String({ pattern: '^susp_[0-9A-HJKMNP-TV-Z]{26}[0-9]{1,6}$', title: 'SuspensionId' })

export const SuspensionKind = Type.Enum(['approval', 'client_tools', 'mixed'], { title: 'SuspensionKind' })

/** A call that waits for somebody outside. */
export const SuspendedCall = Type.Object({
  call_id: Type.String(),
  name: Type.String(),
  arguments: Type.Object({}, { additionalProperties: true, description: 'What it would be called with. A decision is about these, and about no others.' }),
  kind: Type.Enum(['approval', 'client_tool'], { description: '`approval`: it waits for a decision. `client_tool`: it waits for the output of the client that runs it.' })
}, { title: 'SuspendedCall' })

/** What a run waits for from outside: `POST …/decisions` answers approvals, `POST …/tool_outputs` client tools. */
export const RequiredAction = Type.Object({
  suspension_id: Type.String(),
  kind: SuspensionKind,
  calls: Type.Array(SuspendedCall, { description: 'Those that are still to be answered.' }),
  expires_at: Type.Union([Time, Type.Null()], { description: 'When the first of them is too late to answer; null: never.' })
}, { ...closed, title: 'RequiredAction' })
export type RequiredAction = Static<typeof RequiredAction>

/** What a person says of one call. */
export const Decision = Type.Object({
  call_id: CallId,
  decision: Type.Enum(['approve', 'reject', 'edit', 'answer'], { description: '`approve`: run it. `reject`: do not; the model is told so, and why. `edit`: run it with other `arguments`. `answer`: do not run it, `output` is its result.' }),
  arguments: Type.Optional(Type.Object({}, { additionalProperties: true, description: 'For `edit`: all of them, checked against the tool\'s parameters.' })),
  reason: Type.Optional(Type.String({ minLength: 1, maxLength: 4096, description: 'For `reject`: what the model is told.' })),
  output: Type.Optional(Type.Unknown({ description: 'For `answer`: any JSON value.' }))
}, { ...closed, title: 'Decision' })

/** Body of `POST /runs/:id/decisions`: all of it is taken, or nothing. */
export const Decisions = Type.Object({
  suspension_id: SuspensionId,
  decisions: Type.Array(Decision, { minItems: 1, maxItems: 256, description: 'Some of the calls, or all; the run goes on when every call is decided.' })
}, { ...closed, title: 'Decisions' })
export type Decisions = Static<typeof Decisions>

export const ToolOutput = Type.Object({
  call_id: CallId,
  output: Type.Unknown({ description: 'Any JSON value. With `is_error` what the model is told went wrong.' }),
  is_error: Type.Optional(Type.Boolean({ default: false, description: 'The tool failed.' }))
}, { ...closed, title: 'ToolOutput' })

/** Body of `POST /runs/:id/tool_outputs`: all of it is taken, or nothing. */
export const ToolOutputs = Type.Object({
  outputs: Type.Array(ToolOutput, { minItems: 1, maxItems: 256, description: 'Some of the client\'s calls, or all.' })
}, { ...closed, title: 'ToolOutputs' })
export type ToolOutputs = Static<typeof ToolOutputs>

export const OrphanReason = Type.Enum(['timeout', 'cancelled', 'duplicate', 'stale', 'run_ended'], {
  title: 'OrphanReason',
  description: 'Why nobody waited for it. `timeout`: its call had taken too long. `cancelled`: its call was. `duplicate`: its call had an output. `stale`: its call had been started again, or given up. `run_ended`.'
})

/** A result that came after its call was settled. The model has not seen it. */
export const Orphan = Type.Object({
  call_id: Type.String(),
  run_id: RunId,
  turn: Type.Integer(),
  name: Type.String(),
  reason: OrphanReason,
  orphaned_at: Time,
  expires_at: Time,
  output: Type.Unknown({ description: 'The whole output.' })
}, { ...closed, title: 'Orphan' })
export type Orphan = Static<typeof Orphan>
