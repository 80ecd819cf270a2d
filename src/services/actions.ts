import type { CallOutcome, Decision as Decided } from '../core/command.js'
import { docNames } from '../core/draft.js'
import type { LedgerCall } from '../core/message.js'
import { lateBecause, type Settled } from '../core/orphans.js'
import { awaited } from '../core/schedule.js'
import { unanswered } from '../core/suspension.js'
import type { CallError } from '../core/run.js'
import type { CallState, RunRecord, State } from '../core/state.js'
import { callSettled, notFound, suspensionResolved, validationFailed, type FieldError } from '../errors.js'
import type { Result } from '../engine/execute.js'
import { errorForModel, forModel } from '../engine/tools/output.js'
import { ToolError } from '../engine/tools/tool.js'
import type { Decisions, ToolOutputs } from '../schemas/action.js'
import { answering, conversationOf, rowOf, type Context } from './context.js'
import { requireRun, type StoredRun } from './run-view.js'
import type { Caller, Services } from './services.js'

/** A decision as it stands beside the row. */
interface DecisionDoc { call_id: string, decided_at: string, decision: string, operation?: string }

/** A settled call as it stands beside the row. */
interface SettledCall extends Settled { run_id: string, turn: number, batch_id: string, seq: number, operation?: string }

/** What people and clients answer a run that waits for them. */
export function createActionService (context: Pick<Context, 'store' | 'executed' | 'clock' | 'tools'>): Services['actions'] {
  const { store, executed, clock, tools } = context

  const outcomeOf = (output: unknown, maxChars: number): CallOutcome => ({ status: 'completed', output, ...forModel(output, maxChars) })

  /** What a client has given for the error of its tool. */
  const errorOf = (output: unknown): CallError => ({ code: 'tool_error', message: forModel(output, 4_000).text })

  /** How much of an output the model of this run may see. */
  const maxChars = (state: State, runId: string) => state.run?.id === runId ? state.run.limits.max_result_chars : 60_000

  /** The tools of a run, as they were when it was created. */
  async function declaredTools (conversation: string, runId: string): Promise<StoredRun['tools']> {
    const [record] = await store.docs(conversation, [docNames.run(runId)])
    return record == null ? [] : ((JSON.parse(record) as RunRecord).request as StoredRun).tools
  }

  /** Decisions in the core's words. Throws `validation_failed` with every fault found. */
  async function readDecisions (conversation: string, state: State, runId: string, { decisions }: Decisions): Promise<Decided[]> {
    const faults: FieldError[] = []
    const declared = await declaredTools(conversation, runId)
    const phase = state.run?.phase.type === 'batch' ? state.run.phase : null
    const read = decisions.map((given, i): Decided => {
      const { call_id: callId, decision } = given
      const pointer = `/decisions/${i}`
      const fault = (field: string, detail: string) => { faults.push({ pointer: `${pointer}${field}`, detail }) }
      if (decisions.findIndex((one) => one.call_id === callId) !== i) fault('/call_id', 'is decided on twice')
      for (const [field, wanted] of [['arguments', 'edit'], ['reason', 'reject'], ['output', 'answer']] as const) {
        if (given[field] !== undefined && decision !== wanted) fault(`/${field}`, `only with "decision": "${wanted}"`)
      }
      switch (decision) {
        case 'approve': return { call_id: callId, decision }
        case 'reject': return { call_id: callId, decision, reason: given.reason ?? null }
        case 'answer':
          if (!('output' in given)) fault('/output', 'required: it becomes the result of the call')
          return { call_id: callId, decision, outcome: outcomeOf(given.output ?? null, maxChars(state, runId)) }
        case 'edit': {
          const args = given.arguments as Record<string, unknown> | undefined
          if (args === undefined) fault('/arguments', 'required: the call is run with them')
          const tool = declared.find((one) => one.name === phase?.calls.find((call) => call.id === callId)?.name)
          try {
            if (args !== undefined && tool !== undefined) tools.validate(tool, args)
          } catch (error) {
            fault('/arguments', error instanceof ToolError ? error.message : 'do not fit the tool\'s parameters')
          }
          return { call_id: callId, decision, arguments: args ?? {} }
        }
      }
    })
    if (faults.length > 0) throw validationFailed(faults)
    const edited = read.filter((one) => one.decision === 'edit')
    const asked = edited.length === 0 ? [] : await store.docs(conversation, edited.map((one) => docNames.call(one.call_id)))
    for (const [i, one] of edited.entries()) {
      const { provider_id: id } = JSON.parse(asked[i] ?? '{}') as Partial<LedgerCall>
      if (id !== undefined) one.provider_id = id
    }
    return read
  }

  /** The calls of a state that wait for the client. */
  const clientsOf = ({ run }: State, runId: string): CallState[] => {
    return run?.id === runId && run.phase.type === 'batch' ? unanswered(run.phase).filter((call) => awaited(call) === 'client_tool') : []
  }

  /** Who was first, for whoever was second; null: it was this very request, which is repeated because its answer was lost. */
  async function tooLate (
    caller: Caller, conversation: string, runId: string, suspensionId: string, callIds: string[], { refusal, row }: Pick<Result, 'refusal' | 'row'>
  ): Promise<Error | null> {
    const open = refusal === 'call_settled'
    const [suspension, ...decided] = await store.docs(conversation, [docNames.suspension(suspensionId), ...callIds.map(docNames.decision)])
    if (suspension == null || (JSON.parse(suspension) as { run_id: string }).run_id !== runId) return notFound('suspension')
    const known = (JSON.parse(suspension) as { calls: string[] }).calls
    if (!callIds.every((id) => known.includes(id))) return notFound('call')
    const winners = decided.flatMap((json) => json == null ? [] : [JSON.parse(json) as DecisionDoc])
    if (winners.length === callIds.length && winners.every((one) => one.operation === caller.operation)) return null
    const who = winners.map((one) => `${one.call_id}: ${one.decision}, ${one.decided_at}`).join('; ')
    const ids = winners.map((one) => one.call_id)
    if (open && who === '' && row !== null && clientsOf(row.state, runId).some((call) => callIds.includes(call.id))) return notFound('call that waits for a decision')
    if (open && who === '') return callSettled('the time to decide is over', callIds)
    return open ? callSettled(`already decided (${who})`, ids) : suspensionResolved(suspensionId, who === '' ? 'superseded' : who, ids)
  }

  /**
   * Why outputs cannot be taken. A call that never was the client's to answer makes the whole request one that changes nothing (404), whatever else is in
   * it; otherwise those that came too late are kept as orphans (409). Null: this very request has brought them before, and its answer was lost.
   */
  async function keepLate (caller: Caller, conversation: string, runId: string, { outputs }: ToolOutputs): Promise<Error | null> {
    // Somebody's time may be over without anybody having looked since.
    await executed.execute(conversation, { type: 'Advance', at: clock.now() })
    const { state } = await rowOf(context, caller, conversation)
    const [declared, texts] = await Promise.all([
      declaredTools(conversation, runId), store.docs(conversation, outputs.flatMap(({ call_id: id }) => [docNames.call(id), docNames.done(id)]))
    ])
    const dones = outputs.map((_, i) => JSON.parse(texts[2 * i + 1] ?? 'null') as SettledCall | null)
    if (dones.every((done) => done?.operation === caller.operation)) return null
    const open = clientsOf(state, runId)
    const late: { output: ToolOutputs['outputs'][number], name: string, settled: SettledCall }[] = []
    for (const [i, output] of outputs.entries()) {
      const call = texts[2 * i]
      const name = call == null ? null : (JSON.parse(call) as { name: string }).name
      const settled = dones[i] ?? null
      const isClients = name !== null && declared.some((tool) => tool.name === name && tool.kind === 'client')
      // What was settled before the client was handed it was never the client's.
      if (isClients && settled?.run_id === runId && settled.attempt > 0) late.push({ output, name, settled })
      else if (!open.some((one) => one.id === output.call_id)) return notFound('call that waits for an output')
    }
    if (late.length === 0) return notFound('call that waits for an output')
    // Together, so that they are stored as one.
    await Promise.all(late.map(({ output: { call_id: id, output: given, is_error: failed }, name, settled }) => {
      const known = lateBecause(settled, settled.attempt)
      const output = failed === true ? { error: errorOf(given) } : given
      return executed.execute(conversation, {
        type: 'KeepOrphan', at: clock.now(), run_id: runId, turn: settled.turn, batch_id: settled.batch_id, call_id: id, name,
        attempt: settled.attempt, cause: settled.seq, fence: state.fence, known, output, ...forModel(output, maxChars(state, runId))
      })
    }))
    return callSettled('was settled before; an output that comes too late is kept among the orphans of the run', late.map(({ output }) => output.call_id))
  }

  return {
    decide: (caller, runId, body) => answering(async () => {
      const conversation = await conversationOf(context, caller, runId)
      const { state } = await rowOf(context, caller, conversation)
      const decisions = await readDecisions(conversation, state, runId, body)
      const { refusal, row } = await executed.execute(conversation, {
        type: 'Decide', at: clock.now(), operation: caller.operation, run_id: runId, suspension_id: body.suspension_id, decisions
      }, { claim: 'local' })
      if (refusal !== null || row === null) {
        const error = await tooLate(caller, conversation, runId, body.suspension_id, decisions.map((one) => one.call_id), { refusal, row })
        if (error !== null) throw error
      }
      return await requireRun(store, conversation, runId)
    }),

    submit: (caller, runId, body) => answering(async () => {
      const conversation = await conversationOf(context, caller, runId)
      const { state } = await rowOf(context, caller, conversation)
      const twice = body.outputs.findIndex(({ call_id: id }, i) => body.outputs.findIndex((one) => one.call_id === id) !== i)
      if (twice !== -1) throw validationFailed([{ pointer: `/outputs/${twice}/call_id`, detail: 'has an output twice' }])
      const { refusal } = await executed.execute(conversation, {
        type: 'SubmitOutputs',
        at: clock.now(),
        operation: caller.operation,
        run_id: runId,
        outputs: body.outputs.map(({ call_id: callId, output, is_error: failed }) => {
          if (failed !== true) return { call_id: callId, outcome: outcomeOf(output, maxChars(state, runId)) }
          const error = errorOf(output)
          return { call_id: callId, outcome: { status: 'failed' as const, error, text: errorForModel(error) } }
        })
      }, { claim: 'local' })
      const error = refusal === null ? null : await keepLate(caller, conversation, runId, body)
      if (error !== null) throw error
      return await requireRun(store, conversation, runId)
    })
  }
}
