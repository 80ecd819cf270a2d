import fc from 'fast-check'
import t from 'tap'
import { fromCursor, toCursor } from '../../src/http/cursor.js'

t.test('a cursor comes back as what it was made of, in its own list only', async (t) => {
  fc.assert(fc.property(fc.array(fc.string(), { maxLength: 3 }), fc.array(fc.string(), { maxLength: 3 }), fc.string({ unit: 'grapheme' }), (scope, other, inner) => {
    const cursor = toCursor(scope, inner) as string
    if (!/^[\w-]+$/.test(cursor) || fromCursor(scope, cursor) !== inner) return false
    if (JSON.stringify(scope) === JSON.stringify(other)) return true
    try {
      fromCursor(other, cursor)
      return false
    } catch {
      return true
    }
  }))
  t.equal(toCursor(['a'], null), null)
  t.equal(fromCursor(['a'], undefined), undefined)
})

t.test('what is no cursor is refused', async (t) => {
  for (const text of ['', 'x', '!!!', '%00', `${toCursor(['a'], 'b') as string}=`, ` ${toCursor(['a'], 'b') as string}`]) t.throws(() => fromCursor(['a'], text), { code: 'validation_failed' })
})
