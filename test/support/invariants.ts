import { TERMINAL, type Event } from '../../src/core/event.js'
import type { Message } from '../../src/core/message.js'
import type { Conversation } from '../../src/schemas/conversation.js'
import type { Call, Run } from '../../src/schemas/run.js'
import type { Client, EventStream, Frame } from './client.js'
import { schemaFaults } from './event-schema.js'
import type { RecordedRequest } from './model-server.js'
import { changedMessage } from './payload.js'
import type { Attempt } from './tool-server.js'

/** All that is known of one conversation, from the four records: HTTP, SSE, LLM requests, tool attempts. */
export interface Evidence {
  conversation: Conversation
  events: Event[]
  messages: Message[]
  runs: { run: Run, calls: Call[] }[]
  streams: EventStream[]
  requests: RecordedRequest[]
  attempts: Attempt[]
}

interface Records { streams: EventStream[], requests: RecordedRequest[], attempts: Attempt[] }

/** Reads a conversation over HTTP and picks what belongs to it from what was recorded. Null: there is none (any more). */
export async function gather (client: Client, id: string, { streams, requests, attempts }: Records): Promise<Evidence | null> {
  const answer = await client.request('GET', `/conversations/${id}`)
  if (answer.status === 404) return null
  const events = await client.log({ conversation: id })
  const runIds = [...new Set(events.flatMap((event) => event.run_id ?? []))]
  const runs = await Promise.all(runIds.map(async (run) => ({ run: await client.run(run), calls: await client.calls(run) })))
  return {
    conversation: JSON.parse(answer.text) as Conversation,
    events,
    messages: await client.messages(id),
    runs,
    streams: streams.filter(({ path, frames }) => path.includes(id) || runIds.some((run) => path.includes(run) || frames[0]?.data.includes(run))),
    requests: requests.filter(({ requestId }) => runIds.includes(requestId?.split('.')[0] ?? '')),
    attempts: attempts.filter(({ headers }) => runIds.includes(String(headers['interlock-run-id'])))
  }
}

/** How much later than it happened the end of a tool call may be noticed, in milliseconds: by a loop that has other things to do as well. */
const SLACK_MS = 50

/**
 * - `deltas`: streamed text may have holes, because Redis was away and deltas are not stored.
 * - `discard`: somebody has asked for `completed_calls: discard`, so what was settled in a batch that was interrupted may be missing in the ledger.
 * - `overlap`: two LLM calls of a conversation may be open at once, because a process was frozen and cannot close its own.
 * - `requests`: the caller judges LLM requests, who knows which processes were killed, frozen or cut off.
 * - `rollback`: Redis has lost what it had acknowledged, so models, tools and readers know of a time that never was.
 * - `waits`: calls wait for each other or for a person, so they start in another order, or are answered without a start.
 */
export type Exception = 'deltas' | 'discard' | 'overlap' | 'requests' | 'rollback' | 'waits'

/** What is wrong with a conversation, whatever was done to it, in sentences; empty when nothing is. Runs may still be active. */
export function judge (evidence: Evidence, except: Exception[] = []): string[] {
  const faults: string[] = []
  const wrong = (what: string) => { faults.push(what) }
  judgeLog(evidence, wrong)
  for (const { run } of evidence.runs) judgeRun(run, evidence.events.filter((event) => event.run_id === run.id), wrong)
  judgeTurns(evidence, wrong)
  judgeBatches(evidence, except.includes('waits'), wrong)
  judgeLedger(evidence, except.includes('discard'), wrong)
  if (!except.includes('rollback')) {
    if (!except.includes('requests')) judgeRequests(evidence, !except.includes('overlap'), wrong)
    judgeAttempts(evidence, wrong)
  }
  judgeIds(evidence, wrong)
  for (const stream of evidence.streams) judgeStream(stream, evidence.events, !except.includes('deltas'), wrong)
  return faults
}

type Wrong = (what: string) => void

const say = ({ seq, type }: Event): string => `${seq} ${type}`

