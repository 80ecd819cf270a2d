import { isDeepStrictEqual } from 'node:util'
import type { Message } from '../../src/core/message.js'
import { TERMINAL, type Event } from '../../src/core/event.js'
import { errorForModel, forModel } from '../../src/engine/tools/output.js'
import { outOfOrder } from '../support/message-order.js'
import { checkPayload } from '../support/payload.js'
import { conditionsOf, readBatches, shown, type Batch as AskedBatch } from './calls.js'
import { judgeOrder } from './judge-order.js'
import { judgePeople } from './judge-people.js'
import type { LlmCall } from './provider.js'
import { mayRepeat, TOOLS, type Execution } from './toolbox.js'
import type { Request } from './users.js'
import { MAX_SKEW_MS } from './workload.js'
import { LEASE_MS, type Evidence, type Life } from './world.js'

/** A message in short, as ledger and payload must agree on it. */
type Line = string

/**
 * What is wrong with what was seen, one sentence each, beginning with the invariant of FAULTS.md 4.1 it breaks. It looks at requests,
 * events, LLM payloads, tool executions and what can be read at the end, and never at the state.
 */
export function judge (evidence: Evidence): string[] {
  const { lives, requests, errors, leftovers, stuck } = evidence
  const wrong: string[] = []
  if (stuck !== null) wrong.push(`I13 not at rest: ${stuck}`)
  for (const error of errors) wrong.push(`the product reports an error: ${error}`)
  for (const left of leftovers) wrong.push(`I20 ${left}`)
  for (const one of evidence.late) wrong.push(`F54 ${one}`)
  judgeCalls(evidence, wrong)
  for (const life of lives) {
    const batches = readBatches(evidence, life)
    judgeLife(evidence, life, batches, wrong)
    judgeOrder(evidence, life, batches, wrong)
    judgePeople(evidence, life, batches, wrong)
  }
  const created = new Map<string, Life[]>()
  for (const life of lives) {
    for (const event of life.events) if (event.type === 'run.created') created.set(event.run_id as string, [...created.get(event.run_id as string) ?? [], life])
  }
  for (const { action, run_id: run, outcome, repeated } of requests) {
    const found = created.get(run) ?? []
    if (action.do !== 'run') continue
    const times = found.length
    if (outcome === 'accepted' && times !== 1) wrong.push(`I5 ${run} was accepted and exists ${times} times`)
    // What was made, and removed before its maker heard of it, is rightly unknown.
    if (outcome === 'refused' && found.some((life) => !life.removed) && !repeated) wrong.push(`I5 ${run} was refused and exists`)
    if (times > 1) wrong.push(`I5 ${run} exists ${times} times`)
  }
  return wrong
}

/** When a request ended, seen from the provider: it had said all, or the caller hung up or died. */
function endOf ({ planned, hungUp, machine }: LlmCall, deaths: Map<string, number>): number {
  return Math.min(planned, hungUp ?? Infinity, deaths.get(machine.name) ?? Infinity)
}

