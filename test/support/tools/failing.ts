import { Type } from 'typebox'
import { defineTool } from '../../../src/engine/tools/module-tools.js'

const circle: Record<string, unknown> = {}
circle.self = circle

/** What can go wrong in a tool, by name. Each of them must fail (or answer) its own call and nothing else. */
const ways: Record<string, () => unknown> = {
  throws: () => { throw new Error('the stock exchange is closed on Sundays') },
  rejects: () => Promise.reject(new Error('the stock exchange is closed on Sundays')),
  rejects_text: () => Promise.reject('just a text'),
  rejects_nothing: () => Promise.reject(undefined),
  rejects_object: () => Promise.reject({ message: 'an object with a message', secret: 'x' }),
  rejects_trap: () => Promise.reject(new Proxy({}, { has: () => true, get: () => { throw new Error('trap') } })),
  long_message: () => { throw new Error('x'.repeat(1_000_000)) },
  type_error: () => (undefined as unknown as { x: () => void }).x(),
  evil_thenable: () => ({ get then () { throw new Error('no then here') } }),
  undefined: () => undefined,
  nan: () => NaN,
  date: () => ({ at: new Date(0), never: undefined }),
  bigint: () => ({ price: 10n }),
  cycle: () => circle,
  function: () => () => {},
  symbol: () => Symbol('s'),
  buffer: () => Buffer.from('bytes'),
  map: () => ({ nested: new Map([['a', 1]]) }),
  promise: () => [Promise.resolve(1)],
  class_instance: () => new (class Point { x = 1; y = 2 })(),
  proto: () => JSON.parse('{"a": 1, "__proto__": {"polluted": true}}') as unknown,
  getter: () => ({ get value () { throw new Error('the getter threw') } }),
  deep: () => Array.from({ length: 5000 }).reduce<unknown>((inner) => [inner], 1),
  huge: () => 'x'.repeat(30_000_000),
  holes: () => new Array(1_000_000_000)
}

export default defineTool({
  name: 'fail',
  description: 'Fails in the way it is asked to.',
  parameters: Type.Object({ way: Type.Enum(Object.keys(ways)) }, { additionalProperties: false }),
  run: ({ way }) => ways[way]?.()
})