/** C1, C11: the log counts 1, 2, 3 …, causes come before what they cause, and each event is what its schema says. */
function judgeLog ({ conversation, events }: Evidence, wrong: Wrong): void {
  const runSeqs = new Map<string, number>()
  events.forEach((event, i) => {
    if (event.seq !== i + 1) wrong(`event ${i + 1} of the log has the number ${event.seq}`)
    if (event.conversation_id !== conversation.id) wrong(`${say(event)} belongs to ${event.conversation_id}`)
    if (Number.isNaN(Date.parse(event.time))) wrong(`${say(event)} has no time`)
    for (const fault of schemaFaults(event)) wrong(`${say(event)}: ${fault}`)
    for (const cause of event.caused_by) if (cause >= event.seq || cause < 1) wrong(`${say(event)} is caused by ${cause}`)
    if (event.caused_by.length === 0 && event.type !== 'run.created') wrong(`${say(event)} has no cause`)
    if (event.run_id === undefined) return
    const expected = (runSeqs.get(event.run_id) ?? 0) + 1
    if (event.run_seq !== expected) wrong(`${say(event)} has run_seq ${event.run_seq}, not ${expected}`)
    runSeqs.set(event.run_id, expected)
  })
  if (conversation.last_seq !== events.length) wrong(`the conversation says its newest event is ${conversation.last_seq}; the log has ${events.length}`)
}

/** C4, C6: one beginning, one end, nothing behind it; and what HTTP says of the run is what its events say. */
function judgeRun (run: Run, events: Event[], wrong: Wrong): void {
  const last = events.at(-1)
  const ends = events.filter((event) => TERMINAL.has(event.type))
  if (events[0]?.type !== 'run.created' || events.filter((event) => event.type === 'run.created').length !== 1) wrong(`${run.id} does not begin with its one run.created`)
  if (events.filter((event) => event.type === 'run.started').length > 1) wrong(`${run.id} started more than once`)
  if (run.ended_at === null) {
    if (ends.length > 0) wrong(`${run.id} is ${run.status} and has ${ends.map(say).join()}`)
    return
  }
  if (ends.length !== 1 || last !== ends[0]) wrong(`${run.id} ends with ${last === undefined ? 'nothing' : say(last)} and has the ends ${ends.map(say).join()}`)
  if (last?.type !== `run.${run.status}`) wrong(`${run.id} is ${run.status}, its last event ${last?.type}`)
  for (const field of ['output', 'usage', 'stop_reason', 'error'] as const) {
    if (JSON.stringify(last?.[field]) !== JSON.stringify(run[field])) wrong(`${run.id} has another ${field} than its last event`)
  }
}

/** C5, C10, D1: turn numbers rise by one; each starts once and ends once; tries are counted; only an interrupt begins a turn over an open batch. */
function judgeTurns ({ events, runs }: Evidence, wrong: Wrong): void {
  const interrupted = new Set(events.flatMap((event) => event.type === 'tool.cancelled' ? event.turn ?? 0 : []))
  let turn = 0
  let attempt = 0
  let open: 'turn' | 'batch' | null = null
  for (const event of events) {
    switch (event.type) {
      case 'turn.started':
        if (open !== null && !(open === 'batch' && interrupted.has(turn))) wrong(`${say(event)} comes while a ${open} is open`)
        if (event.turn !== turn + 1) wrong(`${say(event)} has the number ${event.turn} after turn ${turn}`)
        turn = event.turn ?? 0
        attempt = 1
        open = 'turn'
        if (event.attempt !== 1) wrong(`${say(event)} begins with attempt ${event.attempt}`)
        break
      case 'turn.retrying':
        attempt++
        if (open !== 'turn' || event.turn !== turn || event.attempt !== attempt) wrong(`${say(event)}: attempt ${event.attempt} of turn ${event.turn}, expected ${attempt} of ${turn}`)
        break
      case 'turn.completed':
        if (open !== 'turn' || event.turn !== turn || event.attempt !== attempt) wrong(`${say(event)}: attempt ${event.attempt} of turn ${event.turn}, expected ${attempt} of ${turn}`)
        open = null
        break
      case 'turn.cancelled':
        if (open !== 'turn' || event.turn !== turn) wrong(`${say(event)} ends turn ${event.turn}, which is not open`)
        open = null
        break
      case 'batch.started':
        open = 'batch'
        break
      case 'batch.completed':
        if (open !== 'batch') wrong(`${say(event)}: no batch is open`)
        open = null
        break
      default:
        if (!TERMINAL.has(event.type)) break
        // A run that waits in the queue can be cancelled while another one is in the middle of a turn.
        if (event.run_id !== events.findLast((one) => one.seq < event.seq && one.type === 'turn.started')?.run_id) break
        if (open === 'turn' && event.type !== 'run.failed') wrong(`${say(event)} leaves turn ${turn} open`)
        open = null
    }
  }
  const active = runs.some(({ run }) => run.ended_at === null)
  if (open !== null && !active) wrong(`turn ${turn} is left with an open ${open}, though no run is active`)
}