/** What the provider and the tools have seen, across all conversations. */
function judgeCalls (evidence: Evidence, wrong: string[]): void {
  const { llmCalls, executions, deaths, lives } = evidence
  const conversationOf = new Map<string, string>()
  for (const { conversation, events } of lives) for (const event of events) if (event.run_id !== null) conversationOf.set(event.run_id, conversation)

  const seen = new Set<string>()
  const last = new Map<string, LlmCall>()
  for (const call of llmCalls) {
    const id = call.request.request_id
    if (seen.has(id)) wrong.push(`I1b the LLM was asked twice for ${id}`)
    seen.add(id)
    const { request_id: _, options: __, ...payload } = call.request
    for (const fault of checkPayload(payload)) wrong.push(`I3 payload of ${id}: ${fault.rule} ${fault.at} ${fault.message}`)
    const conversation = conversationOf.get(call.run_id) ?? ''
    const before = last.get(conversation)
    if (before !== undefined && endOf(before, deaths) > call.start && !before.machine.disturbedSince(before.start - LEASE_MS)) {
      wrong.push(`I2 LLM calls ${before.request.request_id} (of ${before.machine.name}) and ${id} (of ${call.machine.name}) overlap`)
    }
    const lease = evidence.grants.findLast((one) => one.conversation === conversation && one.machine === call.machine && one.from <= call.start)
    const without = endOf(call, deaths) - (lease?.until ?? 0)
    if (conversation !== '' && without > 30 && !call.machine.pausedSince(call.start - LEASE_MS)) wrong.push(`I2 LLM call ${id} went on for ${Math.round(without)} ms without a lease`)
    if (before === undefined || endOf(call, deaths) > endOf(before, deaths)) last.set(conversation, call)
  }

  const runs = new Set<string>()
  const times = new Map<string, number>()
  for (const { call_id: id, attempt, name } of executions) {
    if (runs.has(`${id} ${attempt}`)) wrong.push(`I7 attempt ${attempt} of ${id} was executed twice`)
    runs.add(`${id} ${attempt}`)
    times.set(id, (times.get(id) ?? 0) + 1)
    if (!mayRepeat(name) && (times.get(id) ?? 0) > 1) wrong.push(`I7 ${id} (${name}) was executed ${times.get(id)} times`)
  }
}

interface Call { id: string, name: string, args: unknown, attempts: number, settled: Event | null }
interface Batch { text: string, calls: Call[], discarded: boolean }
interface Run {
  id: string
  request: Request | undefined
  started: boolean
  ended: Event | null
  seq: number
  /** Where its input stands in the ledger. */
  from: number
}

