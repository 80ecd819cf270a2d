import { TERMINAL, type Event } from '../../src/core/event.js'
import type { Decisions } from '../../src/schemas/action.js'
import type { Run } from '../../src/schemas/run.js'
import type { EventStream, Frame } from '../support/client.js'
import { judge, type Evidence } from '../support/invariants.js'
import { outOfOrder } from '../support/message-order.js'
import type { RecordedRequest } from '../support/model-server.js'
import { changedMessage } from '../support/payload.js'
import type { Attempt } from '../support/tool-server.js'
import { CALLER } from './fleet.js'
import type { Journal } from './journal.js'
import type { Sayings } from './provider.js'
import { ONCE, type Session } from './workload.js'

export interface Case {
  session: Session
  /** Null: the conversation was deleted. */
  evidence: Evidence | null
  requests: RecordedRequest[]
  attempts: Attempt[]
  said: Sayings
  journal: Journal
  /** How long a claim can outlive its worker, in milliseconds, with all that may come on top. */
  lapseMs: number
  /** How long a lock, or a sign of life, holds: what was over longer before something began costs it nothing. Milliseconds. */
  lockTtlMs: number
  /** Is told of everything that was made twice for a reason: done to its own process, or only to all of them. */
  excuse: (reason: 'own' | 'all') => void
}

/** How long after the end of a run a worker that nothing was done to may still begin what it has not heard was called off. Milliseconds. */
const LATE_MS = 1500

/** When a request came and was over, in milliseconds since 1970. */
export const timesOf = ({ arrivedAt, endedAt }: RecordedRequest): { from: number, to: number } =>
  ({ from: performance.timeOrigin + arrivedAt, to: endedAt === null ? Infinity : performance.timeOrigin + endedAt })

export const callerOf = ({ headers }: RecordedRequest): string => (headers.authorization ?? '').split(CALLER)[1] ?? ''

/** What is wrong with a conversation, given all that was done to the system; sentences that begin with the invariant (FAULTS 4.1). */
export function judgeCase (one: Case): string[] {
  const faults = [...one.session.wrong]
  const wrong = (what: string) => { faults.push(what) }
  judgeReaders(one, wrong)
  judgeCalls(one, wrong)
  if (one.evidence === null) return faults
  const streams = one.session.segments.map(asStream)
  const discards = one.session.sent.some(({ body }) => (body as { completed_calls?: string } | undefined)?.completed_calls === 'discard')
  faults.push(...judge({ ...one.evidence, streams }, ['deltas', 'waits', 'requests', ...discards ? ['discard' as const] : []]))
  judgeRequests(one, one.evidence, wrong)
  judgeWords(one, one.evidence, wrong)
  judgeMessages(one, one.evidence, wrong)
  judgeRuns(one, one.evidence, wrong)
  judgeDecisions(one, one.evidence, wrong)
  return faults
}

type Wrong = (what: string) => void

/** `Map.groupBy`, which the oldest Node we run on lacks. */
function groupBy<T, K> (items: T[], keyOf: (item: T) => K): Map<K, T[]> {
  const groups = new Map<K, T[]>()
  for (const item of items) groups.set(keyOf(item), [...groups.get(keyOf(item)) ?? [], item])
  return groups
}

const eventsIn = (frames: Frame[]): Event[] => frames.flatMap(({ id, data }) => id === null ? [] : [JSON.parse(data) as Event])

/** What the judge of the four records looks at. */
function asStream ({ path, after, frames }: Session['segments'][number]): EventStream {
  return { path, after: seqOf(after), frames, events: () => eventsIn(frames) } as EventStream
}

/** Behind the dot of an event's id stands its epoch. */
const seqOf = (id: string): number => Number.parseInt(id)

