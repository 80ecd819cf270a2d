import type { CallError } from '../../src/core/run.js'
import { checkLedger, checkState } from '../../src/core/check.js'
import type { Command, Executor, ModelCall, PostMessage, StartRun } from '../../src/core/command.js'
import { docNames } from '../../src/core/draft.js'
import type { Event } from '../../src/core/event.js'
import type { Receipt } from '../../src/core/messages.js'
import type { State } from '../../src/core/state.js'
import { transcript } from '../../src/core/transcript.js'
import { transition } from '../../src/core/transition.js'
import { START, TOKENS, limitsWith, policyWith } from './core-scene.js'
import { createShelf } from './core-shelf.js'
import { createJudge, type Fate } from './schedule-judge.js'

/** The core on trial: the project's own, or a copy with a fault planted in it. */
export interface Core {
  transition: typeof transition
  transcript: typeof transcript
  checkState: typeof checkState
  checkLedger: typeof checkLedger
}

export const CORE: Core = { transition, transcript, checkState, checkLedger }

/** One thing that happens: which, and a number whose digits say how. Zero is always the plainest way. */
export type Move = [op: number, how: number]

export interface Played {
  /** Commands that were decided. */
  commands: number
  /** How often each event, receipt and refusal was seen. */
  tally: Map<string, number>
  fates: Record<Fate, string[]>
}

interface HeldTurn { worker: string, fence: number, turn: number, attempt: number }
interface HeldCall { worker: string, call_id: string, attempt: number }

/** Reads a number digit by digit, each in a base of its own. */
function digits (number: number): (base: number) => number {
  return (base) => {
    const digit = number % base
    number = Math.floor(number / base)
    return digit
  }
}

const WORKERS = ['w1', 'w2', 'w3']
/** Outside commands may come again as long as the conversation remembers them. */
const REMEMBERED = 12

/**
 * Plays a schedule on one conversation and has every step judged; throws at the first fault. Whatever is held at the end of the moves
 * is then brought to its end, so that nothing may be left over.
 */
