import type { Bug } from './hunts.js'

/** `file` below src, a text that stands there once, and what it becomes. */
const TEXTS: { bug: string, file: string, find: string, put: string }[] = [
  // What is stored
  { bug: 'no fence check', file: 'core/transition', find: ' || run.phase.fence !== fence) return null', put: ') return null' },
  { bug: 'no fence check for streamed text', file: 'store/memory-store', find: ' || found.fence !== fence) return false', put: ') return false' },
  { bug: 'no version check', file: 'store/memory-store', find: 'found?.born !== base?.born || found?.tokens[0] !== base?.token', put: '(found === undefined) !== (base === null)' },
  { bug: 'a commit is not known by its token', file: 'store/memory-store', find: 'known?.tokens.includes(token)', put: 'found?.tokens.includes(`not ${token}`)' },
  // Taking over
  { bug: 'the sweep is off', file: 'engine/engine', find: 'due.map((conversation) =>', put: 'due.slice(due.length).map((conversation) =>' },
  { bug: 'claims of living workers lapse', file: 'engine/engine', find: 'left.get(worker) === 0', put: 'left.get(worker) !== -1' },
  { bug: 'claims of dead workers stand', file: 'engine/engine', find: 'left.get(worker) === 0', put: 'left.get(worker) === -1' },
  { bug: 'a worker gives no sign of life', file: 'engine/engine', find: 'function beatAfter (ms: number): void {\n', put: 'function beatAfter (ms: number): void {\n    if (open) return\n' },
  { bug: 'a claim that was never begun is not noticed', file: 'engine/engine', find: 'claim.worker === settings.worker && !work.isKnown(conversation, claim)', put: 'claim.worker === settings.worker && claim.attempt < 0' },
  { bug: 'claimed work is never due', file: 'core/schedule', find: 'times.push(worker === null ? (readyAt > now ? readyAt : unclaimed(readyAt)) : now + leaseMs)', put: 'if (worker === null) times.push(readyAt > now ? readyAt : unclaimed(readyAt))' },
  { bug: 'a lost call that writes is run again', file: 'core/lapse', find: '(call.rules.effects === \'read\' || call.rules.idempotent)', put: '(call.rules.effects !== undefined || call.rules.idempotent)' },
  // Hints
  { bug: 'nothing is queued behind a commit', file: 'engine/execute', find: 'if (jobs.length === 0) return', put: 'if (jobs.length >= 0) return' },
  // Leases
  { bug: 'the lease is released early', file: 'engine/turn', find: 'const stop = new AbortController()\n', put: 'const stop = new AbortController()\n  lease.release()\n' },
  { bug: 'a lost lease stops nobody', file: 'engine/turn', find: 'AbortSignal.any([signal, lease.signal, stop.signal])', put: 'AbortSignal.any([signal, stop.signal])' },
  { bug: 'a lease is kept when the work for it fails', file: 'engine/turn', find: 'release: lease.release }', put: 'release: () => { if (task.attempt < 2) lease.release() } }' },
  { bug: 'a request waits for what is more patient', file: 'engine/execute', find: 'const cancel = clock.after(patienceMs, ', put: 'const cancel = clock.after(patienceMs * 9, ' },
  { bug: 'a cancelled turn is not told so', file: 'engine/execute', find: 'else feed.tell(', put: 'else if (now < 0) feed.tell(' },
  // Dispatch and barrier
  { bug: 'claimed work begins twice', file: 'engine/execute', find: 'performer?.perform(conversation, standing, effect, now)\n', put: '{ performer?.perform(conversation, standing, effect, now); performer?.perform(conversation, standing, effect, now) }\n' },
  { bug: 'what was claimed and undone in one commit begins', file: 'engine/engine', find: 'if (claims.some((claim) => claim.fence === effect.fence)) work.startTurn', put: 'if (claims.length >= 0) work.startTurn' },
  { bug: 'calls that were claimed and undone in one commit begin', file: 'engine/engine', find: 'const calls = effect.calls.filter(({ call_id: id, attempt }) => claims.some((claim) => claim.call_id === id && claim.attempt === attempt))', put: 'const { calls } = effect' },
  { bug: 'the barrier is vacuous', file: 'core/settle', find: 'phase === null || phase.calls.some(isOpen)) return false', put: 'phase === null) return false' },
  { bug: 'a result of an earlier attempt counts', file: 'core/transition', find: ' || call.attempt !== attempt) return null', put: ') return null' },
  // Deciding
  { bug: 'an old row may refuse', file: 'engine/execute', find: 'let fresh = false', put: 'let fresh = true' },
  { bug: 'a worker gives its result up', file: 'engine/work', find: 'const PATIENT_MS = 24 * 3_600_000', put: 'const PATIENT_MS = 1' },
  { bug: 'reads for claimed work are not tried again', file: 'engine/patience', find: 'docs: (conversation, names) => patiently(deps, () => reads.docs(conversation, names))', put: 'docs: (conversation, names) => reads.docs(conversation, names)' },
  { bug: 'a retry does not wait as long as it was told to', file: 'engine/turn', find: 'Math.max(error.retryAfterMs ?? 0, backoff(tries, deps.random()))', put: 'backoff(1, deps.random()) / 10' },
  { bug: 'streamed text has the wrong place', file: 'engine/deltas', find: 'offset: from.offset + text.length,', put: 'offset: from.offset + text.length + 1,' },
  // Which calls may start
  { bug: 'a call starts before what it refers to', file: 'core/schedule', find: 'if (free && Object.keys(call.after).length === 0 && !isHeldUp', put: 'if (free && !isHeldUp' },
  { bug: 'resources are ignored', file: 'core/schedule', find: 'return order.filter((call, j) =>', put: 'return order.slice(order.length).filter((call, j) =>' },
  { bug: 'readers wait for each other', file: 'core/resources', find: 'if (a.effects === \'read\' && b.effects === \'read\') return false', put: 'if (a.effects === \'read\' && b.effects === \'read\' && a.holds.length === 0) return false' },
  { bug: 'max_concurrency is off by one', file: 'core/schedule', find: '(most === undefined || busy.of(call) < most)) {', put: '(most === undefined || busy.of(call) <= most)) {' },
  { bug: 'max_calls is off by one', file: 'core/batch', find: '.length >= limit\n', put: '.length > limit\n' },
  { bug: 'rate_limit is ignored', file: 'engine/place', find: 'const ms = await limiter.reserve(name, max, perMs, held).catch(() => null)', put: 'const ms = await limiter.reserve(name, max, perMs, held).then(() => 0, () => null)' },
  { bug: 'a call is tried once less', file: 'core/transition', find: 'call.attempt < retry.attempts\n', put: 'call.attempt < retry.attempts - 1\n' },
  { bug: 'the next try of a call comes at once', file: 'core/transition', find: 'retry.backoff_ms * 2 ** (call.attempt - 1)', put: '0 * retry.backoff_ms' },
  { bug: 'a reference becomes text', file: 'core/references', find: 'if (whole?.[0] === text) {', put: 'if (whole?.[0] === text && text === \'\') {' },
  { bug: 'on_final_answer cancel stops nothing', file: 'core/settle', find: 'run.policy.on_final_answer !== \'cancel\') return false', put: 'run.policy.on_final_answer !== null) return false' },
  { bug: 'the last final answer counts', file: 'core/batch', find: 'index(call.id) < index(run.final.call_id)', put: 'index(call.id) > index(run.final.call_id)' },
  // People and clients
  { bug: 'somebody is asked while others work', file: 'core/schedule', find: 'phase.suspension !== null || phase.calls.some((call) => isBusy(call) ||', put: 'phase.suspension !== null || phase.calls.some((call) => call.status === \'suspended\' ||' },
  { bug: 'a group leaves one out', file: 'core/schedule', find: 'return suspension === \'grouped\' ? found :', put: 'return suspension === \'grouped\' ? found.slice(0, 2) :' },
  { bug: 'sequential asks for all', file: 'core/schedule', find: 'return suspension === \'grouped\' ? found : found.slice(0, 1)', put: 'return suspension === null ? [] : found' },
  { bug: 'barrier stops nothing', file: 'core/schedule', find: 'if (suspension === \'barrier\' && awaited(call) !== null) break', put: 'if (suspension === null && awaited(call) !== null) break' },
  { bug: 'nobody has the time that was said', file: 'core/suspension', find: 'call.expires_at !== null && call.expires_at <= now', put: 'call.expires_at !== null && call.expires_at <= now + 300' },
  { bug: 'the first decision resumes the run', file: 'core/suspension', find: 'phase.calls.some((call) => call.status === \'suspended\' && !isConsented(call))) return false', put: 'phase.calls.every((call) => call.status === \'suspended\' && !isConsented(call))) return false' },
  { bug: 'what a client gives is taken for an approval', file: 'core/suspension', find: '.filter((call) => awaited(call) === \'client_tool\' && !isTooLate', put: '.filter((call) => !isTooLate' },
  { bug: 'a rejection loses its reason', file: 'core/suspension', find: 'const because = decision.reason === null ? \'\'', put: 'const because = decision.reason !== undefined ? \'\'' },
  { bug: 'a run\'s time runs while it waits for somebody', file: 'core/suspension', find: '  run.paused_ms += elapsed(draft, createdAt)\n', put: '  run.paused_ms += 0 * createdAt\n' },
  { bug: 'a client\'s late output is lost', file: 'services/actions', find: 'await Promise.all(late.map(', put: 'await Promise.all(late.slice(late.length).map(' },
  { bug: 'a tool\'s late result is lost', file: 'engine/work', find: 'await orphan(output, timedOut) }', put: 'if (timedOut === null) await orphan(output, timedOut) }' },
  { bug: 'an attached orphan stays', file: 'core/orphans', find: '  forget(draft, [orphan.call_id])\n', put: '' },
  { bug: 'a discarded orphan stays', file: 'core/orphans', find: 'return \'not_found\'\n  forget(draft, [id])\n', put: 'return \'not_found\'\n' }
]

/** Bugs in the product that the judge of the simulation must find. */
export const SIMULATION_BUGS: Bug[] = TEXTS.map(({ bug, file, find, put }) => ({ bug, file: `src/${file}.ts`, edits: [[find, put]], by: 'simulation' }))