/** I4, I15: whoever reads an event, when and where ever, reads the same bytes; each connection goes on behind the one before. */
function judgeReaders ({ session }: Case, wrong: Wrong): void {
  const bytes = new Map<string, string>()
  for (const { path, after, frames } of session.segments) {
    let last = seqOf(after)
    for (const { id, event, data } of frames) {
      if (event === 'stream.reset') wrong(`I4b: ${path} after ${after} was reset, though nothing was lost`)
      if (id === null) continue
      if (bytes.has(id) && bytes.get(id) !== data) wrong(`I4: event ${id} was read with two contents on ${path}`)
      bytes.set(id, data)
      if (seqOf(id) <= last) wrong(`I15: ${path} after ${after} brings ${id} behind ${last}`)
      if (path.startsWith('/conversations/') && seqOf(id) !== last + 1) wrong(`I4: ${path} after ${after} brings ${id} behind ${last}`)
      last = seqOf(id)
    }
  }
}

/** I7: what writes is executed once at most, everything else always under the same key. */
function judgeCalls ({ attempts }: Case, wrong: Wrong): void {
  const byCall = groupBy(attempts, ({ headers }) => String(headers['interlock-call-id']))
  for (const [call, executions] of byCall) {
    const name = executions[0]?.headers['x-tool'] as string | undefined
    if (name !== undefined && ONCE.has(name) && executions.length > 1) wrong(`I7: ${name} ${call}, which writes, was executed ${executions.length} times`)
    if (new Set(executions.map(({ headers }) => headers['idempotency-key'])).size > 1) wrong(`I7: ${call} was executed under several keys`)
  }
}

/** I1b, I2, I3b, I12: every LLM call has its reason, is alone unless its caller could not help it, adds to history, and none comes after the end. */
function judgeRequests ({ journal, lapseMs, lockTtlMs, excuse, said }: Case, { events, requests }: Evidence, wrong: Wrong): void {
  const tries = new Map(events.flatMap((event) => event.type === 'turn.started' || event.type === 'turn.retrying' ? [[`${event.run_id}.${event.turn}.${event.attempt}`, event]] : []))
  const byId = groupBy(requests, ({ requestId }) => requestId ?? '')
  for (const [id, made] of byId) {
    if (!tries.has(id)) wrong(`I1b: LLM request ${id} has no event`)
    if (made.length > 1) wrong(`I1b: LLM request ${id} was made ${made.length} times`)
  }
  for (const event of events) {
    if (event.type !== 'turn.retrying') continue
    const before = `${event.run_id}.${event.turn}.${(event.attempt as number) - 1}`
    const reason = String(event.reason)
    const at = Date.parse(event.time)
    const [request] = byId.get(before) ?? []
    // Whatever was done since the try began may have ended it; that is seen when there is somebody to see it.
    const began = Date.parse(tries.get(before)?.time ?? event.time) - lockTtlMs
    const why = journal.explains(request === undefined ? 'any' : [callerOf(request)], began, at)
    if (reason.startsWith('provider') || reason.startsWith('rate') || reason.startsWith('stream')) {
      const own = said.get(before)?.fault ?? null
      if (own === null && why === null) wrong(`I1b: ${before} is tried again for ${reason}, though the provider answered`)
    } else if (why !== null) {
      excuse(why)
    } else {
      wrong(`I1b: ${before} is tried again for ${reason}, though nothing was done to its worker`)
    }
  }
  const inOrder = [...requests].sort((a, b) => a.arrivedAt - b.arrivedAt)
  inOrder.forEach((later, i) => {
    for (const earlier of inOrder.slice(0, i)) {
      const { to } = timesOf(earlier)
      const { from } = timesOf(later)
      // The end of a request that was given up is heard of a little later than the next one begins.
      if (to <= from + 50) continue
      const why = journal.explains([callerOf(earlier)], timesOf(earlier).from - lockTtlMs, from)
      if (why === null) wrong(`I2: ${later.requestId} was made while ${earlier.requestId} was in flight, and nothing was done to the caller of that`)
      else excuse(why)
    }
  })
  const byTry = [...byId.values()].flatMap(([first]) => first ?? []).sort((a, b) => turnOf(a) - turnOf(b) || attemptOf(a) - attemptOf(b))
  byTry.forEach((request, i) => {
    const before = byTry[i - 1]
    if (before === undefined || changedMessage(dialogue(before), dialogue(request)) === null) return
    wrong(`I3b: LLM request ${request.requestId} changes what ${before.requestId} was sent`)
  })
  for (const request of requests) {
    const run = request.requestId?.split('.')[0]
    const end = events.find((event) => event.run_id === run && TERMINAL.has(event.type))
    const { from } = timesOf(request)
    if (end !== undefined && from > Date.parse(end.time) + LATE_MS && journal.explains([callerOf(request)], from - lapseMs, from) === null) wrong(`I12: LLM request ${request.requestId} was made ${Math.round(from - Date.parse(end.time))} ms after the end of its run`)
  }
}

