import type { Bug } from './hunts.js'

/** The guards that the guarantees rest on, each taken away once. What only real parts can break, a test with real parts must notice. */
export const GUARDS: Bug[] = [
  // The right to write
  { bug: 'no fence check', file: 'src/core/transition.ts', edits: [[' || run.phase.fence !== fence) return null', ') return null']], by: 'simulation' },
  { bug: 'no version check', file: 'src/store/memory-store.ts', edits: [['found?.born !== base?.born || found?.tokens[0] !== base?.token', '(found === undefined) !== (base === null)']], by: 'simulation' },
  { bug: 'no version check in Redis', file: 'src/store/lua/commit.lua', edits: [[' or newest ~= ARGV[3] then', ' then']], by: 'test/store/redis-store.test.ts' },
  { bug: 'a commit without the idempotency token', file: 'src/engine/execute.ts', edits: [['        token,\n', '        token: token = ids.next(),\n'], ['const commit: Commit = {', 'const commit = (): Commit => ({'], ['due: dueAt(state, now, settings)\n      }', 'due: dueAt(state, now, settings)\n      })'], ['return store.commit(commit)', 'return store.commit(commit())'], ['const token = `${settings.worker}', 'let token = `${settings.worker}']], by: 'simulation' },
  { bug: 'a commit\'s token is not known in Redis', file: 'src/store/lua/commit.lua', edits: [['if token == ARGV[4] then', 'if false then']], by: 'test/store/redis-store.test.ts' },
  { bug: 'a conversation that was deleted comes back', file: 'src/store/lua/commit.lua', edits: [['newest = row[6] or \'\'', 'newest = ARGV[3]']], by: 'test/store/redis-store.test.ts' },
  { bug: 'the tokens of a deleted conversation are forgotten', file: 'src/store/lua/remove.lua', edits: [[', \'tokens\', row[3])', ')']], by: 'test/store/redis-store.test.ts' },
  { bug: 'what is large is given no more time than what is small', file: 'src/store/redis-store.ts', edits: [['(chars > LARGE_CHARS ? large : scripts)', '(chars > Infinity ? large : scripts)']], by: 'test/store/redis-store.test.ts' },
  { bug: 'what nobody waits for any more is sent', file: 'src/engine/patience.ts', edits: [['      if (!isWanted()) throw error\n', '      if (!isWanted() && tries === 1) throw error\n']], by: 'test/engine/execute.test.ts' },
  { bug: 'deltas unfenced', file: 'src/store/memory-store.ts', edits: [[' || found.fence !== fence) return false', ') return false']], by: 'simulation' },
  { bug: 'deltas unfenced in Redis', file: 'src/store/lua/append.lua', edits: [['redis.call(\'HGET\', KEYS[1], \'fence\') ~= ARGV[1]', 'false']], by: 'test/store/redis-store.test.ts' },
  { bug: 'no abort on a lost lease', file: 'src/engine/turn.ts', edits: [['AbortSignal.any([signal, lease.signal, stop.signal])', 'AbortSignal.any([signal, stop.signal])']], by: 'simulation' },
  { bug: 'who was away counts as dead', file: 'src/engine/engine.ts', edits: [['=== 0 && signsCount\n', '=== 0\n']], by: 'test/engine/signs.test.ts' },
  { bug: 'a lease is lost to a Redis that does not answer', file: 'src/engine/lease.ts', edits: [['() => null)', '() => false)']], by: 'test/engine/lease.test.ts' },
  { bug: 'a worker that stops forgets what a request is claiming', file: 'src/engine/engine.ts', edits: [['    execute: claiming,\n', '']], by: 'test/engine/stop.test.ts' },
  { bug: 'others are judged by signs that are gone with its own', file: 'src/engine/engine.ts', edits: [['if (open && left.get(settings.worker) === 0) {', 'if (left.get(settings.worker) === undefined) {']], by: 'test/engine/signs.test.ts' },
  { bug: 'a request forgets the key of the one that took its place', file: 'src/services/idempotency.ts', edits: [['await removeIf(keyOf(tenant, key), reservation)', 'await redis.del(keyOf(tenant, key))']], by: 'test/services/idempotency.test.ts' },
  { bug: 'a sweep judges before its own worker has shown a sign of life', file: 'src/engine/engine.ts', edits: [['      if (open && clock.now() - beaten >= DOUBT * settings.leaseMs) await beat()\n', '']], by: 'test/engine/signs.test.ts' },
  { bug: 'a call begins although its claim may be gone', file: 'src/engine/work.ts', edits: [['        await claimStands(conversation, desk, work, work.abort.signal)\n', '']], by: 'test/engine/claims.test.ts' },
  { bug: 'the LLM is asked although the claim may be gone', file: 'src/engine/turn.ts', edits: [['    await deps.claimStands(stopped)\n', '']], by: 'test/engine/claims.test.ts' },
  { bug: 'a call that was given up runs beside its next attempt', file: 'src/engine/work.ts', edits: [['former?.over === false && ', 'former?.over === undefined && former !== undefined && ']], by: 'test/engine/claims.test.ts' },
  { bug: 'what was claimed long ago begins unseen', file: 'src/engine/work.ts', edits: [['desk.looked_at) >= settings.leaseMs / 3', 'desk.looked_at) === Infinity']], by: 'test/engine/claims.test.ts' },
  { bug: 'a commit whose answer was lost is acted upon unseen', file: 'src/engine/execute.ts', edits: [['(sent > 1 || actor.doubted)', '(actor.doubted)']], by: 'test/engine/claims.test.ts' },
  { bug: 'what others say while a commit is under way is forgotten', file: 'src/engine/execute.ts', edits: [['(sent > 1 || actor.doubted)', '(sent > 1)']], by: 'test/engine/claims.test.ts' },
  { bug: 'calls take the place of turns', file: 'src/engine/engine.ts', edits: [['if (effects.length > 0 || row === null) return\n', 'if (effects.length > 0 || row === null) return await work.settled(conversation)\n']], by: 'test/e2e/load.test.ts' },
  { bug: 'a place that becomes free while a job comes is missed', file: 'src/engine/engine.ts', edits: [['          line.push(resolve)\n          handOut()\n', '          line.push(resolve)\n']], by: 'test/engine/line.test.ts' },
  // Hints
  { bug: 'the sweep is off', file: 'src/engine/engine.ts', edits: [['due.map((conversation) =>', 'due.slice(due.length).map((conversation) =>']], by: 'simulation' },
  { bug: 'enqueue before commit', file: 'src/engine/execute.ts', edits: [
    ['      let sent = 0\n', '      hints.add(conversation, wanted(state, now, settings.leaseMs)).catch(() => {})\n      let sent = 0\n'], ['if (jobs.length === 0) return', 'if (jobs.length >= 0) return']
  ], by: 'simulation' },
  // What is asked, and what comes back
  { bug: 'default SDK retries', file: 'src/engine/model/openai-model.ts', edits: [['maxRetries: 0, timeout', 'timeout']], by: 'test/engine/model/openai-model.test.ts' },
  { bug: 'no finish_reason check', file: 'src/engine/model/completion-reader.ts', edits: [
    ['if (finishReason === null) throw modelError', 'if (finishReason === \'\') throw modelError'], ['finish_reason: finishReason,', 'finish_reason: finishReason ?? \'stop\',']
  ], by: 'test/engine/model/completion-reader.test.ts' },
  { bug: 'the barrier is vacuous', file: 'src/core/settle.ts', edits: [['phase === null || phase.calls.some(isOpen)) return false', 'phase === null) return false']], by: 'simulation' },
  { bug: 'results are matched by position', file: 'src/core/transition.ts', edits: [['const call = run.phase.calls.find((one) => one.id === callId)\n  if (call === undefined || call.status', 'const call = run.phase.calls.find((one) => one.status === \'running\')\n  if (call === undefined || call.status']], by: 'simulation' },
  { bug: 'a late result is linked', file: 'src/core/orphans.ts', edits: [
    ['import { docNames, drop, emit,', 'import { append, docNames, drop, emit,'],
    ['  put(draft, docNames.orphan(id), text)\n', '  put(draft, docNames.orphan(id), text)\n  append(draft, [JSON.stringify({ id: `msg_${id}`, role: \'user\', content: command.text, turn, run_id: command.run_id, created_at: iso(draft.now) })])\n']
  ], by: 'simulation' },
  // People
  { bug: 'approvals are raised before they are durable', file: 'src/store/memory-store.ts', edits: [
    ['      if (found?.born !== base?.born ||', '      const raised = planCommit(commit).events.filter(({ type }) => type === \'suspension.created\')\n      if (raised.length > 0) publish(conversation, { kind: \'events\', events: raised })\n      if (found?.born !== base?.born ||']
  ], by: 'simulation' },
  { bug: 'no consent is needed', file: 'src/core/schedule.ts', edits: [['call.rules.approval !== undefined && !call.approved', 'call.rules.approval !== undefined && call.rank > 2']], by: 'simulation' },
  { bug: 'a decision is not bound to its suspension', file: 'src/core/suspension.ts', edits: [['if (found?.suspension.id !== command.suspension_id) return', 'if (found === null) return']], by: 'simulation' },
  { bug: 'a call can be decided on twice', file: 'src/core/suspension.ts', edits: [[' && call.status === \'suspended\' && awaited(call) === \'approval\'', ' && call.status === \'suspended\' && call.rules.approval !== undefined']], by: 'simulation' },
  { bug: 'expiry is reported as a person\'s no', file: 'src/core/suspension.ts', edits: [['message: \'nobody decided on this call in time, so it was not run\'', 'message: \'a person has rejected this call\'']], by: 'simulation' },
  { bug: 'what is run is not what was approved', file: 'src/core/suspension.ts', edits: [['      setArguments(draft, call, decision.arguments)\n', '']], by: 'simulation' },
  { bug: 'parallel: false is ignored', file: 'src/core/schedule.ts', edits: [['run.policy.parallel ? run.limits.max_tool_concurrency : 1', 'run.limits.max_tool_concurrency'], ['    if (!parallel) break\n', '']], by: 'simulation' },
  { bug: 'an edited call disturbs who is at work', file: 'src/core/schedule.ts', edits: [['(j < i || isBusy(call))', 'j < i']], by: 'test/core/startable.test.ts' },
  { bug: 'what was deleted is run without its arguments', file: 'src/engine/work.ts', edits: [['if (given === undefined) return\n', '']], by: 'test/engine/calls.test.ts' },
  // Readers and clients
  { bug: '`$` instead of a cursor in the event reader', file: 'src/services/events.ts', edits: [['let cursor = begin(scope, after, row.epoch)\n', 'let cursor = { seq: Math.max(after.seq, row.state.seq), epoch: row.epoch }\n']], by: 'test/services/events.test.ts' },
  { bug: 'SSE subscribes after it has read', file: 'src/services/events.ts', edits: [
    ['const unsubscribe = await insist(() => feed.subscribe(conversation, hear))', 'let unsubscribe = () => {}'],
    ['      if (fenceOf(row.state) > 0) yield* patiently(text)', '      unsubscribe = await insist(() => feed.subscribe(conversation, hear))\n      if (fenceOf(row.state) > 0) yield* patiently(text)']
  ], by: 'test/services/events.test.ts' },
  { bug: 'the idempotency key is ignored', file: 'plugins/idempotency.ts', edits: [['if (key === undefined) return', 'if (key !== \'\') return']], by: 'test/routes/idempotency.test.ts' }
]
