import { forModel } from '../../src/engine/tools/output.js'
import type { Event } from '../../src/core/event.js'
import { conditionsOf, edits, filled, isTaken, mayBeTaken, same, type Batch, type Called } from './calls.js'
import { isGated } from './judge-order.js'
import type { Evidence, Life } from './world.js'

interface Suspension { id: string, event: Event, batch: Batch, calls: Map<string, 'approval' | 'client_tool'>, resolved: Event | null }

/**
 * What people and clients were asked, what they said and what was made of it (I8), and what became of results that came too late (I10).
 * It knows their requests and the answers to these, and what readers were told; never what is stored.
 */
export function judgePeople (evidence: Evidence, life: Life, batches: Map<string, Batch>, wrong: string[]): void {
  const { requests, executions, deaths } = evidence
  const { conversation, told, times } = life
  const blame = (what: string) => { wrong.push(`${what} (${conversation})`) }
  const calls = new Map([...batches.values()].flatMap((batch) => batch.calls.map((call) => [call.id, call])))
  const suspensions: Suspension[] = []
  let open: Suspension | null = null

  told.forEach((event, i) => {
    const call = event.call_id === undefined ? undefined : calls.get(event.call_id)
    switch (event.type) {
      case 'suspension.created': {
        if (open !== null) blame(`J3 ${String(event.suspension_id)} is raised while ${open.id} is open`)
        open = suspend(event)
        break
      }
      case 'suspension.resolved':
        if (open?.id !== event.suspension_id) blame(`J3 ${String(event.suspension_id)} is resolved, and is not open`)
        else judgeResolved(open as Suspension, event, told[i + 1])
        open = null
        break
      case 'tool.started':
        if (open?.calls.has(event.call_id as string) === true) blame(`I8 ${event.call_id} starts before all of ${open.id} is answered`)
        if (call !== undefined) judgeStart(call, event, times[i] as number)
        break
      case 'tool.completed': case 'tool.failed':
        if (call !== undefined && isGated(call)) judgeAnswered(call, event, times[i] as number)
        break
      case 'turn.started':
        if (open !== null) blame(`I8 turn ${event.turn} starts while a run waits for somebody`)
        break
      case 'tool.orphaned': judgeOrphan(event, i); break
      default:
        if (/^run\.(completed|incomplete|failed|cancelled)$/.test(event.type) && open?.batch.run === event.run_id) {
          blame(`J3 ${event.run_id} ends, and ${open?.id} is open`)
        }
    }
  })
  if (open !== null && !life.removed && evidence.stuck === null) blame(`I13 ${(open as Suspension).id} still waits`)
  for (const call of calls.values()) judgeSaid(call)
  for (const { action, outcome, text, repeated } of requests) {
    if ('wrong' in action && action.wrong && outcome === 'accepted' && !repeated) blame(`I8 ${text} is about what is not there, and was accepted`)
  }
  judgeOrphans()

  function suspend (event: Event): Suspension | null {
    const batch = batches.get(event.batch_id as string)
    if (batch === undefined) return null
    const asked = event.calls as { call_id: string, arguments: unknown, kind: 'approval' | 'client_tool' }[]
    const made: Suspension = { id: event.suspension_id as string, event, batch, calls: new Map(asked.map((one) => [one.call_id, one.kind])), resolved: null }
    const isOpen = (call: Called) => call.settled === null || call.settled.seq > event.seq
    for (const one of asked) {
      const call = batch.calls.find(({ id }) => id === one.call_id)
      if (call === undefined || !isOpen(call)) {
        blame(`J1 ${made.id} asks about ${one.call_id}, which is over or unknown`)
        continue
      }
      if (one.kind !== (isConsented(call, event.seq) ? 'client_tool' : call.facts.approval !== undefined ? 'approval' : 'client_tool')) blame(`J1 ${made.id} asks about ${call.id} as ${one.kind}`)
      if (!same(one.arguments, filled(call)) && !(one.kind === 'client_tool' && edits(call).some((args) => same(args, one.arguments)))) blame(`I8 ${made.id} shows other arguments of ${call.id}`)
    }
    for (const call of batch.calls.filter(isOpen)) {
      const begun = call.starts.some((start) => start.seq < event.seq)
      if (begun && !made.calls.has(call.id) && call.facts.retry === undefined) blame(`J3 ${made.id} is raised while ${call.id} is at work`)
    }
    const sort = batch.policy.suspension ?? 'grouped'
    if (sort !== 'grouped' && asked.length !== 1) blame(`J3 ${made.id} asks for ${asked.length} calls at once`)
    const left = batch.calls.filter((call) => isOpen(call) && !made.calls.has(call.id) && call.facts.approval !== undefined && call.fault === null && call.starts.length === 0 && filled(call) !== null)
    const forgotten = left.find((call) => !isConsented(call, event.seq) && call.after.every((one) => one.settled !== null && one.settled.seq < event.seq))
    if (sort === 'grouped' && forgotten !== undefined) blame(`J3 ${made.id} leaves ${forgotten.id} out`)
    suspensions.push(made)
    return made
  }

  /** A person has agreed before that event: an earlier suspension with the call in it was resolved without settling it. */
  function isConsented ({ id }: Called, seq: number): boolean {
    return suspensions.some((one) => one.calls.get(id) === 'approval' && one.resolved !== null && one.resolved.seq < seq)
  }

  function judgeResolved (suspension: Suspension, event: Event, next: Event | undefined): void {
    suspension.resolved = event
    const members = [...suspension.calls.keys()].map((id) => calls.get(id) as Called)
    const expired = members.filter((call) => call.settled !== null && call.settled.seq < event.seq && isExpiry(call.settled))
    const unanswered = members.filter((call) => (call.settled === null || call.settled.seq > event.seq) && !call.decisions.some(({ request, decision }) => {
      return mayBeTaken(request) && (decision.decision === 'approve' || decision.decision === 'edit')
    }))
    if (event.outcome === 'superseded') {
      if (next?.type === 'run.resumed') blame(`J4 ${suspension.id} is superseded, and its run resumes`)
      return
    }
    if (unanswered.length > 0) blame(`J4 ${suspension.id} is ${String(event.outcome)} before ${unanswered[0]?.id} is`)
    if ((event.outcome === 'expired') !== (expired.length > 0)) blame(`J14 ${suspension.id} is ${String(event.outcome)}, and ${expired.length} of its calls expired`)
    if (next?.type !== 'run.resumed') blame(`J4 ${suspension.id} is ${String(event.outcome)}, and its run does not resume`)
  }

  /** No gated call runs before a person has said so, and none with other arguments than the person has seen or given. */
  function judgeStart (call: Called, event: Event, time: number): void {
    if (call.facts.approval === undefined) return
    const consents = call.decisions.filter(({ request, decision }) => {
      return mayBeTaken(request) && request.sent <= time && (decision.decision === 'approve' || decision.decision === 'edit')
    })
    if (consents.length === 0) blame(`I8 ${call.id} (${call.name}) starts, and nobody has approved it`)
    const allowed = consents.some(({ decision }) => same(event.arguments, decision.decision === 'edit' ? decision.arguments : filled(call)))
    if (!allowed) blame(`I8 ${call.id} starts with other arguments than were approved`)
  }

  /** How a gated call was settled without being run by us, somebody has said: or nobody in time, and then it says that. */
  function judgeAnswered (call: Called, event: Event, time: number): void {
    const before = <T extends { request: { sent: number } }>(all: T[]) => all.filter(({ request }) => request.sent <= time)
    const ran = executions.some((one) => one.call_id === call.id)
    if (ran && (call.facts.client !== undefined || call.starts.length === 0)) blame(`I8 ${call.id} (${call.name}) was run here`)
    const given = (output: unknown) => {
      return before(call.outputs).some((one) => mayBeTaken(one.request) && !one.isError && same(one.output, output) && call.facts.client !== undefined) ||
        before(call.decisions).some(({ request, decision }) => mayBeTaken(request) && decision.decision === 'answer' && same(decision.output, output))
    }
    if (event.type === 'tool.completed') {
      if (!ran && !given(event.output)) blame(`I16 ${call.id} has an output that nobody gave`)
      return
    }
    const { code, message } = event.error as { code: string, message: string }
    if (isExpiry(event)) {
      const asked = suspensions.findLast((one) => one.calls.has(call.id))
      const kind = asked?.calls.get(call.id) === 'approval' ? call.facts.approval : call.facts.client
      const waited = Date.parse(event.time) - Date.parse(asked?.event.time ?? '')
      if (kind?.expires_ms == null || waited < kind.expires_ms) blame(`J14 ${call.id} expires after ${waited} ms`)
      const taken = asked?.calls.get(call.id) === 'approval'
        ? call.decisions.find(({ request, decision }) => isTaken(request) && !request.repeated && decision.decision !== undefined)
        : call.outputs.find(({ request }) => isTaken(request) && !request.repeated)
      if (taken !== undefined) blame(`J14 ${call.id} expires although ${taken.request.text} was accepted`)
      if (kind === call.facts.approval && message !== 'nobody decided on this call in time, so it was not run') blame(`J14 ${call.id} expires with the words "${message}"`)
    } else if (code === 'rejected') {
      const rejected = before(call.decisions).some(({ request, decision }) => {
        return mayBeTaken(request) && decision.decision === 'reject' && message === `a person has rejected this call${decision.reason === undefined ? '' : `: ${decision.reason}`}`
      })
      if (!rejected) blame(`I8 ${call.id} is rejected as "${message}", and nobody has said so`)
    } else if (code === 'tool_error' && call.facts.client !== undefined) {
      if (!before(call.outputs).some((one) => one.isError && mayBeTaken(one.request) && forModel(one.output, 4000).text === message)) blame(`I16 ${call.id} fails as its client never said`)
    }
  }

  /** One decision per gate, one output per call; and what was accepted has come true. */
  function judgeSaid (call: Called): void {
    const decided = call.decisions.filter(({ request }) => isTaken(request))
    const outputs = call.outputs.filter(({ request }) => isTaken(request))
    if (decided.length > 1) blame(`I8 ${call.id} was decided on ${decided.length} times: ${decided.map(({ request }) => request.text).join(', ')}`)
    if (outputs.length > 1) blame(`I6 ${call.id} was given ${outputs.length} outputs`)
    for (const { request } of [...call.decisions, ...call.outputs]) {
      if (request.outcome === 'refused' && !['not_found', 'call_settled', 'suspension_resolved'].includes(String(request.refusal))) blame(`I8 ${request.text} was refused as ${request.refusal}`)
    }
    if (life.removed || evidence.stuck !== null) return
    const { settled } = call
    if (settled === null || settled.type === 'tool.cancelled') return
    for (const { request, decision } of decided) {
      const word = decision.decision
      const code = settled.type === 'tool.failed' ? (settled.error as { code: string }).code : ''
      const holds = word === 'reject' ? code === 'rejected' : word === 'answer' ? same(settled.output, decision.output) : call.starts.length > 0
      if (!holds) blame(`I8 ${request.text} was accepted (${word}), and ${call.id} ended as ${settled.type} ${code}`)
    }
    for (const { request, output, isError } of outputs) {
      const holds = isError ? settled.type === 'tool.failed' : same(settled.output, output)
      if (!holds) blame(`I6 ${request.text} was accepted, and ${call.id} has another result`)
    }
  }

  // --- What came too late ------------------------------------------------------------------------------------------------------------

  function judgeOrphan (event: Event, i: number): void {
    const call = calls.get(event.call_id as string)
    if (call === undefined) return blame(`I10 an orphan of ${event.call_id}, which nobody knows`)
    const ran = executions.some(({ call_id: id, result }) => {
      return id === call.id && result !== null && same('output' in result ? result.output : { error: { code: result.code, message: result.message } }, event.output)
    })
    const handed = call.outputs.some(({ request, output, isError }) => request.sent <= (times[i] as number) && same(whenLate(output, isError), event.output))
    if (!ran && !handed) blame(`I16 the orphan of ${call.id} holds what nobody gave`)
    const settled = call.settled !== null && call.settled.seq < event.seq ? call.settled : null
    const restarted = call.starts.filter((start) => start.seq < event.seq).length > 1
    if (settled === null && !restarted && call.facts.retry === undefined) blame(`I10 ${call.id} waits for its result, which became an orphan`)
    if (settled?.type === 'tool.completed' && ran && same(settled.output, event.output) && event.output !== null) blame(`I10 the result of ${call.id} is its orphan as well`)
    if (event.reason === 'cancelled' && settled?.type !== 'tool.cancelled' && event.run_id !== undefined && settled?.turn === told.findLast((one) => one.type === 'turn.started' && one.seq < event.seq)?.turn) {
      blame(`I10 the orphan of ${call.id} says it was cancelled, which it was not`)
    }
  }

  function judgeOrphans (): void {
    const events = told.filter((event) => event.type === 'tool.orphaned')
    const of = (id: string) => events.filter((event) => event.call_id === id)
    const { strict } = conditionsOf(evidence)
    for (const one of executions.filter(({ call_id: id }) => calls.has(id))) {
      if (one.result === null || !('output' in one.result) || one.result.output === null) continue
      const { output } = one.result
      const kept = of(one.call_id).filter((event) => same(event.output, output))
      if (kept.length > 1) blame(`I10 the late result of ${one.call_id} is an orphan ${kept.length} times`)
      if (one.late === null || kept.length > 0 || life.removed || evidence.stuck !== null || deaths.has(one.machine.name)) continue
      // One that could not be stored in the end is lost with its worker; without faults there is no such.
      if (strict || !one.machine.disturbedSince(one.late)) blame(`I10 the late result of ${one.call_id} is lost`)
    }
    for (const request of requests) {
      const { action, outcome, repeated, refusal } = request
      if (action.do !== 'outputs' || outcome !== 'refused' || repeated || refusal !== 'call_settled' || life.removed) continue
      for (const { call_id: id, output, is_error: isError } of action.body.outputs) {
        const call = calls.get(id)
        if (call?.settled == null || call.settledAt > request.sent) continue
        if (!of(id).some((event) => same(event.output, whenLate(output, isError === true)))) blame(`I10 ${request.text} came too late, and its output is nowhere`)
      }
    }
    if (life.removed || evidence.stuck !== null) return
    for (const call of calls.values()) {
      const own = of(call.id)
      const last = own.at(-1)
      if (last === undefined) continue
      const about = requests.filter(({ action }) => (action.do === 'attach' || action.do === 'discard') && action.call_id === call.id)
      const taken = about.filter(isTaken)
      const listed = evidence.orphans.get(call.run)?.includes(call.id) === true
      const published = times[told.indexOf(last)] as number
      if (taken.length > own.length) blame(`I10 the orphan of ${call.id} was disposed of ${taken.length} times`)
      if (!listed && !about.some(mayBeTaken)) blame(`I10 the orphan of ${call.id} is not listed`)
      if (listed && taken.some(({ sent }) => sent > published)) blame(`I10 the orphan of ${call.id} is listed after it was disposed of`)
      for (const { action, message_id: id } of taken) {
        if (action.do === 'attach' && !told.some((event) => event.type === 'message.accepted' && event.message_id === id)) blame(`I5 the attached result of ${call.id} is no message`)
      }
    }
  }
}

/** Nobody has answered in time: no person has said no. */
function isExpiry (event: Event): boolean {
  if (event.type !== 'tool.failed') return false
  const { code, message } = event.error as { code: string, message: string }
  return (code === 'rejected' && message.startsWith('nobody')) || (code === 'timeout' && message.startsWith('the client'))
}

/** What an orphan holds of what a client has given: an error as the model would have been told of it. */
const whenLate = (output: unknown, isError: boolean): unknown => isError ? { error: { code: 'tool_error', message: forModel(output, 4000).text } } : output
