import t from 'tap'
import { UnavailableError } from '../../src/engine/execute.js'
import type { Context } from '../../src/services/context.js'
import { createEventService } from '../../src/services/events.js'
import type { LiveItem } from '../../src/services/services.js'
import { createKeys } from '../../src/store/keys.js'
import { createBench, type EngineBench } from '../support/engine-bench.js'
import { settled } from '../support/fake-clock.js'

const CALLER = { tenant: 'me', operation: 'op' }

/** Readers of the bench's conversation. `before` happens whenever the log is about to be read. */
function readersOf (bench: EngineBench, before: () => Promise<void> = async () => {}): (after: number, signal: AbortSignal) => AsyncIterable<LiveItem> {
  const store = {
    ...bench.store,
    async log (...args: Parameters<typeof bench.store.log>) {
      const events = await bench.store.log(...args)
      await before()
      return events
    }
  }
  const context = { store, reads: store, feed: bench.feed, keys: createKeys('il', 4), clock: bench.clock } as unknown as Context
  return (after, signal) => createEventService(context).live(CALLER, { conversation_id: 'c' }, { after: { seq: after, epoch: 1 }, signal })
}

/** The numbers of the events a reader gets until nothing more comes, without any time passing. */
async function numbers (items: AsyncIterable<LiveItem>, stop: AbortController): Promise<number[]> {
  const seen: number[] = []
  const reading = (async () => {
    for await (const item of items) if (item.kind === 'event') seen.push(item.event.seq)
  })()
  await settled()
  stop.abort()
  await reading
  return seen
}

t.test('C2: a reader gets exactly what lies beyond its cursor, whatever the log holds already', async (t) => {
  const bench = createBench()
  await bench.start(await bench.worker('w1'))
  await settled()
  await bench.asked[0]?.answer({ text: 'done' })
  const last = (await bench.events()).length
  t.ok(last > 3)
  for (let after = 0; after <= last; after++) {
    const stop = new AbortController()
    t.strictSame(await numbers(readersOf(bench)(after, stop.signal), stop), Array.from({ length: last - after }, (_, i) => after + 1 + i), `after ${after}`)
  }
})

t.test('N12: a stream that is promised while Redis stops answering begins when it answers again, with all that was asked for', async (t) => {
  const bench = createBench()
  await bench.start(await bench.worker('w1'))
  await settled()
  const asked = ['load', 'docs', 'subscribe', 'log']
  let away = true
  const unless = (name: string) => async <T>(result: Promise<T>): Promise<T> => {
    if (away && asked.includes(name)) throw new UnavailableError(`${name} was not answered`)
    return await result
  }
  const failing = <T extends object>(target: T): T => new Proxy(target, {
    get: (of, name) => (...args: unknown[]) => unless(String(name))((of[name as keyof T] as (...args: unknown[]) => Promise<unknown>)(...args))
  })
  const context = { store: failing(bench.store), reads: failing(bench.store), feed: failing(bench.feed), keys: createKeys('il', 4), clock: bench.clock } as unknown as Context
  const stop = new AbortController()
  const seen: number[] = []
  const reading = (async () => {
    for await (const item of createEventService(context).live(CALLER, { conversation_id: 'c' }, { after: { seq: 0, epoch: 1 }, signal: stop.signal })) {
      if (item.kind === 'event') seen.push(item.event.seq)
    }
  })()
  for (; asked.length > 0; asked.pop()) {
    await bench.clock.pass(2000)
    t.strictSame(seen, [])
  }
  away = false
  await bench.clock.pass(2000)
  t.strictSame(seen, (await bench.events()).map(({ seq }) => seq))
  stop.abort()
  await reading
})

t.test('a stream of what is deleted while it begins has nothing, and is no failure', async (t) => {
  const bench = createBench()
  await bench.start(await bench.worker('w1'))
  await settled()
  const store = { ...bench.store, load: async () => null, findRun: async () => null }
  const context = { store, reads: store, feed: bench.feed, keys: createKeys('il', 4), clock: bench.clock } as unknown as Context
  for (const where of [{ conversation_id: 'c' }, { run_id: 'run_1' }]) {
    const items: LiveItem[] = []
    for await (const item of createEventService(context).live(CALLER, where, { after: { seq: 0, epoch: 1 }, signal: new AbortController().signal })) items.push(item)
    t.strictSame(items, [])
  }
})

t.test('P14: what is stored between a reader\'s look into the log and its wait is told at once, and once', async (t) => {
  const bench = createBench()
  const worker = await bench.worker('w1')
  await bench.start(worker)
  await settled()
  let posted = 0
  const post = async () => {
    if (posted++ > 0) return
    await worker.executed.execute('c', {
      type: 'PostMessage', at: bench.clock.now(), run_id: 'run_1', message_id: 'm', content: 'x', mode: 'queue', queued: 'deliver', completed_calls: 'keep', due_at: null
    })
  }
  const stop = new AbortController()
  const seen = await numbers(readersOf(bench, post)(0, stop.signal), stop)
  t.equal((await bench.events()).at(-1)?.type, 'message.accepted')
  t.strictSame(seen, (await bench.events()).map(({ seq }) => seq))
})
