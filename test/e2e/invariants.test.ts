import type { Event } from '../../src/core/event.js'
import { gather, judge, type Evidence } from '../support/invariants.js'
import { answer, call, say } from '../support/model-reply.js'
import { story } from '../support/world.js'

/** A copy that can be changed. The streams stay as they are: what they show is compared with a log that was changed. */
const copyOf = ({ conversation, events, messages, runs, requests, attempts, streams }: Evidence): Evidence => ({
  ...structuredClone({ conversation, events, messages, runs, attempts }),
  requests: requests.map((request) => ({ ...request, body: structuredClone(request.body) })),
  streams
})

type Change = (evidence: Evidence) => void

const event = ({ events }: Evidence, type: Event['type'], nth = 0): Event => events.filter((one) => one.type === type)[nth] as Event
const without = (evidence: Evidence, gone: Event): void => { evidence.events = evidence.events.filter((one) => one !== gone) }

/** What could go wrong, and what the judge has to say of it. A judge that never found anything would prove nothing. */
const changes: Record<string, [change: Change, says: RegExp]> = {
  'an event is missing': [(e) => without(e, event(e, 'tool.completed')), /has the number/],
  'an event is stored twice': [(e) => e.events.push({ ...event(e, 'run.completed'), seq: e.events.length + 1 }), /ends/],
  'an event has other bytes than a reader saw': [(e) => { event(e, 'turn.started').message_count = 7 }, /other bytes/],
  'an effect comes before its cause': [(e) => { event(e, 'turn.started').caused_by = [9] }, /is caused by 9/],
  'a run ends twice': [(e) => { event(e, 'turn.started', 1).type = 'run.failed' }, /has the ends/],
  'a run says another end than its events': [(e) => { Object.assign(e.runs[0]?.run ?? {}, { status: 'failed' }) }, /is failed, its last event run.completed/],
  'a turn is started twice': [(e) => { event(e, 'turn.started', 1).turn = 1 }, /after turn 1/],
  'a turn begins over an open batch': [(e) => { event(e, 'batch.completed').type = 'tool.progress' }, /while a batch is open/],
  'a try is not counted': [(e) => { event(e, 'turn.completed').attempt = 2 }, /attempt 2 of turn 1/],
  'a call is settled twice': [(e) => { event(e, 'tool.completed', 1).call_id = event(e, 'tool.completed', 0).call_id }, /settled 2 times/],
  'calls begin in another order': [(e) => {
    const [one, two] = [event(e, 'tool.started', 0), event(e, 'tool.started', 1)]
    ;[one.call_id, two.call_id] = [two.call_id ?? '', one.call_id ?? '']
  }, /not started in request order/],
  'a batch counts wrong': [(e) => { event(e, 'batch.completed').counts = { completed: 1, failed: 1, cancelled: 0 } }, /counts/],
  'a result is not in the ledger': [(e) => { e.messages.splice(2, 1) }, /has 0 messages in the ledger/],
  'a result is in the ledger twice': [(e) => { e.messages.push({ ...e.messages[2] as Evidence['messages'][0] }) }, /has 2 messages in the ledger/],
  'the ledger says what no turn said': [(e) => { Object.assign(e.messages.at(-1) ?? {}, { content: 'something else' }) }, /is not what turn 4 said/],
  'two LLM calls overlap': [(e) => { Object.assign(e.requests[1] ?? {}, { inFlight: 2 }) }, /another one was in flight/],
  'an LLM call is made twice': [(e) => { e.requests.push({ ...e.requests[1] as Evidence['requests'][0] }) }, /was made twice/],
  'an LLM call has no event': [(e) => { Object.assign(e.requests[1] ?? {}, { requestId: `${e.runs[0]?.run.id}.7.1` }) }, /has no event/],
  'history is changed': [(e) => { Object.assign(e.requests[0]?.body.messages[0] ?? {}, { content: 'conv:a was it' }) }, /changes history/],
  'the model is asked while tools work': [(e) => { Object.assign(e.attempts[0] ?? {}, { ended_at: Date.now() + 60_000 }) }, /tools of an earlier turn were at work/],
  'a call is executed twice': [(e) => { e.attempts.push({ ...e.attempts[0] as Evidence['attempts'][0] }) }, /was made twice/],
  'an execution was not announced': [(e) => { Object.assign(e.attempts[0]?.headers ?? {}, { 'interlock-attempt': '2' }) }, /was not announced/],
  'an execution has another key': [(e) => { Object.assign(e.attempts[0]?.headers ?? {}, { 'idempotency-key': 'x' }) }, /has the key x/]
}

story('the judge of the four records finds what is wrong, and nothing where nothing is', async (t, { model, tools, service, tool }) => {
  const { client } = await service()
  const calls = [1, 2].map((value) => ({ id: `c${value}`, name: 'echo', arguments: { value } }))
  model.script('conv:a', [answer({ text: 'I look.', calls }), say('done'), call({ id: 'c3', name: 'echo', arguments: { value: 3 } }), say('again')])
  const { run } = await client.finish({ input: 'conv:a', tools: [tool('echo')] })
  await client.finish({ input: 'more', conversation_id: run.conversation_id, tools: [tool('echo')] })
  const evidence = await gather(client, run.conversation_id, { streams: client.seen.streams, requests: model.requests(), attempts: tools.attempts })
  if (evidence === null) throw new Error('the conversation is gone')
  t.same([evidence.requests.length, evidence.attempts.length, evidence.streams.length, evidence.runs.length], [4, 3, 2, 2])
  t.same(judge(copyOf(evidence)), [])
  for (const [title, [change, says]] of Object.entries(changes)) {
    const changed = copyOf(evidence)
    change(changed)
    t.match(judge(changed).join('\n'), says, title)
  }
})