const SETTLED = ['tool.completed', 'tool.failed', 'tool.cancelled']

/** C7, C9, C10, E17: a batch is announced, its calls are started in request order and settled once each, then it closes once, with the right counts. */
function judgeBatches ({ events, runs }: Evidence, waits: boolean, wrong: Wrong): void {
  const known = new Map(runs.flatMap(({ calls }) => calls.map((call) => [call.call_id, call])))
  for (const opened of events.filter((event) => event.type === 'batch.started')) {
    const asked = opened.calls as { call_id: string, name: string, arguments: unknown }[]
    // What came too late belongs to it, but comes whenever it comes.
    const of = events.filter((event) => event.batch_id === opened.batch_id && event.type !== 'tool.orphaned')
    const run = runs.find((one) => one.run.id === opened.run_id)?.run
    const turn = events.find((event) => event.type === 'turn.completed' && event.turn === opened.turn)
    if (JSON.stringify(turn?.tool_calls) !== JSON.stringify(asked)) wrong(`${say(opened)} has other calls than its turn`)
    if (of[0] !== opened) wrong(`${say(opened)} is not the first of its batch`)
    for (const event of of) {
      if (event.turn !== opened.turn || event.run_id !== opened.run_id) wrong(`${say(event)} names another turn or run than its batch`)
    }
    const firstStarts = of.filter((event) => event.type === 'tool.started' && event.attempt === 1).map((event) => event.call_id)
    const inOrder = asked.map((call) => call.call_id).filter((id) => firstStarts.includes(id))
    if (!waits && JSON.stringify(firstStarts) !== JSON.stringify(inOrder)) wrong(`${say(opened)}: calls were not started in request order`)

    const counts = { completed: 0, failed: 0, cancelled: 0 }
    for (const { call_id: id, name } of asked) {
      const own = of.filter((event) => event.call_id === id)
      const ends = own.filter((event) => SETTLED.includes(event.type))
      const starts = own.filter((event) => event.type === 'tool.started')
      const call = known.get(id)
      if (own.some((event) => event.name !== name)) wrong(`call ${id} changes its name`)
      if (starts.some((event, i) => event.attempt !== i + 1)) wrong(`call ${id}: attempts are not counted 1, 2, 3`)
      if (ends.length > 1) wrong(`call ${id} is settled ${ends.length} times`)
      if (call === undefined) wrong(`call ${id} is not listed`)
      const [end] = ends
      if (end === undefined) {
        if (run?.ended_at !== null) wrong(`call ${id} of an ended run is not settled`)
        continue
      }
      if (own.at(-1) !== end) wrong(`call ${id} has events after ${say(end)}`)
      const status = end.type.slice('tool.'.length) as keyof typeof counts
      counts[status]++
      if (!waits && status === 'completed' && starts.length === 0) wrong(`call ${id} completed without being started`)
      if (call?.status !== status) wrong(`call ${id} is ${call?.status}, its last event ${end.type}`)
      if (call?.attempt !== starts.length) wrong(`call ${id} says attempt ${call?.attempt}; it was started ${starts.length} times`)
      if (status === 'completed' && end.truncated !== true && JSON.stringify(call?.output) !== JSON.stringify(end.output)) wrong(`call ${id} has another output than its event`)
      if (status === 'failed' && JSON.stringify(call?.error) !== JSON.stringify(end.error)) wrong(`call ${id} has another error than its event`)
    }
    const closed = of.filter((event) => event.type === 'batch.completed')
    const all = counts.completed + counts.failed + counts.cancelled === asked.length
    if (closed.length > 1 || (closed.length === 0 && all && counts.cancelled === 0)) wrong(`${say(opened)} is closed ${closed.length} times`)
    if (closed[0] !== undefined && JSON.stringify(closed[0].counts) !== JSON.stringify(counts)) wrong(`${say(closed[0])} counts ${JSON.stringify(closed[0].counts)}`)
    if (closed[0] !== undefined && of.at(-1) !== closed[0]) wrong(`${say(closed[0])} is not the last of its batch`)
  }
}