const dialogue = ({ body }: RecordedRequest): { messages: unknown[] } => ({ messages: body.messages.filter((message) => message.role !== 'system') })
const turnOf = ({ requestId }: RecordedRequest): number => Number(requestId?.split('.')[1])
const attemptOf = ({ requestId }: RecordedRequest): number => Number(requestId?.split('.')[2])

/**
 * I16, I17, I25: what the log and readers have as the model's words is what it said, whole; what the ledger has as a tool's output that tool was asked for, and
 * had given, as the last attempt that began.
 */
function judgeWords ({ session, said, attempts }: Case, { events, runs }: Evidence, wrong: Wrong): void {
  for (const event of events) {
    if (event.type !== 'turn.completed') continue
    const id = `${event.run_id}.${event.turn}.${event.attempt}`
    const words = said.get(id)
    if (words === undefined) wrong(`I16: nobody said what ${id} has as its answer`)
    else if (words.fault !== null) wrong(`I17: ${id} was committed, though its answer was not whole (${words.fault})`)
    else if (words.text !== event.text) wrong(`I16: ${id} has another text than the model said`)
    else {
      const calls = (event.tool_calls as { name: string, arguments: unknown }[]).map(({ name, arguments: args }) => ({ name, arguments: JSON.stringify(args) }))
      if (JSON.stringify(calls) !== JSON.stringify(words.calls)) wrong(`I16: ${id} has other calls than the model made`)
    }
  }
  for (const { data, event } of session.segments.flatMap(({ frames }) => frames)) {
    if (event !== 'turn.delta') continue
    const { run_id: run, turn, attempt, offset, text } = JSON.parse(data) as { run_id: string, turn: number, attempt: number, offset: number, text: string }
    const words = said.get(`${run}.${turn}.${attempt}`)
    if (words !== undefined && words.text.slice(offset, offset + text.length) !== text) wrong(`I25: a reader was shown a text of ${run}.${turn}.${attempt} that the model did not say there`)
  }
  const executed = new Map(attempts.map(({ headers, args }) => [String(headers['interlock-call-id']), args]))
  for (const call of runs.flatMap((one) => one.calls)) {
    if (call.status !== 'completed' || call.name === 'ask') continue
    if (call.output !== executed.get(call.call_id)?.value) wrong(`I16: ${call.call_id} has an output that its tool did not give`)
    const last = attempts.find(({ headers }) => headers['interlock-call-id'] === call.call_id && Number(headers['interlock-attempt']) === call.attempt)
    const completed = events.find((event) => event.type === 'tool.completed' && event.call_id === call.call_id)
    // By the clocks of two processes.
    if (last === undefined || (last.ended_at ?? Infinity) > Date.parse(completed?.time ?? '') + 50) wrong(`I7: ${call.call_id} was completed by an attempt before its last, which had given nothing yet`)
  }
}

