import type { Command } from '../../src/core/command.js'
import { ConflictError, UnavailableError, type Executed, type Result } from '../../src/engine/execute.js'
import { partitionSuffix, type Keys } from '../../src/store/keys.js'
import type { Store } from '../../src/store/store.js'
import { ProblemError } from '../../src/errors.js'
import type { Services } from '../../src/services/services.js'
import { limitsWith, policyWith } from '../support/core-scene.js'
import { createPeople, type People } from './people.js'
import type { Machine } from './machine.js'
import type { Random } from './random.js'
import type { Timeline } from './timeline.js'
import { declared } from './toolbox.js'
import type { Action, Answer, Session } from './workload.js'

/** What became of a request, as its user knows it. */
export type Outcome = 'accepted' | 'refused' | 'unknown'

/** A request of a user and what came of it. */
export interface Request {
  conversation: string
  /** Which life of the conversation it was meant for: it may be deleted and made again. */
  life: number
  action: Action
  /** Its run, or the run it is about. */
  run_id: string
  message_id: string
  text: string
  sent: number
  outcome: Outcome | null
  /** When its user knew the outcome. */
  known: number
  refusal: string | null
  /** Sent more than once: an answer may speak of an earlier try. */
  repeated: boolean
}

/** A process that takes requests. */
export interface Entrance { machine: Machine, executed: Executed, store: Store, actions: Services['actions'], orphans: Services['orphans'] }

export interface UsersOptions {
  seed: number
  timeline: Timeline
  random: Random
  keys: Keys
  entrances: () => Entrance[]
  calm: () => boolean
  /** When nothing goes wrong any more. */
  calmFrom: number
  /** A request met an error that no store and no conflict explains. */
  failed: (error: Error) => void
  trace: ((who: string, what: string) => void) | null
}

/** How long a user waits for an answer before trying again. Milliseconds. */
const PATIENCE_MS = 1200

/** A request must have its answer, if only that there is none, within a second (FAULTS F54). Milliseconds, with some room for the way. */
const ANSWER_MS = 1050

/** What answers a run reads before and behind its commit; each reading that is slow, and still comes, may take this much longer. */
const READS_MS = 800

export interface Users {
  people: People
  requests: Request[]
  /** Answers that took too long. */
  late: string[]
  open: () => number
  begin: (number: number, session: Session) => void
}

