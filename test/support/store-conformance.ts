import type { Test } from 'tap'
import { ulid } from 'ulid'
import type { Event } from '../../src/core/event.js'
import type { State } from '../../src/core/state.js'
import { transition } from '../../src/core/transition.js'
import { partitionSuffix, type Keys } from '../../src/store/keys.js'
import type { Base as RowBase, Commit, Delta, Feed, Presence, Row, Signal, Store, StoredEvent, WorkerNote } from '../../src/store/store.js'
import { limitsWith, policyWith } from './core-scene.js'

/** A store to be judged. Everything in it is this suite's own. */
export interface Bench {
  store: Store
  feed: Feed
  presence: Presence
  keys: Keys
  /** Keys and members that hold or name this conversation. */
  leftovers: (conversation: string) => Promise<string[]>
  /** From now on the data have another history, as after the restart of a server. */
  restarted: () => Promise<void>
}

type Base = Commit['base']

let made = 0
/** An id nobody else uses; `name` says what for. */
const unique = (name: string) => `${name}_${++made}`

/** The state of an idle conversation, or of one whose turn is claimed under `fence`. */
export function stateOf (conversation: string, { tenant = 'tenant', fence }: { tenant?: string, fence?: number } = {}): State {
  const common = { at: 1000, conversation_id: conversation, tenant, metadata: {}, messages: [] }
  const outcome = fence === undefined
    ? transition(null, { type: 'CreateConversation', ...common, operation: 'op', has_system: false })
    : transition(null, {
        type: 'StartRun', ...common, run_id: 'run', new_conversation: true, due_at: null, models: ['model'], limits: limitsWith(), policy: policyWith(),
        on_active_run: 'queue', input: 'hi', spec: '{}', executor: { worker: 'w', turn: true, calls: 8, spread: true }
      })
  if (outcome.refusal !== null) throw new Error(outcome.refusal)
  const { state } = outcome.change
  if (fence !== undefined && state.run?.phase.type === 'turn') state.run.phase.fence = fence
  return state
}

export function commitOf (conversation: string, base: Base, over: Partial<Commit> = {}): Commit {
  return {
    conversation, base, removal: null, token: ulid(), state: stateOf(conversation), messages: [], rewind: null, events: [], docs: [], created: [], due: null, ...over
  }
}

export function eventOf (conversation: string, seq: number, data: Record<string, unknown> = {}): Event {
  return { seq, type: 'run.created', run_id: 'run_1', conversation_id: conversation, time: '2030-01-01T00:00:00.000Z', caused_by: [], ...data }
}

/** Commits and expects it to be stored, be it under the name of one that was removed. */
export async function stored (store: Store, commit: Commit): Promise<Base> {
  let committed = await store.commit(commit)
  if (committed.status === 'conflict' && committed.removal !== null) committed = await store.commit({ ...commit, removal: committed.removal })
  if (committed.status !== 'committed') throw new Error(`a commit met version ${committed.row?.version}`)
  return { born: committed.born, version: committed.version, token: commit.token }
}

/** A way to wait for what comes bit by bit: `look` whenever something has. One waits at a time. */
export function lookout (): { look: () => void, until: (met: () => boolean) => Promise<void> } {
  let look = () => { /* nobody waits */ }
  return {
    look: () => look(),
    until: (met) => new Promise<void>((resolve) => {
      look = () => { if (met()) resolve() }
      look()
    })
  }
}

/** What a reader of a conversation hears, and a way to wait for it. */
async function listen (t: Test, feed: Feed, conversation: string): Promise<{ heard: Signal[], quiet: (least?: number, kind?: Signal['kind']) => Promise<Signal[]> }> {
  const heard: Signal[] = []
  const { look, until } = lookout()
  t.teardown(await feed.subscribe(conversation, (signal) => {
    heard.push(signal)
    look()
  }))
  return {
    heard,
    /**
     * All that was published before this call, or all of one kind, in order; at least so many: between two nodes of a cluster the mark can overtake.
     * What was published before anybody listened can come as well.
     */
    async quiet (least = 0, kind) {
      const mark = unique('mark')
      const told = () => heard.filter((signal) => kind === undefined ? signal.kind !== 'stopped' : signal.kind === kind)
      const marked = () => told().length >= least && heard.some((signal) => signal.kind === 'stopped' && signal.worker === mark)
      await feed.announce(conversation, 'run', mark)
      await until(marked)
      return told()
    }
  }
}

const eventSignals = (signals: Signal[]): StoredEvent[] => signals.flatMap((signal) => signal.kind === 'events' ? signal.events : [])

