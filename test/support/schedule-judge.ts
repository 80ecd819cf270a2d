import type { Command, ModelCall, PostMessage, StartRun } from '../../src/core/command.js'
import type { Effect } from '../../src/core/draft.js'
import { TERMINAL, type Event } from '../../src/core/event.js'
import type { Message } from '../../src/core/message.js'
import type { Receipt } from '../../src/core/messages.js'
import type { WireMessage } from '../../src/core/transcript.js'
import { MAX_LOSSES } from '../../src/core/lapse.js'
import type { Refusal } from '../../src/core/transition.js'
import { checkPayload } from './payload.js'

/** One step, as somebody outside sees it: never the state. */
export interface Seen {
  command: Command
  refusal: Refusal | null
  events: Event[]
  /** The ledger after the step, and how many of its messages are new. */
  ledger: Message[]
  added: number
  /** What workers were told. */
  effects: Effect[]
  /** What the sender of a message was told. */
  receipt: (messageId: string) => Receipt | null
}

/** Keeps a ledger of its own, from commands in and events and messages out, and throws at the first thing that contradicts it. */
export interface Judge {
  see: (seen: Seen) => void
  /** An LLM call is about to be made with these messages. */
  sent: (messages: WireMessage[], repairs: string[]) => void
  /** Nothing is left to do: every accepted message has found its end. */
  conclude: () => void
  /** Ids of messages that were accepted, by what has become of them. */
  fates: () => Record<Fate, string[]>
}

export type Fate = 'waiting' | 'delivered' | 'superseded' | 'withdrawn' | 'rolled back'

interface JudgedRun { order: StartRun, events: number, startedAt: number | null, ended: boolean, ledgerStart: number, answers: number, tokens: number }
interface JudgedMessage { id: string, run: string | null, content: unknown, mode: 'steer' | 'queue', due: number | null, fate: Fate, inLedgerOf: string | null }
interface JudgedCall {
  asked: ModelCall
  status: 'pending' | 'running' | 'completed' | 'failed' | 'cancelled'
  attempt: number
  /** What the ledger must say; null: nothing. */
  text: string | null
  settled: number
  output: unknown
}
interface OpenBatch { kind: 'batch', turn: number, id: string, text: string, calls: JudgedCall[] }
type Open = { kind: 'turn', turn: number, attempt: number } | OpenBatch | null
type Expected = Partial<Message>

/** What one step must still do before it is over. */
interface StepDuty {
  /** Work may end now, and what is open must: an interrupt, a cancellation, a timeout. */
  close: boolean
  interrupting: boolean
  discard: boolean
  supersede: string[]
  /** What a final answer did not see is delivered at once, so that nobody can take it back and leave nothing to answer. */
  deliver: string[]
  /** The run is between two turns, or will be: what is delivered now comes with the next one. */
  next: boolean
  end: 'completed' | 'incomplete' | 'failed' | null
  cancelled: string[]
  appended: Expected[]
}

const settledStatuses = new Set(['completed', 'failed', 'cancelled'])
const isOpen = (call: JudgedCall): boolean => !settledStatuses.has(call.status)

/** Two workers have died over it, and it runs alone, behind the others (F27). No call is tried again here for another reason. */
const isSuspect = (call: JudgedCall): boolean => call.attempt - (call.status === 'running' ? 1 : 0) > 1

