import { Redis } from 'ioredis'
import type { Message } from '../../src/core/message.js'
import type { State } from '../../src/core/state.js'
import { createKeys } from '../../src/store/keys.js'

export interface Damage {
  what: string
  harm: (state: State, ledger: Message[]) => void
  /** What the report of the repair must name. */
  detail: RegExp
}

/** Ways to make row and ledger disagree, in the middle of a batch with two messages waiting. */
export const damages: Damage[] = [
  {
    what: 'a message waits twice',
    harm: (state) => { state.waiting.push({ ...state.waiting[0]! }) },
    detail: /a message waits twice/
  },
  {
    what: 'a message waits for a run that is over',
    harm: (state) => { state.waiting[0]!.run_id = 'run_0000000000000000000000000000' },
    detail: /waits for run run_0+, which is over/
  },
  {
    what: 'a message waits although the ledger has it',
    harm: (state, ledger) => { state.waiting.push({ ...state.waiting[0]!, id: ledger[0]!.id }) },
    detail: /still waits, but is in the ledger/
  },
  {
    what: 'the row counts too many messages',
    harm: (state) => { state.messages += 2 },
    detail: /the ledger has 3 messages, the row says 5/
  },
  {
    what: 'the row counts too few messages',
    harm: (state) => { state.messages -= 1 },
    detail: /the ledger has 3 messages, the row says 2/
  },
  {
    what: 'the ledger has a result that answers no call',
    harm: (_, ledger) => { ledger.push({ ...ledger[0]!, id: 'msg_orphan', role: 'tool', content: 'x', tool_call_id: 'call_gone' }) },
    detail: /tool message msg_orphan answers no call/
  },
  {
    what: 'the active run waits as well',
    harm: (state) => { state.queue.push({ ...state.run!, inputs: [] }) },
    detail: /a run is both active and queued/
  }
]

/** Changes a conversation behind everybody's back, as a commit does: nobody goes on with the row as he remembers it. */
export async function spoil ({ url, prefix }: { url: string, prefix: string }, conversation: string, harm: Damage['harm']): Promise<void> {
  const keys = createKeys(prefix, 16)
  const redis = new Redis(url)
  const [json, version, tokens] = await redis.hmget(keys.row(conversation), 'state', 'version', 'tokens') as [string, string, string]
  const stored = await redis.lrange(keys.messages(conversation), 0, -1)
  const state = JSON.parse(json) as State
  const ledger = stored.map((one) => JSON.parse(one) as Message)
  harm(state, ledger)
  await redis.hset(keys.row(conversation), 'state', JSON.stringify(state), 'version', Number(version) + 1, 'tokens', `spoiled ${tokens}`)
  for (const message of ledger.slice(stored.length)) await redis.rpush(keys.messages(conversation), JSON.stringify(message))
  await redis.quit()
}