/** I27: everything in the ledger has its event, and every answer that was accepted stands in the ledger. */
function judgeLedger ({ conversation, events, messages, runs }: Evidence, discards: boolean, wrong: Wrong): void {
  if (messages.length !== conversation.message_count) wrong(`the ledger has ${messages.length} messages, the conversation says ${conversation.message_count}`)
  const calls = new Map(runs.flatMap((one) => one.calls).map((call) => [call.call_id, call]))
  const answered = new Map<string, number>()
  for (const message of messages) {
    if (message.run_id === null) continue
    if (message.role === 'tool') {
      const call = calls.get(message.tool_call_id ?? '')
      answered.set(message.tool_call_id ?? '', (answered.get(message.tool_call_id ?? '') ?? 0) + 1)
      if (call?.run_id !== message.run_id || call.turn !== message.turn) wrong(`tool message ${message.id} answers no call of its turn`)
      if (call?.status === 'completed' && typeof call.output === 'string' && call.output.trim() !== '' && !String(message.content).startsWith(call.output.slice(0, 50))) {
        wrong(`tool message ${message.id} does not say what its call gave`)
      }
    } else if (message.role === 'assistant') {
      const turn = events.find((event) => event.type === 'turn.completed' && event.turn === message.turn)
      if (turn?.text !== message.content) wrong(`assistant message ${message.id} is not what turn ${message.turn} said`)
    }
  }
  // A batch enters the ledger when it closes, or when what is left of it is cancelled.
  const has = (call: Call, type: string) => events.some((event) => event.batch_id === call.batch_id && event.type === type)
  for (const call of calls.values()) {
    const said = answered.get(call.call_id) ?? 0
    const interrupted = has(call, 'tool.cancelled')
    // A cancelled call may have left a tombstone.
    const isFree = call.status === 'cancelled' || (discards && interrupted && !has(call, 'batch.completed'))
    const fits = isFree ? said <= 1 : said === (call.ended_at !== null && (interrupted || has(call, 'batch.completed')) ? 1 : 0)
    if (!fits) wrong(`call ${call.call_id} (${call.status}) has ${said} messages in the ledger`)
  }
  for (const event of events) {
    if (event.type !== 'turn.completed' || event.text === '' || (event.tool_calls as unknown[]).length > 0) continue
    if (messages.filter((message) => message.role === 'assistant' && message.turn === event.turn).length !== 1) wrong(`the answer of turn ${event.turn} is not in the ledger once`)
  }
}

/** B2, B9, D2: one LLM call at a time, each announced by an event, history only ever added to, and none before the batch before it is over. */
function judgeRequests ({ events, requests, attempts }: Evidence, alone: boolean, wrong: Wrong): void {
  const known = new Set(events.filter((event) => event.type === 'turn.started' || event.type === 'turn.retrying').map((event) => `${event.run_id}.${event.turn}.${event.attempt}`))
  const seen = new Set<string>()
  for (const { requestId, inFlight } of requests) {
    const id = requestId ?? ''
    if (!known.has(id)) wrong(`LLM request ${id} has no event`)
    if (seen.has(id)) wrong(`LLM request ${id} was made twice`)
    seen.add(id)
    if (alone && inFlight > 1) wrong(`LLM request ${id} was made while another one was in flight`)
  }
  for (const event of events) {
    if (event.type !== 'turn.completed') continue
    const request = requests.find(({ requestId }) => requestId === `${event.run_id}.${event.turn}.${event.attempt}`)
    if (request === undefined || request.aborted) wrong(`${say(event)} has no LLM request that was answered`)
  }
  // A cancelled call is told to stop, and not waited for.
  const stopped = new Set(events.flatMap((event) => event.type === 'tool.cancelled' ? event.call_id ?? [] : []))
  const inOrder = [...requests].sort((a, b) => a.arrivedAt - b.arrivedAt)
  inOrder.forEach((request, i) => {
    const before = inOrder[i - 1]
    if (before !== undefined && changedMessage(dialogue(before), dialogue(request)) !== null) wrong(`LLM request ${request.requestId} changes history`)
    const turn = turnOf(request)
    const late = attempts.filter(({ headers, ended_at: ended }) => {
      return Number(headers['interlock-turn']) < turn && !stopped.has(String(headers['interlock-call-id'])) && (ended ?? Infinity) > request.arrivedAt + performance.timeOrigin + SLACK_MS
    })
    if (late.length > 0) wrong(`LLM request ${request.requestId} was made while tools of an earlier turn were at work`)
  })
}