/** What every store promises (store.ts). One suite for all of them, so that what is shown on the one in memory holds for the others. */
export function storeConformance (t: Test, { store, feed, presence, keys, leftovers, restarted }: Bench): void {
  const delta = (over: Partial<Delta> = {}): Delta => ({ run_id: 'run', turn: 1, attempt: 1, lane: 'main', offset: 0, byte: 0, text: 'hello', ...over })

  /** A conversation whose turn is claimed under `fence`. */
  async function claimed (fence: number): Promise<{ id: string, base: Base }> {
    const id = unique('conv')
    return { id, base: await stored(store, commitOf(id, null, { state: stateOf(id, { fence }) })) }
  }

  t.test('a conversation that was never made is not there', async (t) => {
    const id = unique('conv')
    t.equal(await store.load(id), null)
    t.same(await store.docs(id, ['a', 'b']), [null, null])
    t.same(await store.docs(id, []), [])
    t.same(await store.ledger(id, 0), [])
    t.same(await store.log(id, 0, 10), [])
    t.equal(await store.partial(id), null)
    t.equal(await store.append(id, 1, delta()), false)
    t.equal(await store.remove(id), false)
    t.same(await store.commit(commitOf(id, { born: ulid(), version: 3, token: ulid() })), { status: 'conflict', row: null, removal: null }, 'and is not made by a commit on a row that is gone')
  })

  t.test('M1: every commit raises the version by one, and the row is what was committed', async (t) => {
    const id = unique('conv')
    let base: Base = null
    for (let version = 1; version <= 4; version++) {
      const state = { ...stateOf(id), seq: version * 10 }
      const next: Base = await stored(store, commitOf(id, base, { state }))
      t.equal(next?.version, version)
      t.equal(next?.born, base?.born ?? next?.born, 'it stays the same row')
      t.same(await store.load(id), { ...next, epoch: 1, state })
      base = next
    }
  })

  t.test('M3 M6: a commit on an old row stores nothing and is told what stands now', async (t) => {
    const id = unique('conv')
    const base = await stored(store, commitOf(id, null))
    const state = { ...stateOf(id), seq: 7 }
    const now: Row = { ...await stored(store, commitOf(id, base, { state })) as RowBase, epoch: 1, state }
    const { quiet } = await listen(t, feed, id)
    const run = `run_${ulid()}${partitionSuffix(keys.partitionOf(id))}`
    const much = {
      messages: [['"late"']], events: [eventOf(id, 1)], docs: [{ name: 'late', value: '1' }], created: [run], due: 1, state: stateOf(id, { fence: 9 })
    }
    const stale = {
      'an old version': base,
      'no row expected': null,
      'another row': { born: ulid(), version: now.version, token: now.token },
      'the same version of a time that is lost': { born: now.born, version: now.version, token: ulid() },
      'a version to come': { born: now.born, version: now.version + 1, token: ulid() }
    }
    for (const [why, old] of Object.entries(stale)) t.same(await store.commit(commitOf(id, old, much)), { status: 'conflict', row: now, removal: null }, why)
    t.same(await store.load(id), now)
    t.same(await store.ledger(id, 0), [])
    t.same(await store.log(id, 0, 10), [])
    t.same(await store.docs(id, ['late']), [null])
    t.equal(await store.findRun('tenant', run), null)
    t.same(await store.takeDue(1, 2, 16), [])
    t.equal(await store.append(id, 9, delta()), false)
    t.same(await quiet(), [], 'and nobody hears of it')
  })

  t.test('M3: of commits on the same row exactly one is stored', async (t) => {
    const id = unique('conv')
    const base = await stored(store, commitOf(id, null))
    const all = await Promise.all(Array.from({ length: 8 }, (_, i) => store.commit(commitOf(id, base, { messages: [[`${i}`]] }))))
    t.equal(all.filter(({ status }) => status === 'committed').length, 1)
    t.same(await store.ledger(id, 0), [`${all.findIndex(({ status }) => status === 'committed')}`])
  })

  t.test('R1 F5: a commit that is sent again is done once and answered as before, also behind others', async (t) => {
    const id = unique('conv')
    const first = commitOf(id, null, { messages: [['"a"']], events: [eventOf(id, 1)] })
    const born = first.token
    t.same(await store.commit(first), { status: 'committed', born, version: 1, epoch: 1 })
    t.same(await store.commit(first), { status: 'committed', born, version: 1, epoch: 1 }, 'the one that made the row')
    const second = commitOf(id, { born, version: 1, token: born }, { messages: [['"b"']], events: [eventOf(id, 2)], docs: [{ name: 'd', value: '1' }] })
    t.same(await store.commit(second), { status: 'committed', born, version: 2, epoch: 1 })
    let base: Base = { born, version: 2, token: second.token }
    for (let others = 0; others < 31; others++) {
      base = await stored(store, commitOf(id, base, { docs: [{ name: 'd', value: null }] }))
      t.same(await store.commit(second), { status: 'committed', born, version: 2, epoch: 1 }, `behind ${others + 1} other processes`)
    }
    t.same(await store.ledger(id, 0), ['"a"', '"b"'])
    t.same((await store.log(id, 0, 10)).map(({ seq }) => seq), [1, 2])
    t.same(await store.docs(id, ['d']), [null], 'its texts do not come back')
    t.equal((await store.load(id))?.version, 33)
  })

  t.test('R1 F5: of each process the newest commit is known again, however many others have made since', async (t) => {
    const id = unique('conv')
    const older = commitOf(id, null, { token: 'mine.1' })
    const newest = commitOf(id, await stored(store, older) as Base, { token: 'mine.2' })
    let base = await stored(store, newest)
    for (let i = 0; i < 100; i++) base = await stored(store, commitOf(id, base, { token: `${'abc'[i % 3]}.${i}` }))
    t.match(await store.commit(newest), { status: 'committed', version: 2 })
    t.match(await store.commit(older), { status: 'conflict', row: { version: 102 } }, 'what it was done with before is not')
    t.match(await store.commit(commitOf(id, base, { token: 'min.2' })), { status: 'committed', version: 103 }, 'a token is known as a whole')
  })

  t.test('I4b: what is made under the name of a deleted conversation has other event ids, as long as readers may come back', async (t) => {
    const id = unique('conv')
    const lives: number[][] = []
    for (let life = 0; life < 3; life++) {
      await stored(store, commitOf(id, await stored(store, commitOf(id, null, { events: [eventOf(id, 1)] })), { events: [eventOf(id, 2)] }))
      const epochs = (await store.log(id, 0, 10)).map(({ epoch }) => epoch)
      t.equal((await store.load(id))?.epoch, epochs[0])
      t.equal(epochs[1], epochs[0], 'within one life it stays')
      lives.push(epochs)
      t.equal(await store.remove(id), true)
      t.equal(await store.load(id), null)
      t.equal(await store.remove(id), false)
    }
    t.equal(new Set(lives.flat()).size, 3)
    t.strictSame(lives.flat(), [...lives.flat()].sort((a, b) => a - b), 'and they rise')
  })

  t.test('texts are put, joined into messages and dropped in one commit', async (t) => {
    const id = unique('conv')
    const base = await stored(store, commitOf(id, null, { docs: [{ name: 'old', value: '"ö\n"' }, { name: 'kept', value: '[]' }] }))
    await stored(store, commitOf(id, base, {
      docs: [{ name: 'new', value: '{"x":"\\u0000"}' }, { name: 'stays', value: '3' }, { name: 'old', value: null }, { name: 'new', value: null }, { name: 'never', value: null }],
      messages: [['{"a":', { doc: 'old' }, ',"b":', { doc: 'new' }, '}'], [{ doc: 'kept' }], [{ doc: 'stays' }, { doc: 'old' }], ['@old'], ['=x'], [{ doc: 'missing' }], []]
    }))
    t.same(await store.ledger(id, 0), ['{"a":"ö\n","b":{"x":"\\u0000"}}', '[]', '3"ö\n"', '@old', '=x', 'null', ''])
    t.same(await store.docs(id, ['stays', 'old', 'kept', 'new', 'never', 'stays']), ['3', null, '[]', null, null, '3'], 'in the order asked for')
  })

  t.test('a text that is put again and dropped in the same commit is gone', async (t) => {
    const id = unique('conv')
    const base = await stored(store, commitOf(id, null, { docs: [{ name: 'a', value: '"first"' }] }))
    await stored(store, commitOf(id, base, { docs: [{ name: 'a', value: '"second"' }, { name: 'a', value: null }], messages: [[{ doc: 'a' }]] }))
    t.same(await store.ledger(id, 0), ['"second"'])
    t.same(await store.docs(id, ['a']), [null])
  })

  t.test('the ledger is read from anywhere, and cut back by a rewind before what the commit appends', async (t) => {
    const id = unique('conv')
    const base = await stored(store, commitOf(id, null, { messages: [['0'], ['1'], ['2'], ['3']] }))
    t.same(await store.ledger(id, 0), ['0', '1', '2', '3'])
    t.same(await store.ledger(id, 2), ['2', '3'])
    t.same(await store.ledger(id, 1, 2), ['1', '2'])
    t.same(await store.ledger(id, 3, 5), ['3'])
    t.same(await store.ledger(id, 4, 5), [])
    const cut = await stored(store, commitOf(id, base, { rewind: 1, messages: [['a'], ['b']] }))
    t.same(await store.ledger(id, 0), ['0', 'a', 'b'])
    await stored(store, commitOf(id, cut, { rewind: 0, messages: [['c']] }))
    t.same(await store.ledger(id, 0), ['c'])
  })

  t.test('C1 C3: the log is read in ranges, in order, and every read has the same bytes', async (t) => {
    const id = unique('conv')
    const events = Array.from({ length: 120 }, (_, i) => eventOf(id, i + 1, { text: 'x'.repeat(i), ...(i % 7 === 0 && { run_id: undefined }) }))
    let base: Base = null
    for (let from = 0; from < events.length; from += 40) base = await stored(store, commitOf(id, base, { events: events.slice(from, from + 40) }))
    const all = await store.log(id, 0, 1000)
    t.same(all, events.map((event) => ({ seq: event.seq, epoch: 1, type: event.type, run_id: event.run_id ?? null, json: JSON.stringify(event) })))
    t.same(await store.log(id, 0, 5), all.slice(0, 5))
    t.same(await store.log(id, 37, 10), all.slice(37, 47))
    t.same(await store.log(id, 118, 10), all.slice(118))
    t.same(await store.log(id, 120, 10), [])
    t.same(await store.log(id, 9_999, 10), [])
  })

  t.test('P12 S6: JSON comes back as it went in, whatever it holds', async (t) => {
    let deep: unknown = 'bottom'
    for (let i = 0; i < 1500; i++) deep = i % 2 === 0 ? [deep] : { d: deep }
    const extremes = {
      empty: [[], {}, '', null, [[]]], numbers: [2 ** 53 - 1, -(2 ** 53 - 1), 1.5e300, 12345678901234567, 0.1, -0], deep,
      text: 'NUL \u0000 tab \t newline \r\n separator \u2028 quote " backslash \\ lone \ud800 pair \u{1f600} ünïcödé', __proto__: 'x', '@': '=', ' ': '\udc00'
    }
    const id = unique('conv')
    const other = unique('conv')
    const state = { ...stateOf(id), metadata: extremes as unknown as Record<string, string> }
    const text = JSON.stringify(extremes)
    const base = await stored(store, commitOf(id, null, {
      state, docs: [{ name: 'doc\twith\ntabs', value: text }], messages: [[text], ['[', { doc: 'doc\twith\ntabs' }, ']']],
      events: [eventOf(id, 1, { extremes, other: `${other}\t2\tx\n3` }), eventOf(id, 2)]
    }))
    t.equal(JSON.stringify((await store.load(id))?.state), JSON.stringify(state))
    t.same(await store.docs(id, ['doc\twith\ntabs']), [text])
    t.same(await store.ledger(id, 0), [text, `[${text}]`])
    t.equal((await store.log(id, 0, 1))[0]?.json, JSON.stringify(eventOf(id, 1, { extremes, other: `${other}\t2\tx\n3` })))
    const conflict = await store.commit(commitOf(id, null))
    t.equal(JSON.stringify(conflict.status === 'conflict' && conflict.row), JSON.stringify({ ...base, epoch: 1, state }), 'also in the answer to a conflict')
    t.equal(await store.load(other), null)
  })

  t.test('C12 M6: readers hear exactly what is stored, in order, and nothing before it is', async (t) => {
    const id = unique('conv')
    const { heard, quiet } = await listen(t, feed, id)
    const other = unique('conv')
    await stored(store, commitOf(other, null, { events: [eventOf(other, 1)] }))
    const first = commitOf(id, null, { events: [eventOf(id, 1, { text: 'a\tb\nc\r\n\u0000\u2028' }), eventOf(id, 2, { run_id: undefined })] })
    const base = await stored(store, first)
    await store.commit(first)
    const silent = await stored(store, commitOf(id, base))
    await stored(store, commitOf(id, silent, { events: Array.from({ length: 30 }, (_, i) => eventOf(id, i + 3)) }))
    const signals = await quiet(2, 'events')
    t.same(eventSignals(signals), await store.log(id, 0, 100))
    t.same(heard.filter(({ kind }) => kind === 'events').length, 2, 'once per commit that has events, and once although it was sent twice')
  })

  t.test('E8: a commit of very many calls is one commit', async (t) => {
    const id = unique('conv')
    const names = Array.from({ length: 2000 }, (_, i) => `call/${i}`)
    const base = await stored(store, commitOf(id, null, { docs: names.map((name) => ({ name, value: `"${name}"` })), events: names.map((_, i) => eventOf(id, i + 1)) }))
    await stored(store, commitOf(id, base, { messages: [['[', ...names.flatMap((doc) => [{ doc }, ',']), '0]']], docs: names.map((name) => ({ name, value: null })) }))
    t.same(JSON.parse((await store.ledger(id, 0))[0] ?? ''), [...names, 0])
    t.same(await store.docs(id, names.slice(0, 3)), [null, null, null])
    t.equal((await store.log(id, 1990, 100)).length, 10)
  })

  t.test('F7 F8: streamed text is taken from who holds the fence, and from nobody else', async (t) => {
    const { id, base } = await claimed(5)
    const { quiet } = await listen(t, feed, id)
    t.equal(await store.append(id, 4, delta({ text: 'old' })), false)
    t.equal(await store.append(id, 6, delta({ text: 'new' })), false)
    t.equal(await store.partial(id), null)
    t.equal(await store.append(id, 5, delta()), true)
    t.same(await store.partial(id), { run_id: 'run', turn: 1, attempt: 1, lane: 'main', text: 'hello' })
    await stored(store, commitOf(id, base, { state: stateOf(id) }))
    t.equal(await store.append(id, 5, delta()), false, 'the turn is over')
    t.same(await quiet(1, 'delta'), [
      { kind: 'delta', run_id: 'run', turn: 1, json: JSON.stringify({ type: 'turn.delta', conversation_id: id, run_id: 'run', turn: 1, attempt: 1, lane: 'main', offset: 0, text: 'hello' }) }
    ])
  })

  t.test('R1: streamed text has its place: sent twice it stands there once, in bytes and in characters', async (t) => {
    const { id } = await claimed(1)
    const pieces = ['Grüße, ', '\u{1f600}\u0000', '日本\n', 'end']
    let offset = 0
    let byte = 0
    let sent = ''
    for (const text of pieces) {
      const piece = delta({ offset, byte, text })
      t.equal(await store.append(id, 1, piece), true)
      t.equal(await store.append(id, 1, piece), true, 'its reply was lost')
      sent += text
      offset += text.length
      byte += Buffer.byteLength(text)
      t.equal((await store.partial(id))?.text, sent)
    }
    await store.append(id, 1, delta({ offset: 7, byte: Buffer.byteLength('Grüße, '), text: '\u{1f600}' }))
    t.equal((await store.partial(id))?.text, sent, 'also when it comes late')
  })

  t.test('C2: text behind a lost piece is dropped: a reader never sees a hole', async (t) => {
    const { id } = await claimed(1)
    const { quiet } = await listen(t, feed, id)
    t.equal(await store.append(id, 1, delta({ offset: 5, byte: 5, text: ' world' })), true, 'the first piece was lost; the fence still holds')
    t.equal(await store.partial(id), null)
    await store.append(id, 1, delta({ text: 'hello' }))
    await store.append(id, 1, delta({ offset: 11, byte: 11, text: '!' }))
    t.equal((await store.partial(id))?.text, 'hello')
    await store.append(id, 1, delta({ offset: 5, byte: 5, text: ' world!' }))
    t.equal((await store.partial(id))?.text, 'hello world!')
    t.same((await quiet(2, 'delta')).flatMap((signal) => signal.kind === 'delta' ? [(JSON.parse(signal.json) as Delta).text] : []), ['hello', ' world!'])
  })

  t.test('I25: the text of an attempt goes when its fence does, and not before', async (t) => {
    const { id, base } = await claimed(1)
    await store.append(id, 1, delta())
    const same = await stored(store, commitOf(id, base, { state: stateOf(id, { fence: 1 }) }))
    t.equal((await store.partial(id))?.text, 'hello', 'a commit that leaves the fence leaves the text')
    const next = await stored(store, commitOf(id, same, { state: stateOf(id, { fence: 2 }) }))
    t.equal(await store.partial(id), null)
    await store.append(id, 2, delta({ attempt: 2, text: 'again' }))
    t.match(await store.partial(id), { attempt: 2, text: 'again' })
    await stored(store, commitOf(id, next))
    t.equal(await store.partial(id), null, 'and when the turn is over')
  })

  t.test('the due set: each due conversation is taken once, and comes back if nothing happens', async (t) => {
    const due = async (time: number) => {
      const id = unique('conv')
      const base = await stored(store, commitOf(id, null, { due: time })) as NonNullable<Base>
      return { id, base }
    }
    const [late, early, later] = [await due(2000), await due(1000), await due(3000)]
    const never = unique('conv')
    await stored(store, commitOf(never, null))
    t.same(await store.takeDue(999, 5000, 64), [])
    t.same((await store.takeDue(2000, 2500, 64)).sort(), [late.id, early.id].sort(), 'at its time, not only behind it')
    t.same(await store.takeDue(2400, 9000, 64), [], 'they are another sweep\'s now')
    t.same((await store.takeDue(2500, 9000, 64)).sort(), [late.id, early.id].sort(), 'which has died')

    await store.postpone(late.id, late.base, 4000)
    t.same((await store.takeDue(4000, 9000, 64)).sort(), [later.id, late.id].sort())
    await store.postpone(never, { born: 'x', token: 'x' }, 1)
    const moved = await stored(store, commitOf(late.id, late.base, { due: 5000 }))
    await store.postpone(late.id, late.base, 100_000)
    t.same(await store.takeDue(5000, 9000, 64), [late.id], 'a commit knows better than who looked before it')
    await stored(store, commitOf(late.id, moved))
    await stored(store, commitOf(early.id, early.base))
    await store.postpone(early.id, { ...early.base, token: ulid() }, 1)
    t.same(await store.takeDue(100_000, 200_000, 64), [later.id], 'what is over is not due, and is not made due again')
    await store.remove(later.id)
    t.same(await store.takeDue(1e15, 1e15, 64), [])
  })

  t.test('the due set: what one sweep leaves the next one takes', async (t) => {
    const ids = new Set<string>()
    for (let i = 0; i < 40; i++) {
      const id = unique('conv')
      ids.add(id)
      await stored(store, commitOf(id, null, { due: 1 }))
    }
    const taken: string[] = []
    for (let some = await store.takeDue(1, 100, keys.partitions); some.length > 0; some = await store.takeDue(1, 100, keys.partitions)) {
      t.ok(some.length <= keys.partitions)
      taken.push(...some)
    }
    t.equal(taken.length, 40)
    t.same(new Set(taken), ids)
    for (const id of ids) await store.remove(id)
  })

  t.test('A3 S2: runs are found and listed, newest first, page by page, over all partitions, by their tenant only', async (t) => {
    const [mine, yours] = [unique('tenant'), unique('tenant')]
    const runs: { run_id: string, conversation_id: string }[] = []
    for (let i = 0; i < 60; i++) {
      const id = unique('conv')
      const tenant = i % 3 === 0 ? yours : mine
      const run = `run_${ulid(1_000_000 + i)}${partitionSuffix(keys.partitionOf(id))}`
      const base = await stored(store, commitOf(id, null, { state: stateOf(id, { tenant }), created: [run] }))
      runs.push({ run_id: run, conversation_id: id })
      if (i % 10 === 1) {
        const second = `run_${ulid(2_000_000 + i)}${partitionSuffix(keys.partitionOf(id))}`
        await stored(store, commitOf(id, base, { state: stateOf(id, { tenant }), created: [second] }))
        runs.push({ run_id: second, conversation_id: id })
      }
      t.equal(await store.findRun(tenant, run), id)
      t.equal(await store.findRun(tenant === mine ? yours : mine, run), null)
    }
    t.ok(new Set(runs.map((run) => keys.partitionOf(run.conversation_id))).size > 4, 'they are spread')
    const newest = (await store.listRuns(mine, null, 1000)).concat(await store.listRuns(yours, null, 1000)).sort((a, b) => a.run_id < b.run_id ? 1 : -1)
    t.same(newest, [...runs].sort((a, b) => a.run_id < b.run_id ? 1 : -1))
    for (const tenant of [mine, yours]) {
      const all = await store.listRuns(tenant, null, 1000)
      for (const size of [1, 7, all.length]) {
        const pages: typeof all = []
        for (let page = await store.listRuns(tenant, null, size); page.length > 0; page = await store.listRuns(tenant, page.at(-1)?.run_id as string, size)) {
          t.ok(page.length <= size)
          pages.push(...page)
        }
        t.same(pages, all, `in pages of ${size}`)
      }
    }
    for (const wrong of ['', 'run_', 'run_nothing', `run_${ulid()}00`, `run_${ulid()}ZZ`, `run_${ulid()}il`, `${runs[0]?.run_id}x`]) t.equal(await store.findRun(mine, wrong), null, wrong)
    t.same(await store.listRuns(unique('tenant'), null, 10), [])
  })

  t.test('I21: what is removed is gone with everything of it, and no late worker brings it back', async (t) => {
    const id = unique('conv')
    const tenant = unique('tenant')
    const run = `run_${ulid()}${partitionSuffix(keys.partitionOf(id))}`
    const kept = `run_${ulid()}${partitionSuffix(keys.partitionOf(id))}`
    const neighbour = Array.from({ length: 10_000 }, (_, i) => `${id}x${i}`).find((other) => keys.partitionOf(other) === keys.partitionOf(id)) as string
    await stored(store, commitOf(neighbour, null, { state: stateOf(neighbour, { tenant }), created: [kept], due: 7 }))
    const commit = commitOf(id, null, {
      state: stateOf(id, { tenant, fence: 1 }), created: [run], docs: [{ name: `run/${run}`, value: '{}' }], messages: [['1']], events: [eventOf(id, 1)], due: 5
    })
    const base = await stored(store, commit)
    await store.append(id, 1, delta())
    t.ok((await leftovers(id)).length > 0)
    const { quiet } = await listen(t, feed, id)
    t.equal(await store.remove(id), true)
    t.same(await quiet(1, 'removed'), [{ kind: 'removed' }])

    const late = await store.commit(commitOf(id, null, { messages: [['late']], created: [run], due: 6 }))
    const removal = late.status === 'conflict' ? late.removal : null
    t.type(removal, 'number', 'what was to make it before it was removed does not bring it back')
    t.same(await store.commit(commitOf(id, base, { messages: [['late']], events: [eventOf(id, 2)], created: [run], due: 6 })), { status: 'conflict', row: null, removal })
    t.equal(await store.append(id, 1, delta()), false)
    await store.postpone(id, base as NonNullable<Base>, 6)
    t.equal(await store.load(id), null)
    t.equal(await store.findRun(tenant, run), null)
    t.same(await store.listRuns(tenant, null, 10), [{ run_id: kept, conversation_id: neighbour }])
    t.same(await leftovers(id), [])
    t.same(await store.takeDue(7, 8, 64), [neighbour])
    t.equal(await store.remove(id), false)

    t.match(await store.commit(commit), { status: 'committed' }, 'what was done before is known')
    t.equal(await store.load(id), null, 'and not done again')
    const again = await stored(store, commitOf(id, null, { removal }))
    t.match(await store.commit(commit), { status: 'committed' }, 'also beside another one under its name')
    t.equal((await store.load(id))?.version, 1)
    t.not(again?.born, base?.born, 'made again it is another one')
    t.equal((await store.commit(commitOf(id, base))).status, 'conflict')
    t.same(await store.log(id, 0, 10), [])
    t.ok((await leftovers(neighbour)).length > 0, 'another one stays')
    await store.remove(id)
    t.match(await store.commit(commitOf(id, null, { removal })), { status: 'conflict', row: null }, 'each removal is one of its own')
    t.match(await store.commit(commit), { status: 'committed' }, 'what was done two lives ago is known')
    t.equal(await store.load(id), null)
    await store.remove(neighbour)
  })

  t.test('I21: a run that is created while its conversation is removed is not left in the index', async (t) => {
    for (let round = 0; round < 20; round++) {
      const id = unique('conv')
      const tenant = unique('tenant')
      const run = `run_${ulid()}${partitionSuffix(keys.partitionOf(id))}`
      const base = await stored(store, commitOf(id, null, { state: stateOf(id, { tenant }) }))
      const create = commitOf(id, base, { state: stateOf(id, { tenant }), created: [run], docs: [{ name: `run/${run}`, value: '{}' }], due: 1 })
      const removing = store.remove(id)
      for (let i = 0; i < round % 4; i++) await Promise.resolve()
      const [removed, committed] = await Promise.all([removing, store.commit(create)])
      t.equal(removed, true)
      t.ok(committed.status === 'committed' || committed.row === null)
      t.same(await leftovers(id), [], `${committed.status} while it was removed`)
      t.same(await store.listRuns(tenant, null, 10), [])
    }
  })

  t.test('many conversations at once do not meet', async (t) => {
    const ids = Array.from({ length: 50 }, () => unique('conv'))
    await Promise.all(ids.map(async (id) => {
      let base: Base = null
      for (let i = 1; i <= 10; i++) base = await stored(store, commitOf(id, base, { messages: [[`"${id} ${i}"`]], events: [eventOf(id, i)] }))
    }))
    for (const id of ids) {
      t.same(await store.ledger(id, 0), Array.from({ length: 10 }, (_, i) => `"${id} ${i + 1}"`))
      t.equal((await store.log(id, 0, 100)).length, 10)
    }
  })

  t.test('B7: a worker is there as long as its sign of life holds', async (t) => {
    const [a, b, c] = [unique('w'), unique('w'), unique('w')]
    t.same(await presence.left([]), [])
    await presence.beat(a, 50_000)
    await presence.beat(b, 1000)
    const [left = 0, short = 0, none] = await presence.left([a, b, c])
    t.ok(left > 40_000 && left <= 50_000)
    t.ok(short > 0 && short <= 1000)
    t.equal(none, 0)
    await presence.beat(b, 60_000)
    t.ok((await presence.left([b]))[0] as number > 50_000, 'a beat renews it')
    await presence.leave(a)
    await presence.leave(c)
    t.equal((await presence.left([a]))[0], 0)
    await presence.beat(a, 1)
    while ((await presence.left([a]))[0] as number > 0) await new Promise(setImmediate)
    t.same(await presence.left([a, c]), [0, 0], 'it runs out by itself')
    await presence.leave(b)
  })

  t.test('notes reach the worker they are for, and only while it listens', async (t) => {
    const [a, b] = [unique('w'), unique('w')]
    const notes: Record<string, WorkerNote[]> = { a: [], b: [] }
    const { look, until } = lookout()
    /** Two nodes of a cluster may tell in another order than they were asked: each waits for what it needs. */
    const come = (a: number, b: number) => until(() => (notes.a?.length ?? 0) >= a && (notes.b?.length ?? 0) >= b)
    const hear = (into: WorkerNote[] | undefined) => (note: WorkerNote) => {
      into?.push(note)
      look()
    }
    const off = await feed.listen(a, hear(notes.a))
    t.teardown(await feed.listen(b, hear(notes.b)))
    const abort: WorkerNote = { type: 'abort', conversation: 'c\n\t"', fence: 3, call_ids: ['x', 'y'], reason: 'g' }
    await feed.tell(a, abort)
    await feed.tell(unique('w'), abort)
    await feed.tell(b, { type: 'check', conversation: 'c' })
    await come(1, 1)
    t.same(notes, { a: [abort], b: [{ type: 'check', conversation: 'c' }] })
    off()
    await feed.tell(a, abort)
    await feed.tell(b, abort)
    await come(1, 2)
    t.equal(notes.a?.length, 1)
  })

  t.test('C3: readers of one conversation all hear the same, and one that leaves does not take the others with it', async (t) => {
    const id = unique('conv')
    const seen: Signal[][] = [[], [], []]
    const { look, until } = lookout()
    const offs = await Promise.all(seen.map((into) => feed.subscribe(id, (signal) => {
      into.push(signal)
      look()
    })))
    const seqs = () => seen.map((signals) => eventSignals(signals).map(({ seq }) => seq))
    const come = (readers: number[], seq: number) => until(() => readers.every((i) => seqs()[i]?.includes(seq)))
    const base = await stored(store, commitOf(id, null, { events: [eventOf(id, 1)] }))
    await come([0, 1, 2], 1)
    offs[1]?.()
    offs[1]?.()
    await stored(store, commitOf(id, base, { events: [eventOf(id, 2)] }))
    await come([0, 2], 2)
    offs[0]?.()
    offs[2]?.()
    t.same(seqs(), [[1, 2], [1], [1, 2]])
  })

  // Last: what stands above is of the first epoch.
  t.test('I4b F61: a new history begins a new epoch, for reads before the first write and for everything that is new', async (t) => {
    const [id, idle] = [unique('conv'), unique('conv')]
    const run = `run_${ulid()}${partitionSuffix(keys.partitionOf(id))}`
    const { quiet } = await listen(t, feed, id)
    const base = await stored(store, commitOf(id, null, { events: [eventOf(id, 1), eventOf(id, 2)], created: [run] }))
    await stored(store, commitOf(idle, null, { events: [eventOf(idle, 1)] }))
    t.equal((await store.load(id))?.epoch, 1)
    await restarted()
    const second = (await store.load(id))?.epoch as number
    t.ok(second > 1)
    t.equal((await store.load(id))?.epoch, second, 'and stays')
    const committed = await store.commit(commitOf(id, base, { token: 'c'.repeat(26), events: [eventOf(id, 3)] }))
    t.same(committed, { status: 'committed', born: base?.born, version: 2, epoch: second }, 'what was read is what is written in')
    t.same((await store.log(id, 0, 10)).map(({ seq, epoch }) => [seq, epoch]), [[1, 1], [2, 1], [3, second]])
    t.same((await store.log(id, 2, 10)).map(({ seq }) => seq), [3])
    t.same(eventSignals(await quiet(2, 'events')), await store.log(id, 0, 10), 'readers are told in which')
    t.match(await store.commit(commitOf(id, base)), { status: 'conflict', row: { token: 'c'.repeat(26), epoch: second } })
    await restarted()
    const third = await store.commit(commitOf(id, { born: base?.born as string, version: 2, token: 'c'.repeat(26) }, { events: [eventOf(id, 4)] }))
    t.ok(third.status === 'committed' && third.epoch > second, 'also where the write comes before any read')
    t.same((await store.log(id, 3, 10)).map(({ seq }) => seq), [4])
    for (const each of [id, idle]) await store.remove(each)
    await stored(store, commitOf(idle, null, { events: [eventOf(idle, 1)] }))
    t.ok((await store.load(idle))?.epoch as number > 1, 'what is made anew as well')
  })
}