/** I5: what was accepted is there once and in order; what was refused never; what nobody knows at most once. */
function judgeMessages ({ session }: Case, { events, messages, runs }: Evidence, wrong: Wrong): void {
  for (const sent of session.sent) {
    if (sent.what !== 'message' && sent.what !== 'run') continue
    const named = events.filter((event) => sent.what === 'run' ? event.type === 'run.created' && event.input === sent.text : event.type === 'message.accepted' && event.content === sent.text)
    const entered = messages.filter(({ role, content }) => role === 'user' && content === sent.text).length
    const least = sent.outcome === 'accepted' ? 1 : 0
    const most = sent.outcome === 'refused' && !sent.doubtful ? 0 : 1
    if (named.length < least || named.length > most) wrong(`I5: "${sent.text}" (${sent.outcome}) has ${named.length} events`)
    if (entered > most) wrong(`I5: "${sent.text}" (${sent.outcome}) is in the ledger ${entered} times`)
    if (sent.what === 'run' || named[0] === undefined) continue
    const id = named[0].message_id
    const ends = events.filter((event) => ['message.delivered', 'message.superseded', 'message.withdrawn'].includes(event.type) && event.message_id === id)
    if (ends.length !== 1) wrong(`I5: "${sent.text}" was ${ends.map(({ type }) => type).join() || 'never delivered nor given up'}`)
    if ((ends[0]?.type === 'message.delivered') !== (entered === 1)) wrong(`I5: "${sent.text}" is in the ledger ${entered} times, its last event ${ends[0]?.type}`)
  }
  for (const way of outOfOrder(events)) wrong(`I5: messages of ${way} were delivered in another order than they were accepted`)
  for (const { run } of runs) {
    if (session.runs.some(({ id }) => id === run.id)) continue
    const text = events.find((event) => event.type === 'run.created' && event.run_id === run.id)?.input
    const sent = session.sent.find((one) => one.what === 'run' && one.text === text)
    if (sent === undefined || (sent.outcome === 'refused' && !sent.doubtful)) wrong(`I5: ${run.id} is there, and nobody was told so`)
  }
  for (const { id } of session.runs) if (!runs.some(({ run }) => run.id === id)) wrong(`I14: ${id} was accepted and is not there`)
}

/** I12, I13: every run has ended, with one last event. */
function judgeRuns (_: Case, { runs }: Evidence, wrong: Wrong): void {
  for (const { run } of runs) {
    if (run.ended_at === null) wrong(`I13: ${run.id} is ${run.status}: ${JSON.stringify((run as Run).current)}`)
  }
}

/** I8: what needs consent runs once it was given, with what was consented to, and one answer holds. */
function judgeDecisions ({ session, attempts }: Case, { runs }: Evidence, wrong: Wrong): void {
  const given = session.sent.filter(({ what, outcome, doubtful }) => what === 'decide' && (outcome !== 'refused' || doubtful))
  for (const call of runs.flatMap((one) => one.calls).filter(({ name }) => name === 'pay')) {
    const decisions = given.flatMap(({ body, outcome }) => (body as Decisions).decisions.flatMap((one) => one.call_id === call.call_id ? [{ ...one, sure: outcome === 'accepted' }] : []))
    const sure = decisions.filter((one) => one.sure)
    if (sure.length > 1) wrong(`I8: ${call.call_id} was decided ${sure.length} times`)
    const executed = attempts.filter(({ headers }) => headers['interlock-call-id'] === call.call_id)
    const allowed = (sure.length > 0 ? sure : decisions).flatMap(({ decision, arguments: args }) => {
      return decision === 'approve' ? [JSON.stringify(call.arguments)] : decision === 'edit' ? [JSON.stringify(args)] : []
    })
    for (const { args } of executed) {
      if (!allowed.includes(JSON.stringify(args))) wrong(`I8: ${call.call_id} was executed with ${JSON.stringify(args)}; allowed was ${allowed.join(' or ') || 'nothing'}`)
    }
  }
  for (const { body, outcome, text } of session.sent.filter(({ what }) => what === 'output')) {
    if (outcome !== 'accepted') continue
    for (const { call_id: id, output } of (body as { outputs: { call_id: string, output: unknown }[] }).outputs) {
      const call = runs.flatMap((one) => one.calls).find((one) => one.call_id === id)
      if (call?.output !== output) wrong(`I5: the accepted output of ${id} is not its output ${text}`)
    }
  }
}