/** Without the instructions, which belong to a run. */
const dialogue = ({ body }: RecordedRequest): { messages: unknown[] } => ({ messages: body.messages.filter((message) => message.role !== 'system') })

const turnOf = ({ requestId }: RecordedRequest): number => Number(requestId?.split('.')[1])

/** I1: each execution is one that was announced, under one key per call, and an attempt is made once. */
function judgeAttempts ({ events, attempts, runs }: Evidence, wrong: Wrong): void {
  const calls = new Map(runs.flatMap((one) => one.calls).map((call) => [call.call_id, call]))
  const seen = new Set<string>()
  for (const { headers, route, number } of attempts) {
    const id = String(headers['interlock-call-id'])
    const attempt = Number(headers['interlock-attempt'])
    const call = calls.get(id)
    // Redirects repeat a request under the same name.
    const once = `${id} ${attempt}`
    if (seen.has(once) && route !== 'redirect') wrong(`attempt ${attempt} of call ${id} was made twice`)
    seen.add(once)
    if (headers['idempotency-key'] !== `${String(headers['interlock-run-id'])}.${id}`) wrong(`tool request ${number} has the key ${String(headers['idempotency-key'])}`)
    if (call === undefined || String(call.turn) !== headers['interlock-turn']) wrong(`tool request ${number} is for no call of its turn`)
    if (!events.some((event) => event.type === 'tool.started' && event.call_id === id && event.attempt === attempt)) wrong(`tool request ${number}: attempt ${attempt} of ${id} was not announced`)
  }
}

/** I4b: whatever becomes of Redis, an id names one content for ever. */
function judgeIds ({ streams }: Evidence, wrong: Wrong): void {
  const known = new Map<string, string>()
  for (const { id, data } of streams.flatMap((stream) => stream.frames)) {
    if (id === null) continue
    const name = `${id} of ${(JSON.parse(data) as Event).conversation_id}`
    if ((known.get(name) ?? data) !== data) wrong(`event ${name} has two contents`)
    known.set(name, data)
  }
}

/** What a stream shows since Redis last lost something it had shown: from there on it is a stream of the log. */
function sinceReset ({ path, after, frames }: EventStream): { after: number, frames: Frame[], complete: boolean, path: string } {
  const at = frames.findLastIndex((frame) => frame.event === 'stream.reset')
  if (at === -1) return { path, after, frames, complete: true }
  return { path, after: (JSON.parse(frames[at]?.data ?? '') as { last_seq: number }).last_seq, frames: frames.slice(at), complete: false }
}

/** C1, C2, C3, I25: a stream shows the log from where it was asked to, without a gap and in the same bytes; its deltas make up the text. */
function judgeStream (stream: EventStream, log: Event[], deltas: boolean, wrong: Wrong): void {
  const { path, after, frames, complete } = sinceReset(stream)
  const here = `stream ${path} after ${after}`
  const stored = frames.filter((frame) => frame.id !== null)
  const shown = stored.map((frame) => JSON.parse(frame.data) as Event)
  const runId = shown[0]?.run_id
  const scope = (path.startsWith('/conversations/') ? log : log.filter((event) => event.run_id === runId)).filter((event) => event.seq > after)
  shown.forEach((event, i) => {
    const same = scope[i]
    if (same?.seq !== event.seq) wrong(`${here}: event ${event.seq} stands where ${same?.seq} should`)
    else if (JSON.stringify(same) !== stored[i]?.data) wrong(`${here}: event ${event.seq} has other bytes than the log`)
  })
  for (const frame of frames) {
    if (frame.id !== null && (frame.id.replace(/\.[1-9]\d+$/, '') !== String((JSON.parse(frame.data) as Event).seq) || frame.event !== (JSON.parse(frame.data) as Event).type)) wrong(`${here}: frame ${frame.id} ${frame.event} is not named after its event`)
    if (frame.id === null && frame.event !== 'turn.delta' && frame.event !== 'stream.reset') wrong(`${here}: a frame ${frame.event} without an id`)
  }
  if (!deltas || !complete) return
  for (const event of shown) {
    if (event.type !== 'turn.completed') continue
    const text = stream.text(event.turn ?? 0)
    if (text !== null && text !== event.text) wrong(`${here}: the deltas of turn ${event.turn} make another text`)
  }
}