/** One conversation, from its events: they are replayed into the ledger they must have made. */
function judgeLife (evidence: Evidence, life: Life, batches: Map<string, AskedBatch>, wrong: string[]): void {
  const { requests, llmCalls, executions, stored } = evidence
  const { conversation, times, told: events } = life
  const { calm, strict } = conditionsOf(evidence)
  const blame = (what: string) => { wrong.push(`${what} (${conversation})`) }
  const asked = new Map([...batches.values()].flatMap((one) => one.calls.map((call) => [call.id, shown(call, stored.get(conversation)?.asked)])))
  /** Some call's arguments cannot be known any more. */
  const blurred = [...asked.values()].includes(null)
  const runs = new Map<string, Run>()
  const turns = new Map<number, { run: string, started: number, completed: number, over: number, end: number, retries: Event[] }>()
  const messages = new Map<string, { content: string, state: 'waiting' | 'delivered' | 'gone' }>()
  const calls = new Map<string, Call>()
  const ledger: Line[] = []
  const payloads = new Map<number, Line[]>()
  let batch: Batch | null = null
  let current: Run | null = null

  const llmOf = (run: string, turn: number) => llmCalls.filter((call) => call.run_id === run && call.turn === turn)
  for (const line of life.garbled) blame(`I25 ${line}`)

  /** The batch is over: what stays of it enters the ledger. */
  function link (): void {
    if (batch === null) return
    const policy = current?.request?.action.do === 'run' ? current.request.action.policy : {}
    const { discarded } = batch
    const stays = ({ settled, attempts, name }: Call) => {
      if (settled === null) return false
      if (settled.type !== 'tool.cancelled') return !discarded
      return policy.cancelled_calls === 'tombstone' || (policy.cancelled_calls === 'tombstone_started' && attempts > 0 && TOOLS[name]?.effects !== 'read')
    }
    const kept = batch.calls.filter(stays)
    for (const call of batch.calls) if (call.settled === null) blame(`I6 ${call.id} was never settled`)
    if (kept.length > 0) {
      ledger.push(lineOfCalls(batch.text, kept.map(({ id, name, args }) => ({ name, args: asked.get(id) ?? args }))))
      const answers = policy.message_order === 'completion' ? [...kept].sort((a, b) => (a.settled?.seq ?? 0) - (b.settled?.seq ?? 0)) : kept
      for (const call of answers) ledger.push(`tool: ${resultOf(call)}`)
    }
    batch = null
  }

  function resultOf ({ id, settled }: Call): string {
    if (settled === null) return ''
    if (settled.type === 'tool.failed') return errorForModel(settled.error as { code: string, message: string })
    if (settled.type === 'tool.completed') return forModel(settled.output, 60_000).text
    return JSON.stringify({ error: { code: 'cancelled', message: CANCELLED } }) + (id === '' ? id : '')
  }

  events.forEach((event, i) => {
    const time = times[i] as number
    if (event.seq !== i + 1) blame(`I4 event ${i + 1} has seq ${event.seq}`)
    if (event.caused_by.some((seq) => seq >= event.seq || seq < 1)) blame(`C11 event ${event.seq} is caused by ${event.caused_by.join(', ')}`)
    if (event.conversation_id !== conversation) blame(`event ${event.seq} belongs to ${event.conversation_id}`)
    const run = event.run_id === undefined ? null : runs.get(event.run_id) ?? null
    if (run !== null) {
      if (run.ended !== null) blame(`I12 ${event.type} after the end of ${run.id}`)
      run.seq++
      if (event.run_seq !== run.seq) blame(`I4 event ${event.seq} is number ${event.run_seq} of ${run.id}, expected ${run.seq}`)
    }
    const turn = event.turn === undefined ? undefined : turns.get(event.turn)
    const call = event.call_id === undefined ? undefined : calls.get(event.call_id)

    switch (event.type) {
      case 'run.created': {
        const request = requests.find((one) => one.action.do === 'run' && one.run_id === event.run_id)
        if (request === undefined) blame(`I16 ${event.run_id} was never asked for`)
        if (request?.text !== event.input) blame(`I16 ${event.run_id} has another input`)
        runs.set(event.run_id as string, { id: event.run_id as string, request, started: false, ended: null, seq: 1, from: -1 })
        break
      }
      case 'run.started':
        if (run === null || run.started || (current !== null && current.ended === null)) blame(`I1 ${event.run_id} starts while another is active, or twice`)
        link()
        current = run
        if (run === null) break
        run.started = true
        run.from = ledger.length
        ledger.push(`user: ${run.request?.text}`)
        break
      case 'turn.started':
        link()
        if (event.turn !== turns.size + 1) blame(`I1 turn ${event.turn} starts as number ${turns.size + 1}`)
        for (const [number, one] of turns) if (one.over + one.completed === 0 && runs.get(one.run)?.ended?.type !== 'run.failed') blame(`I1 turn ${event.turn} starts before turn ${number} is over`)
        turns.set(event.turn as number, { run: event.run_id as string, started: time, completed: 0, over: 0, end: Infinity, retries: [] })
        payloads.set(event.turn as number, [...ledger])
        break
      case 'turn.retrying':
        turn?.retries.push(event)
        if (event.reason === 'worker_lost' && calm) blame(`I1b turn ${event.turn} changed hands although every worker was well`)
        break
      case 'turn.cancelled':
        if (turn === undefined || turn.over + turn.completed > 0) blame(`I1 turn ${event.turn} ends twice`)
        else turn.over++
        if (turn !== undefined) turn.end = event.seq
        break
      case 'turn.completed': {
        if (turn === undefined || turn.over + turn.completed > 0) blame(`I1 turn ${event.turn} is committed twice`)
        else turn.completed++
        if (turn !== undefined) turn.end = event.seq
        const asked = llmOf(event.run_id as string, event.turn as number).find(({ attempt }) => attempt === event.attempt)
        const cut = asked?.answer?.finish_reason === 'length'
        if (asked?.answer == null) blame(`I17 turn ${event.turn} has an answer that the LLM never gave`)
        else if (asked.answer.text !== event.text) blame(`I17 turn ${event.turn} has another text than the LLM gave`)
        else if ((event.tool_calls as unknown[]).length !== (cut ? 0 : asked.answer.tool_calls.length)) blame(`I17 turn ${event.turn} has other calls than the LLM asked for`)
        const read = life.texts.get(`${event.run_id}.${event.turn}.${String(event.attempt)}`) ?? ''
        if (!(event.text as string).startsWith(read)) blame(`I25 readers of turn ${event.turn} have text that is not in it`)
        if (strict && read !== event.text) blame(`I25 readers of turn ${event.turn} have "${read}" of "${String(event.text)}"`)
        const asks = (event.tool_calls as { call_id: string, name: string, arguments: unknown }[]).map(({ call_id: id, name, arguments: args }): Call => {
          if (calls.has(id)) blame(`I6 call id ${id} is used twice`)
          const made = { id, name, args, attempts: 0, settled: null }
          calls.set(id, made)
          return made
        })
        if (asks.length > 0) batch = { text: event.text as string, calls: asks, discarded: false }
        else if (event.text !== '') ledger.push(`assistant: ${String(event.text)}`)
        break
      }
      case 'tool.started':
        if (call === undefined || call.settled !== null) blame(`I6 ${event.call_id} starts, but is over or unknown`)
        else if (event.attempt !== ++call.attempts) blame(`I7 ${event.call_id} starts as attempt ${String(event.attempt)} instead of ${call.attempts}`)
        if (calm && event.attempt !== 1 && TOOLS[call?.name ?? '']?.retry === undefined) blame(`I7 ${event.call_id} changed hands although every worker was well`)
        break
      case 'tool.completed': case 'tool.failed': case 'tool.cancelled': {
        if (call === undefined || call.settled !== null) {
          blame(`I6 ${event.call_id} is settled twice`)
          break
        }
        call.settled = event
        judgeResult(call, event)
        break
      }
      case 'batch.completed':
        if (batch === null) blame(`I9 ${event.batch_id} closes twice`)
        else if (batch.calls.some(({ settled }) => settled === null)) blame(`I9 ${event.batch_id} closes before all its calls are settled`)
        link()
        break
      case 'message.accepted': {
        const kind = event.edited === true ? 'edit' : 'message'
        const request = requests.find((one) => one.action.do === kind && one.message_id === event.message_id && one.text === event.content)
        const attached = event.content === undefined || request !== undefined ? undefined : attachment(event)
        if (kind === 'edit' && messages.get(event.message_id as string)?.state === 'waiting') messages.delete(event.message_id as string)
        if (attached === undefined && request?.text !== event.content) blame(`I16 message ${String(event.message_id)} was never sent`)
        if (messages.has(event.message_id as string)) blame(`I5 message ${String(event.message_id)} was accepted twice`)
        messages.set(event.message_id as string, { content: event.content as string, state: 'waiting' })
        if (event.mode === 'interrupt' && batch !== null && request?.action.do === 'message') (batch as Batch).discarded = request.action.completed === 'discard'
        break
      }
      case 'message.delivered': case 'message.superseded': case 'message.withdrawn': {
        if (event.type === 'message.delivered') link()
        const message = messages.get(event.message_id as string)
        if (message === undefined || message.state !== 'waiting') {
          blame(`I5 ${event.type} for message ${String(event.message_id)}, which does not wait`)
          break
        }
        message.state = event.type === 'message.delivered' ? 'delivered' : 'gone'
        if (event.type === 'message.delivered') ledger.push(`user: ${message.content}`)
        break
      }
      case 'conversation.recovered':
        blame(`I27 row and ledger disagreed: ${String(event.detail)}`)
        break
    }
    if (TERMINAL.has(event.type) && run !== null) {
      if (run === current) link()
      run.ended = event
      if (event.reason === 'rolled_back' && run.started) ledger.length = run.from
      judgeEnd(run, event)
    }
  })

  /** The request that handed a late result to the model with this message. */
  function attachment (event: Event): Request | undefined {
    const found = requests.find((one) => one.action.do === 'attach' && one.message_id === event.message_id)
    const id = found?.action.do === 'attach' ? found.action.call_id : ''
    const orphans = events.filter((one) => one.type === 'tool.orphaned' && one.call_id === id && one.seq < event.seq)
    if (!orphans.some(({ output }) => (event.content as string).endsWith(`:\n${forModel(output, 60_000).text}`))) return undefined
    return found
  }

  function judgeResult (call: Call, event: Event): void {
    const done = executions.filter((one) => one.call_id === call.id)
    const newest = done.find(({ attempt }) => attempt === call.attempts)?.result ?? null
    // What people and clients have given, judge-people.ts looks at.
    if (event.type === 'tool.completed' && (done.length > 0 || TOOLS[call.name]?.approval === undefined) && TOOLS[call.name]?.client === undefined) {
      if (newest === null || !('output' in newest) || JSON.stringify(newest.output) !== JSON.stringify(event.output)) blame(`I16 ${call.id} has an output that its tool never gave`)
    } else if (event.type === 'tool.failed') {
      const { code } = event.error as { code: string }
      if (code === 'tool_error' && TOOLS[call.name]?.client === undefined && (newest === null || !('code' in newest))) blame(`I16 ${call.id} has failed, but its tool has not`)
      if (code === 'outcome_unknown') {
        if (calm) blame(`I7 nobody knows what became of ${call.id} although every worker was well`)
        if (mayRepeat(call.name) && call.attempts < 5) blame(`I7 ${call.id} may be run again, and was given up`)
      }
      if (!FAILURES.has(code)) blame(`${call.id} has failed with ${code}`)
      if (NEVER_RUN.has(code) && done.length > 0) blame(`I7 ${call.id} was run although it could not`)
    }
  }

  function judgeEnd (run: Run, event: Event): void {
    const used = llmCalls.filter((one) => one.run_id === run.id)
    const usage = event.usage as { total_tokens: number, llm_calls: number, tool_calls: number }
    const known = used.reduce((sum, { answer }) => sum + (answer?.usage?.total_tokens ?? 0), 0)
    if (usage.total_tokens > known) blame(`I26 ${run.id} has used ${usage.total_tokens} tokens, the LLM says ${known}`)
    if (usage.llm_calls < used.length) blame(`I26 ${run.id} counts ${usage.llm_calls} LLM calls of ${used.length}`)
    const undisturbed = strict && event.type === 'run.completed' && [...turns.values()].every((turn) => turn.run !== run.id || turn.completed === 1)
    if (undisturbed && usage.total_tokens !== known) blame(`I26 ${run.id} has used ${usage.total_tokens} tokens, the LLM says ${known}`)
    judgeLimits(run, event)
    const closed = events.findLast((one) => one.type === 'batch.completed' && one.run_id === run.id && one.seq < event.seq)
    const final = event.type !== 'run.completed' || closed?.turn !== turns.size ? undefined : finalAnswer(closed.batch_id as string)
    if (final !== undefined) {
      if (JSON.stringify(final.output) !== JSON.stringify(event.output)) blame(`E8 ${run.id} has another output than its final answer`)
    } else if (event.type === 'run.completed') {
      const last = events.filter((one) => one.type === 'turn.completed' && one.run_id === run.id && one.seq < event.seq).at(-1)
      if (last === undefined || last.text !== event.output) blame(`I27 ${run.id} has another output than its last turn`)
    }
    const { code } = (event.error ?? { code: '' }) as { code: string }
    if (event.type === 'run.failed' && !/^(provider_|refusal|content_filter|tool_failed|worker_lost)/.test(code)) blame(`${run.id} failed with ${code}`)
    if (code === 'worker_lost' && calm) blame(`I1b ${run.id} was given up although every worker was well`)
  }

  /** The first successful final answer of a batch, in request order. */
  function finalAnswer (batchId: string): Event | undefined {
    const started = events.find((one) => one.type === 'batch.started' && one.batch_id === batchId)
    const done = (started?.calls as { call_id: string, name: string }[]).filter(({ name }) => name === 'final_answer').map(({ call_id: id }) => calls.get(id)?.settled)
    return done.find((settled) => settled?.type === 'tool.completed') ?? undefined
  }

  /** A run that ends early has reached what it says it has. */
  function judgeLimits (run: Run, event: Event): void {
    const limits = run.request?.action.do === 'run' ? run.request.action.limits : {}
    const answers = events.filter((one) => one.type === 'turn.completed' && one.run_id === run.id).length
    const { total_tokens: tokens } = event.usage as { total_tokens: number }
    switch (event.stop_reason) {
      case 'max_turns': if (answers !== limits.max_turns) blame(`E5 ${run.id} ends after ${answers} turns, not ${limits.max_turns}`); break
      case 'max_total_tokens': if (tokens < (limits.max_total_tokens ?? Infinity)) blame(`E5 ${run.id} ends after ${tokens} tokens`); break
      case 'run_timeout': {
        const lasted = workedFor(run, event.seq)
        if (lasted < (limits.run_timeout_ms ?? Infinity) - 2 * MAX_SKEW_MS - 5) blame(`E5 ${run.id} ends after ${lasted} ms as if its time were over`)
      }
    }
    if (answers > (limits.max_turns ?? Infinity)) blame(`E5 ${run.id} had ${answers} turns`)
  }

  /** How long a run has lasted, without the time in which it waited for somebody. Milliseconds, as the processes' clocks have it. */
  function workedFor (run: Run, until: number): number {
    const own = events.filter((one) => one.run_id === run.id && one.seq <= until)
    const at = (event: Event | undefined) => Date.parse(event?.time ?? '')
    const started = at(own.find((one) => one.type === 'run.started'))
    const waited = own.filter((one) => one.type === 'suspension.resolved').reduce((sum, one) => {
      return sum + at(one) - at(own.find((other) => other.type === 'suspension.created' && other.suspension_id === one.suspension_id))
    }, 0)
    return at(own.at(-1)) - started - waited
  }

  // --- First come, first served ----------------------------------------------------------------------------------------------------
  for (const way of outOfOrder(events)) blame(`I5 messages of ${way} were delivered in another order than they were accepted`)

  // --- Turns and what the LLM was sent ---------------------------------------------------------------------------------------------
  const unstarted = new Set([...runs.values()].filter(({ started }) => !started).map(({ request }) => `user: ${request?.text}`))
  for (const [number, turn] of turns) {
    const run = runs.get(turn.run)
    const failed = run?.ended?.type === 'run.failed'
    if (turn.completed + turn.over !== 1 && !failed && (run?.ended != null || number < turns.size)) blame(`I1 turn ${number} ended ${turn.completed + turn.over} times`)
    const asked = llmOf(turn.run, number)
    if (strict && turn.completed === 1 && asked.length !== 1) blame(`I1b turn ${number} took ${asked.length} LLM calls`)
    const wanted = payloads.get(number) ?? []
    asked.forEach((one, i) => {
      if (one.attempt > turn.retries.length + 1) blame(`I1b attempt ${one.attempt} of turn ${number} after ${turn.retries.length} retries`)
      if (one.seq < (events.find((event) => event.type === 'turn.started' && event.turn === number)?.seq ?? Infinity)) blame(`M6 the LLM was asked before turn ${number} was stored`)
      const lost = turn.retries.find((event) => event.attempt === one.attempt + 1 && event.reason === 'worker_lost')
      judgeStart(`the LLM call ${one.request.request_id}`, one.start, lost, events[turn.end - 1])
      // It may begin just behind the end of its turn, before its worker hears of that: then it is in vain, and may have read what came later.
      if (one.seq >= turn.end) return
      // Input of a run that was cancelled before it began may have entered the ledger, or not.
      const sent = linesOf(one).filter((line) => !unstarted.has(line))
      if (!blurred && sent.join('\n') !== wanted.join('\n')) blame(`I3b turn ${number} sent\n    ${sent.join('\n    ')}\n  instead of\n    ${wanted.join('\n    ')}`)
      const before = asked[i - 1]
      // Unless nobody heard of the error, because its worker was lost with it.
      const heard = turn.retries.some((event) => event.attempt === one.attempt && event.reason === before?.error?.code)
      if (heard && before?.error?.retryAfterMs != null && before.model === one.model && one.start < before.planned + before.error.retryAfterMs - 1 - 2 * MAX_SKEW_MS) blame(`I18 turn ${number} did not wait as it was told to`)
    })
    const models = new Map<string, number>()
    // What a worker took with it when it was lost, nobody counts.
    const isHeard = ({ attempt, error }: typeof asked[number]) => error !== null && turn.retries.some((event) => event.attempt === attempt + 1 && event.reason === error.code)
    for (const one of asked.filter(isHeard)) models.set(one.model, (models.get(one.model) ?? 0) + 1)
    for (const [model, errors] of models) if (errors > 3) blame(`I18 turn ${number} asked ${model} again after ${errors} errors`)
  }
  for (const event of events) {
    if (event.type === 'turn.retrying' && strict) blame(`I1b turn ${event.turn} was retried for ${String(event.reason)} although nothing went wrong`)
  }
  for (const one of executions.filter((execution) => runs.has(execution.run_id))) judgeExecution(one)

  function judgeExecution (one: Execution): void {
    const started = events.find((event) => event.type === 'tool.started' && event.call_id === one.call_id && event.attempt === one.attempt)
    if (started === undefined || started.seq > one.seq) blame(`M6 ${one.call_id} ran before it was started`)
    else if (JSON.stringify(started.arguments) !== JSON.stringify(one.args)) blame(`I16 ${one.call_id} ran with other arguments`)
    const settled = calls.get(one.call_id)?.settled ?? undefined
    const again = events.find((event) => event.type === 'tool.started' && event.call_id === one.call_id && event.attempt === one.attempt + 1)
    const unknown = (settled?.error as { code?: string } | undefined)?.code === 'outcome_unknown'
    judgeStart(`${one.call_id} (attempt ${one.attempt})`, one.start, again ?? (unknown ? settled : undefined), settled)
  }

  /** Whoever has lost a claim begins nothing any more: at once if it was given up for dead, and soon if others have ended it, whose note may be lost. */
  function judgeStart (what: string, start: number, givenUp: Event | undefined, ended: Event | undefined): void {
    const behind = (event: Event | undefined) => event === undefined ? 0 : start - (times[event.seq - 1] as number)
    if (behind(givenUp) > 0) blame(`I12 ${what} began ${Math.round(behind(givenUp))} ms after it was given up`)
    if (behind(ended) > (strict ? 10 : LEASE_MS / 2)) blame(`I12 ${what} began ${Math.round(behind(ended))} ms after its end`)
  }

  // --- Speed: without faults nothing waits for a sweep -----------------------------------------------------------------------------
  if (strict) {
    for (const [number, { run, end }] of turns) {
      for (const one of llmOf(run, number)) {
        const over = times[end - 1]
        if (over !== undefined && Math.min(one.planned, one.hungUp ?? Infinity) > over + 30) blame(`I1 the LLM call of turn ${number} went on after its end`)
      }
    }
    const at = (match: (event: Event) => boolean) => times[events.findIndex(match)]
    for (const [number, { run, started }] of turns) {
      const first = llmOf(run, number)[0]
      if (first !== undefined && first.start - started > 60) blame(`N4 the LLM call of turn ${number} began ${Math.round(first.start - started)} ms after the turn`)
      const closed = at((event) => event.type === 'batch.completed' && event.turn === number - 1 && event.run_id === run)
      if (closed !== undefined && started - closed > 120) blame(`N4 turn ${number} began ${Math.round(started - closed)} ms after the batch before it`)
    }
    const first = [...runs.values()][0]
    const begun = at((event) => event.type === 'run.started' && event.run_id === first?.id)
    if (first?.request?.action.do === 'run' && first.request.action.after === 0 && begun !== undefined && begun - (times[0] as number) > 120) {
      blame(`N4 ${first.id} began ${Math.round(begun - (times[0] as number))} ms after it was created`)
    }
  }

  // --- What users were told, and what became of it ---------------------------------------------------------------------------------
  for (const { action, run_id: id, message_id: message, outcome, refusal, repeated } of requests) {
    const run = runs.get(id)
    if (action.do === 'message') {
      const state = messages.get(message)?.state
      if (outcome === 'refused' && refusal !== 'duplicate' && state !== undefined && !repeated) blame(`I5 message ${message} was refused (${refusal}) and came in`)
      if (run === undefined || life.removed) continue
      if (outcome === 'accepted' && state === undefined) blame(`I5 message ${message} was accepted and is lost`)
      if (state === 'waiting' && evidence.stuck === null) blame(`I5 message ${message} still waits`)
    }
    if (run === undefined || life.removed) continue
    if (action.do === 'run' && run.ended === null && evidence.stuck === null) blame(`I13 ${id} never ended`)
    if (action.do === 'cancel' && outcome === 'accepted' && run.ended?.type !== 'run.cancelled') blame(`I12 ${id} was cancelled, but ${run.ended?.type ?? 'goes on'}`)
  }

  // --- What is stored ---------------------------------------------------------------------------------------------------------------
  const kept = stored.get(conversation)
  if (life.removed || kept === undefined) return
  if (!isDeepStrictEqual(kept.log, life.events)) blame('I4 the log is not what its readers were told')
  if (evidence.stuck !== null) return
  const actual = kept.ledger.map((json) => lineOf(JSON.parse(json) as Message | null)).filter((line) => !unstarted.has(line))
  if (!blurred && actual.join('\n') !== ledger.join('\n')) blame(`I27 the ledger is\n    ${actual.join('\n    ')}\n  instead of\n    ${ledger.join('\n    ')}`)
  const ids = kept.ledger.map((json) => (JSON.parse(json) as Message | null)?.id)
  if (new Set(ids).size !== ids.length) blame('I5 a message is in the ledger twice')
}

