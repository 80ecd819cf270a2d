import type { Event } from '../../src/core/event.js'
import type { Limits, ToolPolicy } from '../../src/core/run.js'
import type { Decisions } from '../../src/schemas/action.js'
import { HARMLESS } from './faults.js'
import { TOOLS, type Facts } from './toolbox.js'
import type { Request } from './users.js'
import type { Evidence, Life } from './world.js'

export type Decision = Decisions['decisions'][number]

/** A start of a call, as its event says it. */
export interface Start { seq: number, time: number, attempt: number, args: Record<string, unknown> }

/** One call as readers have been told of it, and what people and clients have said of it. */
export interface Called {
  id: string
  run: string
  turn: number
  batch: string
  name: string
  facts: Facts
  /** What the model wrote; empty where that was no JSON. */
  written: Record<string, unknown>
  starts: Start[]
  settled: Event | null
  settledAt: number
  /** What its `of` refers to: the calls of its batch, or why it can never run. */
  after: Called[]
  fault: 'invalid_arguments' | 'unknown_tool' | null
  /** Its place in the order in which its batch can be run. */
  rank: number
  decisions: { request: Request, decision: Decision }[]
  outputs: { request: Request, output: unknown, isError: boolean }[]
}

export interface Batch { id: string, run: string, calls: Called[], inOrder: Called[], policy: Partial<ToolPolicy>, limits: Partial<Limits> }

/** Not surely refused: it may have been taken, and its answer lost. */
export const mayBeTaken = ({ outcome, repeated, sent }: Request): boolean => sent < Infinity && (outcome !== 'refused' || repeated)
export const isTaken = ({ outcome }: Request): boolean => outcome === 'accepted'

/** `calm`: no claim had a reason to change hands. `strict`: nothing at all went wrong. */
export function conditionsOf ({ struck, faults, workload }: Evidence): { calm: boolean, strict: boolean } {
  return {
    calm: struck.every(({ kind }) => HARMLESS.has(kind)) && struck.filter((fault) => 'wire' in fault).length < 4,
    strict: faults.length === 0 && workload.errorRate === 0
  }
}

const NONE: Facts = { effects: 'read', idempotent: false, placement: 'local' }

/** The batches of a conversation, from its events and from what the model was heard to say. */
export function readBatches ({ llmCalls, requests }: Evidence, { told, times }: Life): Map<string, Batch> {
  const batches = new Map<string, Batch>()
  const calls = new Map<string, Called>()
  const providerIds = new Map<string, string>()
  told.forEach((event, i) => {
    const call = event.call_id === undefined ? undefined : calls.get(event.call_id)
    switch (event.type) {
      case 'turn.completed': {
        const asked = llmCalls.find((one) => one.run_id === event.run_id && one.turn === event.turn && one.attempt === event.attempt)
        ;(event.tool_calls as { call_id: string }[]).forEach(({ call_id: id }, n) => providerIds.set(id, asked?.answer?.tool_calls[n]?.id ?? ''))
        return
      }
      case 'batch.started': {
        const action = requests.find((one) => one.action.do === 'run' && one.run_id === event.run_id)?.action
        const { policy, limits } = action?.do === 'run' ? action : { policy: {}, limits: {} }
        const made = (event.calls as { call_id: string, name: string, arguments: Record<string, unknown>, raw_arguments?: string }[]).map((one): Called => ({
          id: one.call_id, run: event.run_id as string, turn: event.turn as number, batch: event.batch_id as string, name: one.name, facts: TOOLS[one.name] ?? NONE,
          written: one.arguments, starts: [], settled: null, settledAt: Infinity, after: [],
          fault: TOOLS[one.name] === undefined ? 'unknown_tool' : one.raw_arguments !== undefined ? 'invalid_arguments' : null, rank: -1, decisions: [], outputs: []
        }))
        arrange(made, made.map(({ id }) => providerIds.get(id) ?? ''))
        for (const one of made) calls.set(one.id, one)
        batches.set(event.batch_id as string, {
          id: event.batch_id as string, run: event.run_id as string, calls: made, inOrder: [...made].sort((a, b) => a.rank - b.rank), policy, limits
        })
        return
      }
      case 'tool.started':
        call?.starts.push({ seq: event.seq, time: times[i] as number, attempt: event.attempt as number, args: event.arguments as Record<string, unknown> })
        return
      case 'tool.completed': case 'tool.failed': case 'tool.cancelled':
        if (call === undefined) return
        call.settled = event
        call.settledAt = times[i] as number
    }
  })
  for (const request of requests) {
    const { action } = request
    if (action.do === 'decide') for (const decision of action.body.decisions) calls.get(decision.call_id)?.decisions.push({ request, decision })
    if (action.do === 'outputs') for (const { call_id: id, output, is_error: isError } of action.body.outputs) calls.get(id)?.outputs.push({ request, output, isError: isError === true })
  }
  return batches
}

