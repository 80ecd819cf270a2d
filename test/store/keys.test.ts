import fc from 'fast-check'
import t from 'tap'
import { createKeys, partitionOfRun, partitionSuffix, type Keys } from '../../src/store/keys.js'

/** Ids as the routes let them in (src/schemas/ids.ts): no `:`, `{` or `}`. */
const id = fc.stringMatching(/^[A-Za-z0-9_-]{1,40}$/)
const partitions = fc.integer({ min: 1, max: 1024 })

/** Everything a key can be made of, as [kind, ids]. */
const kinds: Record<string, (keys: Keys, a: string, b: string) => string> = {
  row: (keys, a) => keys.row(a),
  messages: (keys, a) => keys.messages(a),
  events: (keys, a) => keys.events(a),
  docs: (keys, a) => keys.docs(a),
  partial: (keys, a) => keys.partial(a),
  live: (keys, a) => keys.live(a),
  lock: (keys, a) => keys.lock(a),
  worker: (keys, a) => keys.worker(a),
  control: (keys, a) => keys.control(a),
  limit: (keys, a) => keys.limit(a),
  runs: (keys, a, b) => keys.runs(keys.partitionOf(a), b),
  due: (keys, a) => keys.due(keys.partitionOf(a)),
  idempotency: (keys, a, b) => keys.idempotency(a, b),
  meta: (keys) => keys.meta
}
/** What tells two keys of a kind apart. */
const identity: Record<string, (keys: Keys, a: string, b: string) => string> = {
  runs: (keys, a, b) => `${keys.partitionOf(a)} ${b}`,
  due: (keys, a) => `${keys.partitionOf(a)}`,
  idempotency: (_, a, b) => `${a} ${b}`,
  meta: () => ''
}
const kind = fc.constantFrom(...Object.keys(kinds))

t.test('S12: two different things never share a key, whatever their ids are', async () => {
  fc.assert(fc.property(partitions, kind, kind, id, id, id, id, (count, one, other, a, b, c, d) => {
    const keys = createKeys('il', count)
    const of = (which: string, x: string, y: string) => `${which} ${(identity[which] ?? ((_: Keys, first: string) => first))(keys, x, y)}`
    const same = of(one, a, b) === of(other, c, d)
    return (kinds[one]?.(keys, a, b) === kinds[other]?.(keys, c, d)) === same
  }), { numRuns: 2000 })
})

t.test('S12: ids that look like parts of keys make no key of another', async (t) => {
  const names = ['a', 'a-b', 'b', 'messages', 'events', 'conv', 'p1', 'il', 'worker', 'meta', 'due', 'runs', 'lock', 'control', '0']
  const keys = createKeys('il', 1)
  const all = new Set<string>()
  let made = 0
  for (const [which, make] of Object.entries(kinds)) {
    const seen = new Set<string>()
    for (const a of names) {
      for (const b of names) {
        const what = (identity[which] ?? ((_: Keys, first: string) => first))(keys, a, b)
        if (seen.has(what)) continue
        seen.add(what)
        made++
        all.add(make(keys, a, b))
      }
    }
  }
  t.equal(all.size, made)
})

t.test('two prefixes share no key', async () => {
  const prefix = fc.stringMatching(/^[a-z0-9-]{1,32}$/)
  fc.assert(fc.property(prefix, prefix, kind, kind, id, id, (p, q, one, other, a, b) => {
    fc.pre(p !== q)
    return kinds[one]?.(createKeys(p, 16), a, b) !== kinds[other]?.(createKeys(q, 16), b, a) && createKeys(p, 16).queuePrefix !== createKeys(q, 16).queuePrefix
  }))
})

t.test('all that one commit touches has one hash tag, so that a cluster keeps it in one slot', async () => {
  const tag = (key: string | undefined) => /\{([^}]+)\}/.exec(key ?? '')?.[1]
  fc.assert(fc.property(partitions, id, id, (count, conversation, tenant) => {
    const keys = createKeys('il', count)
    const tags = ['row', 'messages', 'events', 'docs', 'partial', 'lock', 'runs', 'due'].map((which) => tag(kinds[which]?.(keys, conversation, tenant)))
    return new Set(tags).size === 1 && tags[0] !== undefined
  }))
})

t.test('the signs of life of all workers are in one slot: whoever cannot see those of others could not show its own', async () => {
  fc.assert(fc.property(id, id, (a, b) => {
    const slots = [a, b].map((worker) => /\{([^}]+)\}/.exec(createKeys('il', 16).worker(worker))?.[1])
    return slots[0] !== undefined && slots[0] === slots[1]
  }))
})

t.test('a run id says its partition, and what is no run id says none that exists', async (t) => {
  for (let partition = 0; partition < 1024; partition++) t.equal(partitionOfRun(`run_X${partitionSuffix(partition)}`), partition)
  fc.assert(fc.property(fc.string(), (text) => {
    const partition = partitionOfRun(text)
    return Number.isInteger(partition) && partition < 1024
  }))
})

t.test('conversations are spread evenly', async (t) => {
  const keys = createKeys('il', 16)
  const counts = new Array<number>(16).fill(0)
  for (let i = 0; i < 16_000; i++) counts[keys.partitionOf(`conv_01J${i}`)]! += 1
  t.ok(Math.min(...counts) > 800 && Math.max(...counts) < 1200, 'within a fifth of a thousand each', { counts })
})