/** Why a call may fail, and those of them for which it cannot have been run. */
const FAILURES = new Set(['tool_error', 'outcome_unknown', 'timeout', 'unknown_tool', 'invalid_arguments', 'rejected', 'max_calls', 'dependency_failed'])
const NEVER_RUN = new Set(['unknown_tool', 'invalid_arguments', 'rejected', 'max_calls', 'dependency_failed'])

const CANCELLED = 'this call was cancelled before it gave a result; what it had started may have taken effect'

function lineOfCalls (text: string, calls: { name: string, args: unknown }[]): Line {
  return `assistant: ${text} ${calls.map(({ name, args }) => `${name}(${JSON.stringify(args)})`).join(' ')}`
}

function lineOf (message: Message | null): Line {
  if (message === null) return 'null'
  const { role, content, tool_calls: calls } = message
  const text = typeof content === 'string' ? content : JSON.stringify(content)
  if (role === 'assistant' && calls !== undefined) return lineOfCalls(text, calls.map(({ name, arguments: args }) => ({ name, args })))
  return `${role}: ${text}`
}

function linesOf ({ request: { messages } }: LlmCall): Line[] {
  return messages.map((message) => {
    if (message.role === 'assistant' && message.tool_calls !== undefined) {
      const calls = message.tool_calls.flatMap((call) => call.type === 'function' ? [call.function] : [])
      return lineOfCalls(typeof message.content === 'string' ? message.content : '', calls.map(({ name, arguments: args }) => ({ name, args: JSON.parse(args) as unknown })))
    }
    return `${message.role}: ${typeof message.content === 'string' ? message.content : JSON.stringify(message.content)}`
  })
}
