import { checkLedger, checkState } from '../core/check.js'
import type { Repair as Command, RepairAction } from '../core/command.js'
import { docNames, iso } from '../core/draft.js'
import type { Message } from '../core/message.js'
import { wanted } from '../core/schedule.js'
import { claimsOf, type Claim, type State } from '../core/state.js'
import type { Refusal } from '../core/transition.js'
import { readArguments } from '../engine/arguments.js'
import { callSettled, notFound, notRepairable, unavailable } from '../errors.js'
import type { Repair, RepairReport } from '../schemas/repair.js'
import type { Row } from '../store/store.js'
import { answering, rowOf, type Context } from './context.js'
import { conversationView } from './conversation-view.js'
import type { Caller, Services } from './services.js'

type Deed = Exclude<Repair, { action: 'explain' }>

/** How often a look at row and ledger is repeated because somebody committed in between. */
const LOOKS = 4

/** What an operator can learn of a conversation, and do to it. */
export function createRepairService (context: Context): Services['conversations']['repair'] {
  const { store, reads, executed, clock, presence, upkeep, hints, settings } = context

  /** Row and ledger as they were at one moment, and what they disagree in. Null: others kept committing, which a conversation that stands still does not. */
  async function inspect (caller: Caller, id: string): Promise<{ row: Row, found: Command['found'] } | null> {
    for (let looks = 0; looks < LOOKS; looks++) {
      const row = await rowOf(context, caller, id)
      const ledger = (await reads.ledger(id, 0)).map((json) => JSON.parse(json) as Message)
      const again = await rowOf(context, caller, id)
      if (again.born !== row.born || again.version !== row.version) continue
      const wrong = [...checkState(row.state), ...checkLedger(row.state, ledger)]
      const known = new Set(ledger.map((message) => message.id))
      const delivered = row.state.waiting.filter((message) => known.has(message.id)).map((message) => message.id)
      return { row, found: { seq: row.state.seq, wrong, messages: ledger.length, delivered } }
    }
    return null
  }

  /** For each of the workers that hold something, how many milliseconds it is still held for alive. */
  async function signsOf (claims: Claim[]): Promise<Map<string, number>> {
    const workers = [...new Set(claims.map((claim) => claim.worker))]
    return new Map((await presence.left(workers)).map((ms, i) => [workers[i] as string, ms]))
  }

  async function report (caller: Caller, id: string, done: Pick<RepairReport, 'action' | 'changed' | 'detail'>): Promise<RepairReport> {
    const looked = await inspect(caller, id)
    const row = looked?.row ?? await rowOf(context, caller, id)
    const claims = claimsOf(row.state)
    const [signs, lock, due] = await Promise.all([signsOf(claims), upkeep.lock(id), upkeep.due(id)])
    const now = clock.now()
    return {
      ...done,
      conversation: conversationView(row, now),
      claims: claims.map(({ worker, call_id: callId, attempt }) => {
        const left = signs.get(worker) ?? 0
        const alive = left > 0
        return { worker, alive, alive_until: alive ? iso(now + left) : null, turn: row.state.run?.phase.turn ?? row.state.turn, call_id: callId, attempt }
      }),
      lock: lock === null ? null : { held_until: iso(now + lock.ms) },
      due_at: due === null ? null : iso(due),
      jobs: wanted(row.state, now, settings.leaseMs).map((job) => job.id),
      findings: looked?.found?.wrong ?? []
    }
  }

  async function actionOf (id: string, state: State, body: Deed): Promise<RepairAction> {
    switch (body.action) {
      case 'retry_turn': return { type: 'retry_turn' }
      case 'fail_call': return { type: 'fail_call', call_id: body.call_id }
      case 'release': {
        const claims = claimsOf(state)
        const calls = claims.filter((claim) => claim.call_id !== null) as (Claim & { call_id: string })[]
        const args = await readArguments(store, id, calls.map((claim) => claim.call_id))
        return {
          type: 'release',
          fence: claims.find((claim) => claim.fence !== null)?.fence ?? null,
          calls: calls.map(({ call_id, attempt }) => ({ call_id, attempt, arguments: args.get(call_id) ?? {} }))
        }
      }
    }
  }

  async function refused (id: string, state: State, body: Repair, refusal: Refusal): Promise<Error> {
    if (refusal === 'not_repairable') return notRepairable(adviceFor(state, body.action), state.run === null ? [] : [state.run.id])
    if (body.action !== 'fail_call') return unavailable()
    const [done] = await store.docs(id, [docNames.done(body.call_id)])
    return refusal === 'call_settled' || done != null ? callSettled('has its result already; read it with GET /runs/{run_id}/calls/{call_id}', [body.call_id]) : notFound('call')
  }

  return (caller, id, body) => answering(async () => {
    if (body.action === 'explain') return await report(caller, id, { action: 'explain', changed: false, detail: null })
    // The lock before the row: whoever held it then and has no claim now is done with it.
    const lock = await upkeep.lock(id)
    const looked = await inspect(caller, id)
    const before = looked?.row ?? await rowOf(context, caller, id)
    const claims = claimsOf(before.state)
    const signs = await signsOf(claims)
    const { refusal, row, events } = await executed.execute(id, {
      type: 'Repair',
      at: clock.now(),
      operation: caller.operation,
      action: await actionOf(id, before.state, body),
      reason: body.reason ?? null,
      found: looked?.found ?? null
    }, { claim: 'local' })
    if (row === null) throw notFound('conversation')
    if (refusal !== null && refusal !== 'duplicate') throw await refused(id, row.state, body, refusal)

    if (body.action !== 'fail_call') {
      // A worker that lives gives its lock up when it is told to stop. Taking it away would let two LLM calls run at once.
      const isHeld = claims.some((claim) => claim.call_id === null && (signs.get(claim.worker) ?? 0) > 0)
      if (lock !== null && !isHeld) await upkeep.unlock(id, lock.value)
      const now = clock.now()
      await store.postpone(id, row, now)
      // Ids that no queue can remember.
      const fresh = wanted(row.state, now, settings.leaseMs).map((job) => ({ id: `${job.id}-r${caller.operation}` }))
      await hints.add(id, fresh).catch(() => { /* the sweep takes what has waited too long */ })
    }
    const told = events.find((event) => event.type === 'conversation.recovered')
    return await report(caller, id, { action: body.action, changed: true, detail: typeof told?.detail === 'string' ? told.detail : null })
  })
}

function adviceFor ({ run }: State, action: Repair['action']): string {
  if (run === null) return `Nothing is going on that could be repaired with "${action}". Post a run.`
  return `Turn ${run.phase.turn} has been answered, and the run waits for its tools: use "fail_call" for a call, or "release".`
}