const REFERENCE = /\{\{stepOutputs\.([^}]+?)(\.of)?\}\}/

/** Which call the `of` of each refers to, and in which order they can be run: written anew, so that it may disagree. */
function arrange (calls: Called[], providerIds: string[]): void {
  const target = (call: Called): Called | null => {
    const written = REFERENCE.exec(String(call.written.of ?? ''))?.[1]
    if (written === undefined) return null
    const named = calls.filter((one) => one.name === written)
    const found = calls[providerIds.indexOf(written)] ?? (named.length === 1 ? named[0] : named.length > 1 ? undefined : calls[Number(written) - 1])
    if (found === undefined) call.fault ??= 'invalid_arguments'
    return found ?? null
  }
  for (const call of calls) {
    const found = target(call)
    if (found !== null) call.after = [found]
  }
  for (const call of calls) {
    const seen = new Set<Called>()
    for (let at = call.after[0]; at !== undefined && !seen.has(at); at = at.after[0]) {
      if (at === call) call.fault ??= 'invalid_arguments'
      seen.add(at)
    }
  }
  const needs = (call: Called, other: Called, seen = new Set<Called>()): boolean => call.after.some((one) => {
    if (one === other) return true
    if (seen.has(one)) return false
    seen.add(one)
    return needs(one, other, seen)
  })
  const mayRun = (call: Called): boolean => call.rank === -1 && (call.fault !== null || call.after.every((one) => one.rank !== -1))
  // What must not be under way at once keeps its order, but for a call that waits for the later one.
  const isPassed = (call: Called): boolean => calls.slice(0, calls.indexOf(call)).every((one) => one.rank !== -1 || one.fault !== null || !clash(one, call) || needs(one, call))
  for (let rank = 0; rank < calls.length; rank++) {
    const next = calls.find((call) => mayRun(call) && isPassed(call)) ?? calls.find(mayRun)
    if (next !== undefined) next.rank = rank
  }
}

/** Whether two calls must not be under way at once, from what the model wrote. */
function clash (a: Called, b: Called): boolean {
  if (a.facts.exclusive === true || b.facts.exclusive === true) return true
  if (a.facts.resources === undefined || b.facts.resources === undefined || (a.facts.effects === 'read' && b.facts.effects === 'read')) return false
  return a.written.box === undefined || b.written.box === undefined || String(a.written.box) === String(b.written.box)
}

/** What a call is to be run with if nobody edits it; null: it cannot be, because what it refers to gave no such thing. */
export function filled ({ written, after: [source] }: Called): Record<string, unknown> | null {
  const text = written.of
  if (source === undefined || typeof text !== 'string') return written
  if (source.settled?.type !== 'tool.completed') return null
  const [all, , path] = REFERENCE.exec(text) as unknown as [string, string, string | undefined]
  const { output } = source.settled
  const value = path === undefined ? output : typeof output === 'object' && output !== null && 'of' in output ? output.of : undefined
  if (value === undefined) return null
  return { ...written, of: text === all ? value : text.replace(all, () => typeof value === 'string' ? value : JSON.stringify(value)) }
}

export const same = (a: unknown, b: unknown): boolean => JSON.stringify(a) === JSON.stringify(b)

/** Arguments that somebody may have put in the place of the model's. */
export function edits ({ decisions }: Called): Record<string, unknown>[] {
  return decisions.flatMap(({ request, decision }) => decision.decision === 'edit' && mayBeTaken(request) ? [decision.arguments as Record<string, unknown>] : [])
}

/** The arguments a call is shown with: the model's, or an edit that was taken. Null: nobody who has not seen its end can say. */
export function shown (call: Called, stored: Map<string, unknown> | undefined): unknown {
  const possible = edits(call)
  if (possible.length === 0) return call.written
  const [first] = call.starts
  const given = first === undefined ? stored?.get(call.id) : first.args
  if (given === undefined) return null
  return possible.find((args) => same(args, given)) ?? call.written
}