export function createUsers ({ seed, timeline, random, keys, entrances, calm, calmFrom, failed, trace }: UsersOptions): Users {
  const requests: Request[] = []
  const late: string[] = []
  let open = 0
  let made = 0
  const people = createPeople({ seed, timeline, calmFrom, ask })

  /** Somebody answers a run, `after` milliseconds from now. */
  function ask (conversation: string, runId: string, action: Answer, after: number): void {
    const id = String(++made).padStart(4, '0')
    const request: Request = {
      conversation, life: 0, action: { ...action, at: 0 }, run_id: runId, message_id: `msg_${id}`, text: `${action.do} ${id}`, sent: Infinity, outcome: null, known: Infinity, refusal: null,
      repeated: false
    }
    requests.push(request)
    open++
    timeline.at(timeline.now() + after, () => {
      request.sent = timeline.now()
      attempt(request, false, 1, (outcome) => {
        trace?.('user', `${request.text} is ${outcome}${request.refusal === null ? '' : ` (${request.refusal})`}`)
        request.outcome = outcome
        request.known = timeline.now()
        open--
      })
      return false
    })
  }

  function begin (number: number, session: Session): void {
    const conversation = `conv_${number}`
    let life = 1
    open++
    timeline.at(timeline.now() + session.begins, () => act(0))

    /** The first action makes the conversation: nothing else goes out before it has been heard. */
    function act (index: number): boolean {
      const action = session.actions[index]
      if (action === undefined) return false
      open++
      request(action, index === 0, (outcome) => {
        if (index === 0 && outcome === 'accepted') {
          for (let i = 1; i < session.actions.length; i++) {
            open++
            timeline.at(timeline.now() + (session.actions[i] as Action).at, () => {
              open--
              return act(i)
            })
          }
        }
        if (index === 0) open--
        open--
      })
      return false
    }

    function request (action: Action, creates: boolean, over: (outcome: Outcome) => void): void {
      const id = String(++made).padStart(4, '0')
      const own = requests.filter((one) => one.conversation === conversation && one.life === life && one.action.do === 'run' && one.outcome === 'accepted')
      const target = own.length === 0 ? null : random.chance(0.7) ? own.at(-1) as Request : random.pick(own)
      const run = action.do === 'run' ? `run_${id}${partitionSuffix(keys.partitionOf(conversation))}` : target?.run_id ?? ''
      if (run === '') return over('refused')
      const about = action.do === 'edit' || action.do === 'withdraw' ? requests.findLast((one) => one.run_id === run && one.action.do === 'message') : null
      if (about === undefined) return over('refused')
      const text = `${action.do} ${id}`
      const made1: Request = {
        conversation, life, action, run_id: run, message_id: about?.message_id ?? `msg_${id}`, text, sent: timeline.now(), outcome: null, known: Infinity, refusal: null, repeated: false
      }
      requests.push(made1)
      attempt(made1, creates, 1, (outcome) => {
        trace?.('user', `${text} is ${outcome}${made1.refusal === null ? '' : ` (${made1.refusal})`}`)
        made1.outcome = outcome
        made1.known = timeline.now()
        if (action.do === 'delete' && outcome === 'accepted') {
          life++
          if (action.again) request({ ...session.actions[0] as Action }, true, over)
          else over(outcome)
          return
        }
        over(outcome)
      })
    }
  }

  function attempt (request: Request, creates: boolean, tries: number, over: (outcome: Outcome) => void): void {
    request.repeated = tries > 1
    const from = entrances()
    const isGone = () => request.action.do !== 'delete' && requests.some((one) => {
      return one.conversation === request.conversation && one.action.do === 'delete' && one.known >= request.sent
    })
    const again = (): void => {
      if (tries >= 5 && !calm()) return over('unknown')
      // Whoever wants a conversation gone does not ask again for what was in it: made once more, it would be another.
      if (isGone()) return over('unknown')
      timeline.at(timeline.now() + 30 * tries, () => {
        attempt(request, creates, tries + 1, over)
        return false
      })
    }
    if (from.length === 0) return again()
    const entrance = random.pick(from)
    let answered = false
    const answer = (result: Result | Error): void => {
      timeline.at(timeline.now() + random.next(), () => {
        if (answered) return false
        answered = true
        if (result instanceof Error) {
          if (!(result instanceof UnavailableError || result instanceof ProblemError || result instanceof ConflictError || result.name === 'StoreError')) failed(result)
          again()
          return false
        }
        const { refusal } = result
        request.refusal = refusal
        // It may have been taken, and its conversation deleted before the answer was read.
        if (refusal === 'not_found' && isGone()) over('unknown')
        else over(refusal === null || refusal === 'duplicate' ? 'accepted' : 'refused')
        return false
      })
    }
    timeline.at(timeline.now() + PATIENCE_MS, () => {
      if (answered) return false
      answered = true
      again()
      return false
    })
    entrance.machine.deliver(timeline.now() + random.next(), () => {
      // A try that was given up long ago meets its own Idempotency-Key, under which a later one was answered.
      if (answered && isGone()) return
      trace?.(entrance.machine.name, `is asked: ${request.text}${tries > 1 ? ' (again)' : ''}`)
      const arrived = timeline.now()
      const ended = (result: Result | Error) => {
        const took = timeline.now() - arrived
        const reads = ['decide', 'outputs', 'attach', 'discard'].includes(request.action.do) ? READS_MS : 0
        if (took > ANSWER_MS + reads && request.action.do !== 'delete' && !entrance.machine.pausedSince(arrived)) late.push(`${request.text} was answered after ${Math.round(took)} ms`)
        answer(result)
      }
      perform(entrance, request, creates).then(ended, ended)
    })
  }

  /** As a route does it: the answer's code stands for the refusal. What may be sent again is thrown. */
  async function answerRun ({ actions, orphans }: Entrance, { action, run_id: runId, message_id: messageId }: Request): Promise<Result> {
    const caller = { tenant: 'tenant', operation: messageId.slice('msg_'.length) }
    const nothing = { row: null, events: [], effects: [] }
    try {
      if (action.do === 'decide') await actions.decide(caller, runId, action.body)
      else if (action.do === 'outputs') await actions.submit(caller, runId, action.body)
      else if (action.do === 'attach') await orphans.attach(caller, runId, action.call_id)
      else if (action.do === 'discard') await orphans.discard(caller, runId, action.call_id)
      return { refusal: null, ...nothing }
    } catch (error) {
      if (!(error instanceof ProblemError) || error.retryable) throw error
      return { refusal: error.code as Result['refusal'], ...nothing }
    }
  }

  async function perform (entrance: Entrance, request: Request, creates: boolean): Promise<Result> {
    const { machine, executed, store } = entrance
    const { conversation, action, run_id: runId } = request
    if (action.do === 'decide' || action.do === 'outputs' || action.do === 'attach' || action.do === 'discard') return await answerRun(entrance, request)
    const at = machine.clock.now()
    const command = (): Command => {
      switch (action.do) {
        case 'run': return {
          type: 'StartRun', at, conversation_id: conversation, run_id: runId, tenant: 'tenant', new_conversation: creates,
          due_at: action.after > 0 ? at + action.after : null, models: action.models, limits: limitsWith(action.limits), policy: policyWith(action.policy),
          metadata: {}, on_active_run: action.on_active_run, messages: [{ id: request.message_id, role: 'user', content: request.text }], input: request.text,
          spec: JSON.stringify({ instructions: null, model_options: {}, tools: action.tools.map(declared) })
        }
        case 'message': return {
          type: 'PostMessage', at, run_id: runId, message_id: request.message_id, content: request.text, mode: action.mode, queued: action.queued,
          completed_calls: action.completed, due_at: action.after > 0 ? at + action.after : null
        }
        case 'edit': return { type: 'EditMessage', at, run_id: runId, message_id: request.message_id, content: request.text }
        case 'withdraw': return { type: 'WithdrawMessage', at, run_id: runId, message_id: request.message_id }
        default: return { type: 'CancelRun', at, run_id: runId, reason: 'cancelled' }
      }
    }
    if (action.do !== 'delete') return await executed.execute(conversation, command(), { claim: 'local' })

    const row = await store.load(conversation)
    if (row === null) return { refusal: 'not_found', row, events: [], effects: [] }
    for (const run of [...row.state.queue.map(({ id }) => id), ...row.state.run === null ? [] : [row.state.run.id]]) {
      await executed.execute(conversation, { type: 'CancelRun', at, run_id: run, reason: 'conversation_deleted' })
    }
    const removed = await store.remove(conversation)
    executed.forget(conversation)
    return { refusal: removed ? null : 'not_found', row: null, events: [], effects: [] }
  }

  return { people, requests, late, open: () => open, begin }
}