export function createJudge (): Judge {
  const runs = new Map<string, JudgedRun>()
  const messages = new Map<string, JudgedMessage>()
  const fences = new Map<number, { turn: number, attempt: number }>()
  const handedOut = new Set<string>()
  let exists = false
  let active: string | null = null
  let queue: string[] = []
  let waiting: JudgedMessage[] = []
  let open: Open = null
  let turn = 0
  let seq = 0
  let now = 0
  let steps = 0
  let ledger: Message[] = []
  let sentBefore: string[] = []
  let newestFence = 0
  let inFlight: number | null = null
  let command: Command
  let duty: StepDuty

  function must (holds: boolean, otherwise: string): void {
    if (!holds) throw new Error(`step ${steps} (${command.type}): ${otherwise}`)
  }
  const run = (id: string): JudgedRun => runs.get(id) as JudgedRun
  const waitsFor = (id: string | null) => waiting.filter((message) => message.run === id)
  const readyFor = (id: string | null) => waitsFor(id).filter((message) => message.due === null)
  const ids = (list: { id: string }[]) => list.map((one) => one.id).join(' ')
  const drop = (message: JudgedMessage, fate: Fate) => {
    waiting = waiting.filter((one) => one !== message)
    message.fate = fate
  }

  // --- What must be refused ------------------------------------------------------------------------------------------------------------

  function holdsTurn (fence: number): boolean {
    const held = fences.get(fence)
    return open?.kind === 'turn' && held?.turn === open.turn && held.attempt === open.attempt
  }
  const openCall = (id: string): JudgedCall | undefined => open?.kind === 'batch' ? open.calls.find((call) => call.asked.call_id === id) : undefined

  function interrupts (post: PostMessage): boolean {
    return post.due_at === null && (post.mode === 'auto' || post.mode === 'interrupt') && active === post.run_id && open !== null
  }

  /** Null: it must be accepted. */
  function refusalOf (given: Command): Refusal | null | 'any' {
    if (!exists && given.type !== 'CreateConversation' && !(given.type === 'StartRun' && given.new_conversation)) return 'not_found'
    switch (given.type) {
      case 'CreateConversation': return exists ? 'exists' : null
      case 'StartRun': {
        if (runs.has(given.run_id)) return 'duplicate'
        const busy = active !== null || queue.some((id) => (run(id).order.due_at ?? 0) <= given.at)
        return busy && given.on_active_run === 'reject' ? 'run_active' : null
      }
      case 'PostMessage': {
        if (messages.has(given.message_id)) return 'duplicate'
        if (runs.get(given.run_id)?.ended !== false) return 'run_ended'
        return !interrupts(given) && waitsFor(given.run_id).length >= run(given.run_id).order.limits.max_queued_messages ? 'queue_full' : null
      }
      case 'EditMessage':
      case 'WithdrawMessage': {
        const message = messages.get(given.message_id)
        return message?.fate === 'waiting' && message.run === given.run_id ? null : 'not_found'
      }
      case 'Decide':
      case 'SubmitOutputs':
      case 'KeepOrphan':
      case 'DiscardOrphan':
      case 'AttachOrphan':
      case 'PlaceCall':
      case 'Repair':
        return 'any'
      case 'CancelRun': return runs.get(given.run_id)?.ended === false ? null : 'run_ended'
      case 'RetryTurn':
      case 'CompleteTurn':
      case 'FailTurn':
      case 'Recover': return holdsTurn(given.fence) ? null : 'stale'
      case 'CompleteCall':
      case 'ProgressCall': {
        const call = openCall(given.call_id)
        return call?.status === 'running' && call.attempt === given.attempt ? null : 'stale'
      }
      case 'Advance':
      case 'Lapse': return 'any'
    }
  }

  // --- Consequences --------------------------------------------------------------------------------------------------------------------

  /** Delayed messages whose time has come wait like others, in the order of their times, before whatever comes now. */
  function passTime (): void {
    const due = waiting.filter((message) => message.due !== null && message.due <= now).sort((a, b) => (a.due as number) - (b.due as number))
    waiting = [...waiting.filter((message) => !due.includes(message)), ...due]
    for (const message of due) {
      if (message.run === null || !queue.includes(message.run)) message.run = active
      message.due = null
      message.mode = 'steer'
    }
  }

  /** The first waiting run whose time has come, and its input. */
  function activate (): void {
    if (active !== null) return
    const next = queue.find((id) => (run(id).order.due_at ?? 0) <= now)
    if (next === undefined) return
    must(readyFor(null).length === 0, `run ${next} becomes active before ${ids(readyFor(null))} were delivered`)
    queue = queue.filter((id) => id !== next)
    active = next
    duty.next = true
    run(next).ledgerStart = ledger.length + duty.appended.length
    for (const { id, content } of run(next).order.messages) duty.appended.push({ id, role: 'user', content: content as string, turn: turn + 1, run_id: next })
  }

  /** A turn is over: it has given an answer, or wants another turn. */
  function conclude (answered: boolean): void {
    const ready = readyFor(active)
    if (answered && ready.length === 0) {
      duty.end = 'completed'
      return
    }
    duty.next = true
    if (answered) duty.deliver = ready.map((message) => message.id)
    if (isOverLimit()) duty.end = 'incomplete'
  }

  function isOverLimit (): boolean {
    const { answers, tokens, order: { limits } } = run(active as string)
    return answers >= limits.max_turns || (limits.max_total_tokens !== null && tokens >= limits.max_total_tokens)
  }

  function tombstoned ({ asked, attempt }: JudgedCall): boolean {
    const { cancelled_calls: rule } = run(active as string).order.policy
    return rule === 'tombstone' || (rule === 'tombstone_started' && asked.rules.effects === 'write' && attempt > 0)
  }

  /** A batch enters the ledger: what was settled, and of what was cancelled only what the policy keeps. */
  function link (batch: OpenBatch): void {
    const kept = batch.calls.filter((call) => call.status === 'cancelled' ? tombstoned(call) : !duty.discard)
    open = null
    if (kept.length === 0) return
    duty.appended.push({
      role: 'assistant',
      content: batch.text,
      turn: batch.turn,
      run_id: active,
      tool_calls: kept.map(({ asked }) => ({
        call_id: asked.call_id, name: asked.name, arguments: asked.arguments, ...(asked.provider_id !== '' && { provider_id: asked.provider_id })
      }))
    })
    const completion = run(active as string).order.policy.message_order === 'completion'
    const answers = completion ? [...kept].sort((a, b) => a.settled - b.settled) : kept
    for (const call of answers) {
      const text = call.status === 'cancelled' ? undefined : call.text ?? ''
      duty.appended.push({ role: 'tool', tool_call_id: call.asked.call_id, turn: batch.turn, run_id: active, ...(text !== undefined && { content: text }) })
    }
  }

  function settle (batch: OpenBatch, call: JudgedCall, status: JudgedCall['status']): void {
    must(isOpen(call), `call ${call.asked.call_id} is settled again`)
    call.status = status
    call.settled = 1 + batch.calls.filter((one) => one.settled > 0).length
  }

  // --- Events --------------------------------------------------------------------------------------------------------------------------

  function hear (event: Event, following: Event[]): void {
    const { type, run_id: runId } = event
    const own = runId === undefined ? null : runs.get(runId) ?? null
    seq++
    must(event.seq === seq, `${type} has the number ${event.seq}, not ${seq}`)
    must(event.caused_by.every((cause) => cause < event.seq && cause > 0), `${type} is caused by ${event.caused_by.join()}`)
    must(event.caused_by.length > 0 || type === 'run.created', `${type} has no cause`)
    must(event.time === new Date(now).toISOString(), `${type} happens at ${event.time}`)
    if (own !== null && runId !== undefined) {
      must(!own.ended, `${runId} says ${type} after its end`)
      must(event.run_seq === ++own.events, `${type} has run_seq ${event.run_seq}, not ${own.events}`)
    }
    const ofActive = runId !== undefined && runId === active
    switch (type) {
      case 'run.created': return created(event)
      case 'run.started':
        activate()
        must(runId === active && run(runId as string).startedAt === null, `${runId} starts, but the active run is ${active}`)
        run(runId as string).startedAt = now
        return
      case 'turn.started':
        must(duty.supersede.length === 0, `turn ${event.turn} starts before ${duty.supersede.join()} were superseded`)
        must(ofActive && run(runId as string).startedAt !== null, `turn ${event.turn} starts for ${runId}, the active run is ${active}`)
        must(open === null, `turn ${event.turn} starts while a ${open?.kind} is open`)
        must(event.turn === turn + 1 && event.attempt === 1, `turn ${event.turn} attempt ${event.attempt} starts after turn ${turn}`)
        must(steering().length === 0 && duty.deliver.length === 0, `turn ${event.turn} starts without ${ids(steering())}`)
        must(!isOverLimit(), `turn ${event.turn} starts beyond a limit`)
        must(event.message_count === ledger.length + duty.appended.length, `turn ${event.turn} counts ${event.message_count} messages`)
        turn = event.turn as number
        open = { kind: 'turn', turn, attempt: 1 }
        return
      case 'turn.retrying':
        must(command.type === 'RetryTurn' || command.type === 'Lapse', 'a turn is put back by nobody')
        must(ofActive && open?.kind === 'turn' && open.turn === event.turn && open.attempt + 1 === event.attempt, `turn ${event.turn} is put back as attempt ${event.attempt}`)
        if (open?.kind === 'turn') open.attempt++
        return
      case 'turn.completed': return answered(event)
      case 'turn.cancelled':
        must(duty.close && ofActive && open?.kind === 'turn' && open.turn === event.turn, `turn ${event.turn} is cancelled`)
        open = null
        return
      case 'batch.started': return asked(event)
      case 'tool.started':
      case 'tool.progress':
      case 'tool.completed':
      case 'tool.failed':
      case 'tool.cancelled': return worked(event)
      case 'batch.completed': return closed(event)
      case 'message.accepted': return accepted(event)
      case 'message.delivered': return delivered(event, following)
      case 'message.superseded': {
        must(duty.supersede.shift() === event.message_id, `message ${String(event.message_id)} is superseded out of turn`)
        drop(messages.get(event.message_id as string) as JudgedMessage, 'superseded')
        return
      }
      case 'message.withdrawn':
        must(command.type === 'WithdrawMessage' && command.message_id === event.message_id, 'a message is withdrawn that nobody withdrew')
        drop(messages.get(event.message_id as string) as JudgedMessage, 'withdrawn')
        return
      case 'conversation.recovered':
        must(command.type === 'Recover', 'a recovery without a reason')
        return
      default:
        must(TERMINAL.has(type), `nobody knows ${String(type)}`)
        ended(event)
    }
  }

  function created (event: Event): void {
    must(command.type === 'StartRun' && command.run_id === event.run_id && !runs.has(command.run_id), `${event.run_id} is created`)
    const order = command as StartRun
    runs.set(order.run_id, { order, events: 1, startedAt: null, ended: false, ledgerStart: 0, answers: 0, tokens: 0 })
    must(event.run_seq === 1, 'a run begins in its middle')
    const replaces = order.on_active_run === 'interrupt' || order.on_active_run === 'rollback'
    queue = replaces ? [order.run_id, ...queue] : [...queue, order.run_id]
    duty.close = replaces && active !== null
    if (duty.close && order.on_active_run === 'rollback') duty.supersede = waitsFor(active).map((message) => message.id)
  }

  function answered (event: Event): void {
    const word = command
    if (word.type !== 'CompleteTurn') return must(false, 'a turn completes without an answer')
    must(open?.kind === 'turn' && open.turn === event.turn && open.attempt === event.attempt, `turn ${event.turn} attempt ${event.attempt} completes`)
    must(event.text === word.text && (event.tool_calls as unknown[]).length === word.calls.length, 'a turn completes with another answer')
    run(active as string).answers++
    open = null
    if (word.calls.length > 0) return
    if (word.text !== '') duty.appended.push({ id: word.message_id, role: 'assistant', content: word.text, turn: event.turn as number, run_id: active })
    if (word.finish_reason === 'length') duty.end = 'incomplete'
    else conclude(true)
  }

  function asked (event: Event): void {
    const word = command
    if (word.type !== 'CompleteTurn') return must(false, 'a batch starts without an answer')
    must(open === null && event.turn === turn && event.batch_id === word.batch_id, `batch ${event.batch_id} starts`)
    const calls = word.calls.map((call): JudgedCall => ({ asked: call, status: 'pending', attempt: 0, text: null, settled: 0, output: null }))
    must((event.calls as { call_id: string }[]).map((call) => call.call_id).join() === calls.map((call) => call.asked.call_id).join(), 'a batch has other calls than its turn')
    open = { kind: 'batch', turn, id: word.batch_id, text: word.text, calls }
  }

  function worked (event: Event): void {
    const { type } = event
    const call = openCall(event.call_id ?? '')
    if (open?.kind !== 'batch' || call === undefined) return must(false, `${type} of ${event.call_id}, which is no open call`)
    must(event.turn === open.turn && event.batch_id === open.id && event.run_id === active && event.name === call.asked.name, `${type} says whose it is`)
    const word = command.type === 'CompleteCall' || command.type === 'ProgressCall' ? command : null
    if (type === 'tool.started') {
      const { limits, policy } = run(active as string).order
      const running = open.calls.filter((one) => one.status === 'running').length
      must(!duty.close, `call ${event.call_id} starts although its batch was stopped`)
      const next = open.calls.find((one) => one.status === 'pending' && one.asked.fault === null && !isSuspect(one))
      must(isSuspect(call) ? next === undefined && running === 0 : next === call, `call ${event.call_id} starts out of turn`)
      must(running < (policy.parallel ? limits.max_tool_concurrency : 1), `call ${event.call_id} starts although ${running} run`)
      must(event.attempt === ++call.attempt, `call ${event.call_id} starts as attempt ${String(event.attempt)}`)
      call.status = 'running'
      return
    }
    if (type === 'tool.progress') return must(word?.type === 'ProgressCall' && word.call_id === event.call_id, 'progress that nobody made')
    if (type === 'tool.cancelled') {
      must(duty.close, `call ${event.call_id} is cancelled by ${command.type}`)
      settle(open, call, 'cancelled')
      duty.cancelled.push(call.asked.call_id)
      if (!open.calls.some(isOpen)) link(open)
      return
    }
    const outcome = word?.type === 'CompleteCall' && word.call_id === event.call_id ? word.outcome : null
    if (type === 'tool.completed') {
      if (outcome?.status !== 'completed') return must(false, `call ${event.call_id} completes without a result`)
      must(JSON.stringify(event.output) === JSON.stringify(outcome.output), `call ${event.call_id} completes with another output`)
      call.text = outcome.text
      call.output = outcome.output
      return settle(open, call, 'completed')
    }
    must(outcome?.status === 'failed' || call.asked.fault !== null || command.type === 'Lapse', `call ${event.call_id} fails without a reason`)
    call.text = outcome?.status === 'failed' ? outcome.text : JSON.stringify({ error: event.error })
    if (command.type === 'Lapse') must((event.error as { code: string }).code === 'outcome_unknown', `call ${event.call_id} of a lost worker fails otherwise`)
    settle(open, call, 'failed')
  }

  function closed (event: Event): void {
    const batch = open
    if (batch?.kind !== 'batch') return must(false, 'a batch completes that is not open')
    must(event.batch_id === batch.id && !batch.calls.some((call) => isOpen(call) || call.status === 'cancelled'), `batch ${event.batch_id} completes`)
    const failed = batch.calls.filter((call) => call.status === 'failed').length
    must(JSON.stringify(event.counts) === JSON.stringify({ completed: batch.calls.length - failed, failed, cancelled: 0 }), `batch ${event.batch_id} miscounts`)
    const { policy } = run(active as string).order
    const final = policy.final_answer_tool === null ? undefined : batch.calls.find((call) => call.status === 'completed' && call.asked.name === policy.final_answer_tool)
    link(batch)
    if (failed > 0 && final === undefined && policy.on_error === 'fail_run') duty.end = 'failed'
    else conclude(final !== undefined)
  }

  function accepted (event: Event): void {
    const id = event.message_id as string
    if (command.type === 'EditMessage') {
      const message = messages.get(id) as JudgedMessage
      must(id === command.message_id && event.edited === true && JSON.stringify(event.content) === JSON.stringify(command.content), `message ${id} is edited`)
      must(event.receipt === (message.due === null ? 'queued' : 'scheduled') && event.mode === message.mode, `message ${id} changes its place`)
      message.content = command.content
      return
    }
    const post = command
    if (post.type !== 'PostMessage' || messages.has(id)) return must(false, `message ${id} is accepted`)
    const interrupting = interrupts(post)
    const mode = interrupting ? 'interrupt' : post.mode === 'queue' && post.due_at === null ? 'queue' : 'steer'
    const receipt = post.due_at !== null ? 'scheduled' : interrupting ? 'interrupted' : 'queued'
    must(id === post.message_id && event.run_id === post.run_id, `message ${id} is accepted for ${event.run_id}`)
    must(event.mode === mode && event.receipt === receipt, `message ${id} is ${String(event.receipt)} as ${String(event.mode)}, not ${receipt} as ${mode}`)
    must(JSON.stringify(event.content) === JSON.stringify(post.content), `message ${id} changes its content`)
    const ready = readyFor(post.run_id)
    if (interrupting) {
      duty.next = true
      duty.discard = post.completed_calls === 'discard'
      if (post.queued === 'supersede') duty.supersede = ready.map((message) => message.id)
      else for (const message of ready) message.mode = 'steer'
    }
    const message: JudgedMessage = {
      id, run: post.run_id, content: post.content, mode: mode === 'queue' ? 'queue' : 'steer', due: post.due_at, fate: 'waiting', inLedgerOf: null
    }
    messages.set(id, message)
    waiting.push(message)
  }

  const steering = () => readyFor(active).filter((message) => message.mode === 'steer')

  function delivered (event: Event, following: Event[]): void {
    must(duty.supersede.length === 0, `message ${String(event.message_id)} is delivered before ${duty.supersede.join()} were superseded`)
    const boundary = following.find((one) => one.type === 'turn.started' || TERMINAL.has(one.type))
    const left = event.run_id === undefined
    const starts = !left && boundary?.type === 'turn.started'
    if (left) must(active === null, `message ${String(event.message_id)} is delivered for no run while ${active} is active`)
    else must(event.run_id === active && (duty.deliver.length > 0 || boundary?.run_id === active), `message ${String(event.message_id)} is delivered in the middle of a turn`)
    const [message] = left ? readyFor(null) : duty.deliver.length > 0 || !starts ? readyFor(active) : steering()
    if (message === undefined || message.id !== event.message_id) return must(false, `message ${String(event.message_id)} is delivered, the next one is ${message?.id}`)
    drop(message, 'delivered')
    duty.deliver.shift()
    message.inLedgerOf = event.run_id ?? null
    const at = !left && duty.next ? turn + 1 : turn
    must(event.turn === at || (event.turn === undefined && !starts), `message ${message.id} is delivered in turn ${event.turn}`)
    duty.appended.push({ id: message.id, role: 'user', content: message.content as string, turn: at, run_id: message.run })
  }

  function ended (event: Event): void {
    const id = event.run_id as string
    const own = run(id)
    own.ended = true
    if (id !== active) {
      must(queue.includes(id) && event.type === 'run.cancelled' && command.type === 'CancelRun' && command.run_id === id, `${id} ends by ${event.type} while it waits`)
      queue = queue.filter((one) => one !== id)
      for (const message of waitsFor(id)) message.run = null
      return
    }
    const status = event.type.slice('run.'.length)
    const timedOut = command.type === 'Lapse' && duty.close
    const gaveUp = command.type === 'FailTurn' || (command.type === 'Lapse' && status === 'failed')
    must(open === null || (gaveUp && open.kind === 'turn'), `${id} ends by ${event.type} while a ${open?.kind} is open`)
    must(duty.supersede.length === 0, `${id} ends before ${duty.supersede.join()} were superseded`)
    must(readyFor(id).length === 0, `${id} ends, and ${ids(readyFor(id))} are left behind`)
    const expected = duty.end ?? (timedOut || (duty.interrupting && isOverLimit()) ? 'incomplete' : gaveUp ? 'failed' : duty.close && !duty.interrupting ? 'cancelled' : 'no end')
    must(status === expected, `${id} ends by ${event.type}, expected ${expected}`)
    duty.end = null
    for (const message of waitsFor(id)) message.run = null
    if (event.reason === 'rolled_back') {
      must(command.type === 'StartRun' && command.on_active_run === 'rollback', `${id} is rolled back`)
      ledger = ledger.slice(0, own.ledgerStart)
      sentBefore = sentBefore.slice(0, ledger.filter((message) => message.role !== 'system').length)
      duty.appended = []
      for (const message of messages.values()) if (message.inLedgerOf === id) message.fate = 'rolled back'
    }
    active = null
    open = null
  }

  // --- Steps ---------------------------------------------------------------------------------------------------------------------------

  function stopsWork (given: Command): boolean {
    if (given.type === 'CancelRun') return active === given.run_id
    const own = active === null ? null : run(active)
    return given.type === 'Lapse' && own !== null && own.startedAt !== null && now >= own.startedAt + own.order.limits.run_timeout_ms
  }

  /** Calls of lost workers start again where that is harmless. */
  function restart (given: Command): void {
    if (given.type !== 'Lapse' || duty.close) return
    for (const { call_id: id, attempt } of given.calls) {
      const call = openCall(id)
      if (call?.status !== 'running' || call.attempt !== attempt || !handedOut.has(`${id} ${attempt}`)) continue
      if ((call.asked.rules.effects === 'read' || call.asked.rules.idempotent) && attempt < MAX_LOSSES) call.status = 'pending'
    }
  }

  return {
    see (seen) {
      steps++
      command = seen.command
      now = command.at
      passTime()
      const expected = refusalOf(command)
      const word = 'fence' in command && command.type !== 'Lapse' ? command : null
      if (word !== null && word.type !== 'Recover' && word.fence === inFlight) inFlight = null
      if (seen.refusal !== null) {
        must(expected === seen.refusal || (expected === 'any' && seen.refusal === 'nothing_due'), `refused as ${seen.refusal}, expected ${expected}`)
        must(seen.events.length === 0 && seen.added === 0 && seen.effects.length === 0, 'refused, and yet something happened')
        return
      }
      must(expected === null || expected === 'any', `accepted, expected ${expected}`)
      const interrupting = command.type === 'PostMessage' && interrupts(command)
      duty = {
        close: interrupting || stopsWork(command),
        interrupting,
        discard: false,
        supersede: [],
        deliver: [],
        next: active !== null && open === null,
        end: null,
        cancelled: [],
        appended: []
      }
      const before = { open, waits: command.type === 'PostMessage' ? waitsFor(command.run_id).length : 0 }
      restart(command)
      if (!exists) {
        exists = true
        if (command.type === 'CreateConversation') for (const { id, role, content } of command.messages) duty.appended.push({ id, role, content: content as string })
      }
      if (word !== null && 'usage' in word && word.usage !== null) run(active as string).tokens += word.usage.total_tokens
      seen.events.forEach((event, i) => hear(event, seen.events.slice(i + 1)))
      activate()
      must(duty.supersede.length === 0, `${duty.supersede.join()} were not superseded`)
      must(duty.deliver.length === 0, `${duty.deliver.join()} wait although the answer was final`)
      must(duty.end === null, `the run goes on, though it is ${duty.end}`)
      must(active !== null || readyFor(null).length === 0, `${ids(readyFor(null))} wait for nothing`)
      must(!duty.close || before.open === null || open?.turn !== before.open.turn, `${command.type} stopped nothing`)
      must(!interrupting || active === null || open !== null || !isOverLimit(), 'the run goes on beyond a limit')
      if (command.type === 'CancelRun') must(run(command.run_id).ended, `${command.run_id} was cancelled and goes on`)
      if (command.type === 'PostMessage') judgeReceipt(command, interrupting, before.waits, seen.receipt(command.message_id))
      compareLedger(seen)
      for (const effect of seen.effects) heed(effect)
    },

    sent (wire, repairs) {
      must(repairs.length === 0, `the transcript had to be repaired: ${repairs.join()}`)
      const [fault] = checkPayload({ model: 'model', messages: wire })
      must(fault === undefined, `the payload is not valid at ${fault?.at}: ${fault?.message}`)
      const said = wire.filter((message) => message.role !== 'system').map((message) => JSON.stringify(message))
      const changed = sentBefore.findIndex((message, i) => message !== said[i])
      must(changed === -1, `message ${changed} of the payload is another one than before`)
      sentBefore = said
      const users = wire.flatMap((message) => message.role === 'user' ? [JSON.stringify(message.content)] : [])
      const known = ledger.flatMap((message) => message.role === 'user' ? [JSON.stringify(message.content)] : [])
      must(users.join() === known.join(), 'the payload has other user messages than the ledger')
    },

    conclude () {
      must(active === null && queue.length === 0, `${active ?? queue.join()} is not over`)
      must(waiting.length === 0, `${ids(waiting)} wait for ever`)
      const times = new Map<string, number>()
      for (const { id } of ledger) times.set(id, (times.get(id) ?? 0) + 1)
      for (const { id, fate } of messages.values()) {
        must((times.get(id) ?? 0) === (fate === 'delivered' ? 1 : 0), `message ${id} is ${fate}, and ${times.get(id) ?? 0} times in the ledger`)
      }
    },

    fates () {
      const found: Record<Fate, string[]> = { waiting: [], delivered: [], superseded: [], withdrawn: [], 'rolled back': [] }
      for (const { id, fate } of messages.values()) found[fate].push(id)
      return found
    }
  }

  function judgeReceipt (post: PostMessage, interrupting: boolean, waited: number, receipt: Receipt | null): void {
    const mode = interrupting ? 'interrupt' : post.mode === 'queue' && post.due_at === null ? 'queue' : 'steer'
    const expected: Receipt = {
      message_id: post.message_id,
      receipt: post.due_at !== null ? 'scheduled' : interrupting ? 'interrupted' : 'queued',
      mode,
      cancelled_call_ids: duty.cancelled,
      position: interrupting ? 0 : waited + 1
    }
    must(JSON.stringify(receipt) === JSON.stringify(expected), `the receipt is ${JSON.stringify(receipt)}, not ${JSON.stringify(expected)}`)
  }

  /** The ledger has grown by what was expected, and by nothing else. */
  function compareLedger ({ ledger: actual, added }: Seen): void {
    const { appended } = duty
    must(actual.length === ledger.length + appended.length && added === appended.length, `the ledger has ${actual.length} messages, expected ${ledger.length} and ${appended.length} more`)
    appended.forEach((expected, i) => {
      const message = actual[ledger.length + i] as Message
      for (const [field, value] of Object.entries(expected)) {
        const found = (message as unknown as Record<string, unknown>)[field]
        must(JSON.stringify(found) === JSON.stringify(value), `message ${message.id} of the ledger has the ${field} ${JSON.stringify(found)}, expected ${JSON.stringify(value)}`)
      }
      if (expected.role === 'tool' && expected.content === undefined) must(String(message.content).includes('"cancelled"'), `the tombstone of ${message.tool_call_id} does not say so`)
    })
    ledger = [...actual]
  }

  function heed (effect: Effect): void {
    switch (effect.type) {
      case 'call_model':
        must(open?.kind === 'turn' && open.turn === effect.turn && open.attempt === effect.attempt, `an LLM call of turn ${effect.turn} is asked for`)
        must(inFlight === null, `an LLM call is asked for while that of fence ${inFlight} is in flight`)
        must(effect.fence > newestFence, `fence ${effect.fence} comes after ${newestFence}`)
        newestFence = effect.fence
        fences.set(effect.fence, { turn: effect.turn, attempt: effect.attempt })
        inFlight = effect.fence
        return
      case 'run_calls':
        for (const { call_id: id, attempt } of effect.calls) {
          const call = openCall(id)
          must(call?.status === 'running' && call.attempt === attempt, `call ${id} attempt ${attempt} is given out`)
          must(!handedOut.has(`${id} ${attempt}`), `call ${id} attempt ${attempt} is given out twice`)
          handedOut.add(`${id} ${attempt}`)
        }
        return
      case 'abort':
        if (effect.fence === inFlight) inFlight = null
    }
  }
}
