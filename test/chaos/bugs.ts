/** A bug that the judge of chaos must find: in `file`, below src, a text that stands there once, and what it becomes. */
export interface ChaosBug { bug: string, file: string, find: string, put: string }

export const CHAOS_BUGS: ChaosBug[] = [
  { bug: 'the sweep is off', file: 'engine/engine.ts', find: 'due.map((conversation) =>', put: 'due.slice(due.length).map((conversation) =>' },
  { bug: 'no version check', file: 'store/lua/commit.lua', find: 'if born ~= ARGV[1] or string.match(tokens, \'^%S*\') ~= ARGV[3] then', put: 'if born ~= ARGV[1] then' },
  { bug: 'no fence check', file: 'core/transition.ts', find: ' || run.phase.fence !== fence) return null', put: ') return null' },
  { bug: 'a commit is not known by its token', file: 'store/lua/commit.lua', find: 'if tokens ~= \'\' and string.find(tokens, ARGV[4], 1, true) then', put: 'if tokens == \'never\' then' },
  { bug: 'a result of an earlier attempt counts', file: 'core/transition.ts', find: ' || call.attempt !== attempt) return null', put: ') return null' },
  { bug: 'a lost call that writes is run again', file: 'core/lapse.ts', find: '(call.rules.effects === \'read\' || call.rules.idempotent) &&', put: 'call.since > 0 &&' },
  { bug: 'claims of living workers lapse', file: 'engine/engine.ts', find: 'left.get(claim.worker) === 0', put: 'left.get(claim.worker) !== -1' },
  { bug: 'who repeats a request whose process died does it anew', file: 'services/idempotency.ts', find: 'return { status: \'fresh\', operation: found.operation }', put: 'return { status: \'fresh\', operation }' },
  { bug: 'a stream that was cut is an answer', file: 'engine/model/completion-reader.ts', find: 'if (finishReason === null) throw modelError(\'provider_truncated\', [\'no finish_reason\'], { usage })', put: 'if (finishReason === null) finishReason = \'stop\'' }
]