export function play (core: Core, moves: Move[]): Played {
  const shelf = createShelf()
  const judge = createJudge()
  const tally = new Map<string, number>()
  const count = (what: string) => tally.set(what, (tally.get(what) ?? 0) + 1)
  const turns: HeldTurn[] = []
  const calls: HeldCall[] = []
  /** Work that was stopped or lost, by workers who do not know it yet. */
  const lateTurns: HeldTurn[] = []
  const lateCalls: HeldCall[] = []
  const said: Command[] = []
  const posted: { id: string, run: string }[] = []
  const runs: string[] = []
  let state: State | null = null
  let now = START
  let commands = 0
  let named = 0
  const name = (prefix: string) => `${prefix}${++named}`

  function send (command: Command, keep = true): boolean {
    commands++
    const outcome = core.transition(state, command)
    const { refusal } = outcome
    if (keep) {
      said.push(command)
      if (said.length > REMEMBERED) said.shift()
    }
    const seen = { command, refusal, ledger: shelf.messages, receipt }
    if (refusal !== null) {
      count(`refused ${refusal}`)
      judge.see({ ...seen, events: [], added: 0, effects: [] })
      return false
    }
    const { change } = outcome
    const added = shelf.store(change).length
    state = change.state
    for (const event of change.events) count(nameOf(event))
    judge.see({ ...seen, events: change.events, added, effects: change.effects })
    const [wrong] = [...core.checkState(state), ...core.checkLedger(state, shelf.messages)]
    if (wrong !== undefined) throw new Error(`after step ${commands} (${command.type}) the checker says: ${wrong}`)
    for (const effect of change.effects) {
      const worker = command.executor?.worker ?? ''
      if (effect.type === 'run_calls') for (const call of effect.calls) calls.push({ worker, ...call })
      if (effect.type === 'abort') {
        move(turns, lateTurns, (held) => held.fence === effect.fence)
        move(calls, lateCalls, (held) => effect.call_ids.includes(held.call_id))
      }
      if (effect.type === 'call_model') {
        turns.push({ worker, ...effect })
        const sent = core.transcript(shelf.messages, change.state.has_system ? null : 'Be brief.')
        if (sent === null) throw new Error('an LLM call without a message to answer')
        judge.sent(sent.messages, sent.repairs)
      }
    }
    return true
  }

  function receipt (messageId: string): Receipt | null {
    const text = shelf.docs.get(docNames.receipt(messageId))
    return text === undefined ? null : JSON.parse(text) as Receipt
  }

  /** Who says something is at hand for what follows from it, or is not. */
  function by (worker: string, digit: number): { executor?: Executor } {
    return digit === 2 ? {} : { executor: { worker, turn: true, calls: digit === 1 ? 1 : 8, spread: false } }
  }

  function advance (how: number): void {
    const digit = digits(how)
    const worker = WORKERS[digit(3)] as string
    send({ type: 'Advance', at: now, executor: { worker, turn: digit(8) !== 7, calls: [8, 8, 1, 0][digit(4)] as number, spread: true } }, false)
  }

  function start (how: number): void {
    const digit = digits(how)
    const id = name('run_')
    const replaces = (['queue', 'interrupt', 'rollback', 'reject'] as const)[digit(4)] as StartRun['on_active_run']
    const later = digit(3) === 2 && (replaces === 'queue' || replaces === 'reject')
    const pick = <T>(values: T[]): T => values[digit(values.length)] as T
    runs.push(id)
    send({
      type: 'StartRun',
      at: now,
      conversation_id: 'c',
      run_id: id,
      tenant: 'me',
      new_conversation: state === null,
      due_at: later ? now + 1500 : null,
      models: ['model', 'other'],
      limits: limitsWith({
        max_queued_messages: pick([100, 2, 1]),
        max_tool_concurrency: pick([16, 2, 1]),
        max_turns: pick([20, 3, 1]),
        max_total_tokens: pick([null, null, 40]),
        run_timeout_ms: pick([3_600_000, 3_600_000, 4000])
      }),
      policy: policyWith({
        cancelled_calls: pick(['remove', 'tombstone_started', 'tombstone']),
        message_order: pick(['request', 'completion']),
        final_answer_tool: pick([null, 'final_answer']),
        on_error: pick(['continue', 'continue', 'fail_run']),
        parallel: pick([true, true, true, false])
      }),
      metadata: {},
      on_active_run: replaces,
      messages: [{ id: name('msg_'), role: 'user', content: `input of ${id}` }],
      input: `input of ${id}`,
      spec: '{}',
      ...by('w1', digit(3))
    })
  }

  /** Mostly the run that is active or was started last; now and then any. */
  function someRun (digit: (base: number) => number): string {
    return digit(6) === 5 ? runs[digit(runs.length)] as string : state?.run?.id ?? runs.at(-1) as string
  }

  function post (how: number, mode: PostMessage['mode'], delayed = false): void {
    const digit = digits(how)
    const id = name('msg_')
    const run = someRun(digit)
    posted.push({ id, run })
    send({
      type: 'PostMessage',
      at: now,
      run_id: run,
      message_id: id,
      content: digit(2) === 0 ? `message ${id}` : [{ type: 'text', text: `message ${id}` }],
      mode,
      queued: digit(3) === 2 ? 'supersede' : 'deliver',
      completed_calls: digit(3) === 2 ? 'discard' : 'keep',
      due_at: delayed ? now + 100 + digit(20) * 100 : null,
      ...by('w1', digit(3))
    })
  }

  function answer (held: HeldTurn, how: number, keep: boolean): void {
    const digit = digits(how)
    const { worker, turn, attempt, fence } = held
    const kind = digit(8)
    const said = { at: now, fence, usage: digit(2) === 0 ? TOKENS : null, ...by(worker, digit(3)) }
    if (kind === 7) return void send({ type: 'FailTurn', ...said, error: { code: 'provider_refused', message: 'no', retryable: false } }, keep)
    if (kind === 6) return void send({ type: 'RetryTurn', ...said, reason: 'provider_unavailable', delay_ms: [0, 300][digit(2)] as number, next_model: digit(2) === 1, tried: true }, keep)
    const width = kind <= 1 ? 0 : 1 + digit(4)
    const text = [`turn ${turn} attempt ${attempt}`, ''][digit(2)] as string
    const asked = Array.from({ length: width }, (_, i): ModelCall => {
      const fault: CallError | null = digit(8) === 7 ? { code: 'unknown_tool', message: 'no such tool' } : null
      const write = digit(3) === 2
      return {
        call_id: `call_t${turn}a${attempt}n${i}`, name: digit(6) === 5 ? 'final_answer' : 'look', arguments: { i }, provider_id: digit(2) === 0 ? `p${i}` : '', raw: null,
        references: [], rules: { effects: write ? 'write' : 'read', idempotent: false, placement: digit(3) === 2 ? 'spread' : 'local', timeout_ms: 30_000 }, fault
      }
    })
    send({
      type: 'CompleteTurn', ...said, text, finish_reason: width > 0 ? 'tool_calls' : digit(6) === 5 ? 'length' : 'stop', calls: asked,
      message_id: `msg_t${turn}a${attempt}`, batch_id: `batch_${turn}`
    }, keep)
  }

  function finish (held: HeldCall, how: number, keep: boolean): void {
    const digit = digits(how)
    const { worker, call_id, attempt } = held
    const about = { at: now, call_id, attempt, ...by(worker, digit(3)) }
    const kind = digit(5)
    if (kind === 4) return void send({ type: 'ProgressCall', ...about, data: { half: true } }, keep)
    const text = `result of ${call_id} attempt ${attempt}`
    const error = { code: 'tool_error', message: text }
    send({
      type: 'CompleteCall', ...about, outcome: kind === 3 ? { status: 'failed', error, text: JSON.stringify({ error }) } : { status: 'completed', output: text, text, truncated: false }
    }, keep)
  }

  function lose (how: number): void {
    const worker = WORKERS[how % 3] as string
    const lost = calls.filter((held) => held.worker === worker)
    send({
      type: 'Lapse', at: now, fence: turns.find((held) => held.worker === worker)?.fence ?? null, calls: lost.map(({ call_id, attempt }) => ({ call_id, attempt, arguments: {} }))
    }, false)
  }

  /** Now and then a conversation exists before its first run. */
  function begin (how: number): void {
    if (state !== null || how % 4 !== 3) return start(how)
    const messages = [{ id: name('msg_'), role: 'system' as const, content: 'Be brief.' }]
    send({ type: 'CreateConversation', at: now, conversation_id: 'c', operation: 'op', tenant: 'me', metadata: {}, messages, has_system: true }, false)
    start(how)
  }

  const sweep = () => void send({ type: 'Lapse', at: now, fence: null, calls: [] }, false)

  /** Whatever brings the conversation on. */
  function goOn (how: number): void {
    const call = calls[how % Math.max(1, calls.length)]
    const turn = turns[0]
    if (call !== undefined) finish(call, how, true)
    else if (turn !== undefined) answer(turn, how, true)
    else advance(how)
  }

  /** Someone of a list says something. */
  function word<T> (list: T[], how: number, say: (held: T, how: number, keep: boolean) => void, late = false): void {
    const digit = digits(how)
    const held = list[digit(Math.max(1, list.length))]
    if (held === undefined) return goOn(how)
    const rest = digit(1_000_000)
    say(held, rest, !late)
  }

  function release (command: Command | undefined): void {
    if (command === undefined) return
    if ('fence' in command && command.type !== 'Lapse') remove(turns, (held) => held.fence === command.fence)
    if (command.type === 'CompleteCall') remove(calls, (held) => held.call_id === command.call_id && held.attempt === command.attempt)
  }

  const target = (digit: (base: number) => number) => posted[Math.max(0, posted.length - 1 - digit(6))]

  const ops: ((how: number) => void)[] = [
    advance,
    start,
    (how) => post(how, 'auto'),
    (how) => post(how, 'interrupt'),
    (how) => post(how, 'steer'),
    (how) => post(how, 'queue'),
    (how) => post(how, 'queue'),
    (how) => post(how, 'auto', true),
    (how) => word(turns, how, answer),
    (how) => word(turns, how, answer),
    (how) => word(turns, how, answer),
    (how) => word(turns, how, answer),
    (how) => word(calls, how, finish),
    (how) => word(calls, how, finish),
    (how) => word(calls, how, finish),
    (how) => word(lateTurns, how, answer, true),
    (how) => word(lateCalls, how, finish, true),
    function edit (how) {
      const digit = digits(how)
      const message = target(digit)
      if (message === undefined) goOn(how)
      else send({ type: 'EditMessage', at: now, run_id: digit(8) === 7 ? someRun(digit) : message.run, message_id: message.id, content: `edited ${name('')}` })
    },
    function withdraw (how) {
      const message = target(digits(how))
      if (message === undefined) goOn(how)
      else send({ type: 'WithdrawMessage', at: now, run_id: message.run, message_id: message.id })
    },
    function cancel (how) {
      const digit = digits(how)
      // Cancelling is rarer than all the rest, or nothing else would ever happen.
      if (digit(4) !== 3) goOn(how)
      else send({ type: 'CancelRun', at: now, run_id: someRun(digit), reason: 'cancelled', ...by('w2', digit(3)) })
    },
    function again (how) {
      const command = said[how % Math.max(1, said.length)]
      if (command === undefined) goOn(how)
      else send({ ...command, at: now }, false)
    },
    lose,
    sweep,
    (how) => { now += [10, 100, 1000, 2000][how % 4] as number }
  ]

  for (const [op, how] of moves) {
    const before = said.length === 0 ? undefined : said.at(-1)
    // Where nothing is going on, most things could only be refused.
    if (isIdle(state) && op > 0 && op < LAST_WITH_A_RUN) begin(how)
    else ops[op]?.(how)
    if (said.at(-1) !== before) release(said.at(-1))
  }

  for (let steps = 0; ; steps++) {
    const last: State | null = state as State | null
    if (isIdle(last) && (last?.waiting.length ?? 0) === 0) break
    if (steps > 1000) throw new Error('the conversation never comes to an end')
    const turn = turns[0]
    const call = calls[0]
    if (turn !== undefined) answer(turn, 0, true)
    else if (call !== undefined) finish(call, 0, true)
    else if (!send({ type: 'Advance', at: now, executor: { worker: 'w1', turn: true, calls: 8, spread: true } }, false)) now += 1000
    release(said.at(-1))
  }
  judge.conclude()
  return { commands, tally, fates: judge.fates() }
}

const isIdle = (state: State | null): boolean => state === null || (state.run === null && state.queue.length === 0)

/** How many different things may happen. */
export const OPS = 24
/** Those behind it make sense without a run. */
const LAST_WITH_A_RUN = 21

function nameOf (event: Event): string {
  if (event.type === 'message.accepted') return event.edited === true ? 'message edited' : `message ${String(event.receipt)}`
  if (event.type === 'run.cancelled') return `run.cancelled ${String(event.reason).split(' ')[0]}`
  return event.type
}

function move<T> (from: T[], to: T[], which: (one: T) => boolean): void {
  for (const one of from.filter(which)) {
    to.push(one)
    if (to.length > 6) to.shift()
  }
  remove(from, which)
}

function remove<T> (list: T[], which: (one: T) => boolean): void {
  for (let i = list.length - 1; i >= 0; i--) if (which(list[i] as T)) list.splice(i, 1)
}
