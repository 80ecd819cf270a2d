import { conditionsOf, edits, filled, same, type Batch, type Called } from './calls.js'
import type { Evidence, Life } from './world.js'

/**
 * Which calls were started when: references, resources, limits and turns. A call that starts too early is wrong, and so is one that waits
 * without a reason: from what readers were told alone, with the rules written anew.
 */
export function judgeOrder (evidence: Evidence, life: Life, batches: Map<string, Batch>, wrong: string[]): void {
  const { conversation, told, times } = life
  const blame = (what: string) => { wrong.push(`${what} (${conversation})`) }
  const used = new Map<string, number>()
  let open: Batch | null = null
  /** A final answer that is to end what runs beside it. */
  let final: Called | null = null
  /** Calls whose time has come: started and not settled, as readers know it. */
  let running = new Set<Called>()

  told.forEach((event, i) => {
    const call = event.call_id === undefined || event.batch_id === undefined ? undefined : batches.get(event.batch_id)?.calls.find(({ id }) => id === event.call_id)
    switch (event.type) {
      case 'batch.started':
        open = batches.get(event.batch_id as string) ?? null
        running = new Set()
        break
      case 'batch.completed': case 'turn.started': case 'run.completed': case 'run.incomplete': case 'run.failed': case 'run.cancelled':
        if (event.run_id === open?.run) open = null
        break
      case 'tool.started':
        if (call !== undefined && open !== null) judgeStart(open, call, event.seq)
        if (call?.facts.client === undefined && call !== undefined) running.add(call)
        break
      case 'tool.completed': case 'tool.failed': case 'tool.cancelled':
        if (call !== undefined) {
          running.delete(call)
          if (event.type === 'tool.completed' && call.name === 'final_answer' && open?.policy.on_final_answer === 'cancel') final = call
          if (event.type === 'tool.failed') judgeFault(call, event.error as { code: string })
        }
        break
      case 'message.accepted':
        // Whoever interrupts while calls are still at work does not want it to end with that answer.
        if (event.mode === 'interrupt') final = null
        break
    }
    // What one commit brings is published at once: behind it, whatever may start has.
    if (times[i + 1] !== times[i] && open !== null) judgeWaiting(open, event.seq)
    if (times[i + 1] !== times[i] && open !== null && final?.batch === open.id && !mayBePreceded(open, final, event.seq)) {
      blame(`E8 the batch of ${final.id} goes on although that was the final answer`)
      final = null
    }
  })
  judgeTries()

  /** Settled by an event up to `seq`. */
  function isSettled (call: Called, seq: number): boolean {
    return call.settled !== null && call.settled.seq <= seq
  }

  /** Whether a final answer that was asked for before it may yet be the one that counts. */
  function mayBePreceded ({ calls }: Batch, final: Called, seq: number): boolean {
    return calls.slice(0, calls.indexOf(final)).some((one) => one.name === 'final_answer' && !isSettled(one, seq))
  }

  function judgeStart (batch: Batch, call: Called, seq: number): void {
    const { policy, limits } = batch
    const source = call.after.find((one) => one.settled?.type !== 'tool.completed' || one.settled.seq > seq)
    if (call.fault !== null) blame(`E13 ${call.id} starts although it cannot (${call.fault})`)
    if (source !== undefined) blame(`E10 ${call.id} starts before ${source.id}, to which it refers`)
    const { args } = call.starts.find((start) => start.seq === seq) as { args: unknown }
    if (!same(args, filled(call)) && !edits(call).some((one) => same(one, args))) blame(`E12 ${call.id} starts with ${JSON.stringify(args)}`)
    const before = batch.inOrder.slice(0, call.rank)
    const rival = before.find((one) => !isSettled(one, seq) && conflicts(one, call, seq, false)) ?? [...running].find((one) => conflicts(one, call, seq, false))
    if (rival !== undefined) blame(`D12 ${call.id} (${call.name}) starts beside ${rival.id} (${rival.name})`)
    // What is started once more, later, may have been given up before this.
    const sure = [...running].filter((one) => one !== call && one.facts.retry === undefined && !one.starts.some((start) => start.seq > seq))
    const room = policy.parallel === false ? 1 : limits.max_tool_concurrency ?? 16
    if (call.facts.client === undefined && sure.length >= room) blame(`E4 ${call.id} starts as one of ${sure.length + 1}, and ${room} may run`)
    const alike = sure.filter(({ name }) => name === call.name).length
    if (alike >= (call.facts.max_concurrency ?? Infinity)) blame(`E14 ${call.id} starts beside ${alike} of ${call.name}`)
    if (policy.parallel === false && call.facts.client === undefined) {
      // Which of those that wait, for people or for their next try, others may pass is not judged here.
      const earlier = before.find((one, i) => {
        const waits = waitsForPeople(one) || isDoomed(one) || one.facts.retry !== undefined || one.facts.max_calls !== undefined
        return !isSettled(one, seq) && !waits && !before.slice(0, i).some((other) => !isSettled(other, seq) && conflicts(other, one, seq, true))
      })
      if (earlier !== undefined) blame(`E4 ${call.id} starts before ${earlier.id} although calls go one by one`)
    }
    if (call.facts.max_calls !== undefined && call.starts[0]?.seq === seq) {
      const key = `${call.run} ${call.name}`
      used.set(key, (used.get(key) ?? 0) + 1)
      if ((used.get(key) ?? 0) > call.facts.max_calls) blame(`E14 ${call.id} is call number ${used.get(key)} of ${call.name}`)
    }
    if (policy.suspension === 'barrier' && call.facts.client === undefined) {
      const gate = before.find((one) => !isSettled(one, seq) && isGated(one) && one.starts.length === 0 && one.fault === null)
      if (gate !== undefined && gate !== call) blame(`J3 ${call.id} starts before ${gate.id} is decided, which stands before it`)
    }
  }

  function judgeFault (call: Called, { code }: { code: string }): void {
    const failedSource = call.after.some((one) => one.settled?.type !== 'tool.completed')
    if (code === 'max_calls' && (used.get(`${call.run} ${call.name}`) ?? 0) < (call.facts.max_calls ?? Infinity)) blame(`E14 ${call.id} is refused below its limit`)
    if (code === 'dependency_failed' && !failedSource) blame(`E11 ${call.id} is not run, but what it refers to has completed`)
    if (code === 'invalid_arguments' && call.fault !== 'invalid_arguments' && filled(call) !== null) blame(`E13 ${call.id} is not run, but its arguments are right`)
    if (code === 'unknown_tool' && call.fault !== 'unknown_tool') blame(`E3 ${call.id} is not run, but there is its tool`)
  }

  /** Nothing that may start is left lying. Where a call may be waiting for its next try, only time can tell. */
  function judgeWaiting (batch: Batch, seq: number): void {
    const { policy, limits, inOrder } = batch
    if (inOrder.some((call) => call.facts.retry !== undefined && call.starts.length > 0 && !isSettled(call, seq))) return
    // Whoever asks for a place under a rate limit has room meanwhile, and is not told of.
    const asking = inOrder.filter((call) => call.facts.rate_limit !== undefined && !isSettled(call, seq) && !isBegun(call, seq))
    let room = (policy.parallel === false ? 1 : limits.max_tool_concurrency ?? 16) - running.size - asking.length
    for (const [i, call] of inOrder.entries()) {
      if (room <= 0) return
      const gated = !isSettled(call, seq) && isGated(call) && (call.facts.client !== undefined || !isBegun(call, seq))
      if (gated && policy.suspension === 'barrier') return
      if (gated || isSettled(call, seq) || isBegun(call, seq)) {
        if (policy.parallel === false && gated) return
        continue
      }
      // Its place under a rate limit only the store knows.
      if (call.fault !== null || call.facts.rate_limit !== undefined || call.after.some((one) => !isSettled(one, seq))) continue
      if (inOrder.some((one, j) => !isSettled(one, seq) && (j < i || isBegun(one, seq)) && conflicts(one, call, seq, true))) continue
      const alike = [...running, ...asking].filter(({ name }) => name === call.name).length
      if (alike >= (call.facts.max_concurrency ?? Infinity)) continue
      blame(`E1 ${call.id} (${call.name}) waits without a reason behind event ${seq}`)
      room--
    }
  }

  function isBegun (call: Called, seq: number): boolean {
    return call.starts.some((start) => start.seq <= seq)
  }

  /** How often and how soon a call is tried again, and how many of a tool begin in a time. */
  function judgeTries (): void {
    const { calm, strict } = conditionsOf(evidence)
    const { skews } = evidence.workload
    const skew = Math.max(...skews) - Math.min(...skews)
    for (const { calls } of batches.values()) {
      for (const call of calls.filter(({ facts }) => facts.retry !== undefined)) {
        const { attempts, backoff_ms: backoff } = call.facts.retry as { attempts: number, backoff_ms: number }
        if (calm && call.starts.length > attempts) blame(`E6 ${call.id} is tried ${call.starts.length} times`)
        if (strict) {
          // One process may fail, and another, whose clock is ahead, try again.
          call.starts.slice(1).forEach((start, i) => {
            const waited = start.time - (call.starts[i] as { time: number }).time
            if (waited < backoff * 2 ** i - 1 - skew) blame(`E6 ${call.id} is tried again after ${Math.round(waited)} ms`)
          })
        }
        const given = call.settled?.type === 'tool.failed' && (call.settled.error as { code: string }).code === 'tool_error'
        if (given && call.starts.length < attempts) blame(`E6 ${call.id} is given up after ${call.starts.length} tries`)
      }
    }
    if (!strict) return
    const starts = new Map<string, number[]>()
    for (const { name, start } of evidence.executions) starts.set(name, [...starts.get(name) ?? [], start])
    if (life !== evidence.lives[0]) return
    for (const [name, all] of starts) {
      const limit = batchFacts(name)
      if (limit === undefined) continue
      all.sort((a, b) => a - b)
      all.slice(limit.max).forEach((start, i) => {
        // Each start comes a little after it was allowed: what the answer took on its way.
        if (start - (all[i] as number) < limit.per_ms - 10) blame(`E14 ${limit.max + 1} of ${name} begin within ${Math.round(start - (all[i] as number))} ms`)
      })
    }
  }

  function batchFacts (name: string): { max: number, per_ms: number } | undefined {
    for (const { calls } of batches.values()) {
      const found = calls.find((call) => call.name === name)
      if (found !== undefined) return found.facts.rate_limit
    }
    return undefined
  }
}

