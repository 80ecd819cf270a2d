import { validationFailed } from '../errors.js'

/** Cursors are opaque to clients: what they hold may change. They carry no secret, so they need no signature. */
export function toCursor (kind: string, position: string | number): string {
  return Buffer.from(`${kind}:${position}`).toString('base64url')
}

/** The position in a cursor of this kind. Anything else a client sends is its mistake. */
export function fromCursor (kind: string, cursor: string): string {
  const text = Buffer.from(cursor, 'base64url').toString()
  if (!text.startsWith(`${kind}:`)) {
    throw validationFailed([{ in: 'query', pointer: '/cursor', detail: 'not a cursor of this list; use the next_cursor of its last page' }])
  }
  return text.slice(kind.length + 1)
}