/** It needs a person or the client. */
export const isGated = ({ facts, fault }: Called): boolean => fault === null && (facts.approval !== undefined || facts.client !== undefined)

/** It waits for people, or for what waits for them. */
const waitsForPeople = (call: Called): boolean => call.fault === null && (isGated(call) || call.after.some(waitsForPeople))

/** It cannot be run, or what it refers to gave nothing, or not what it needs. */
const isDoomed = (call: Called): boolean => {
  const given = call.after.every(({ settled }) => settled?.type === 'tool.completed')
  return call.fault !== null || (given && filled(call) === null) || call.after.some((one) => isDoomed(one) || (one.settled !== null && one.settled.type !== 'tool.completed'))
}

/**
 * Two calls that must not be under way at once, as things stand behind an event. What an approved call holds, an edit may have changed, and nobody
 * outside knows it before it starts: `perhaps` says what then counts.
 */
function conflicts (a: Called, b: Called, seq: number, perhaps: boolean): boolean {
  if (a === b) return false
  if (a.facts.exclusive === true || b.facts.exclusive === true) return true
  if (a.facts.resources === undefined || b.facts.resources === undefined) return false
  if (a.facts.effects === 'read' && b.facts.effects === 'read') return false
  const pairs = boxes(a, seq).flatMap((one) => boxes(b, seq).map((other) => one === undefined || other === undefined || String(one) === String(other)))
  return perhaps ? pairs.includes(true) : !pairs.includes(false)
}

/** The boxes a call may hold. */
function boxes (call: Called, seq: number): unknown[] {
  const start = call.starts.findLast((one) => one.seq <= seq)
  return start !== undefined ? [start.args.box] : [call.written.box, ...edits(call).map(({ box }) => box)]
}
