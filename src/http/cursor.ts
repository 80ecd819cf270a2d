import { createHash } from 'node:crypto'
import { noCursor } from '../errors.js'

/**
 * Cursors are opaque and belong to one list: `scope` says which (tenant, address, filters). One of another list is refused instead of
 * being taken for a place in this one. They are no secret and no proof: services check what is inside as they check any input.
 */
export const toCursor = (scope: string[], inner: string | null): string | null =>
  inner === null ? null : Buffer.from(`${mark(scope)}${inner}`).toString('base64url')

/** What the services called the place. Throws `validation_failed` for anything that is no cursor of this list. */
export function fromCursor (scope: string[], cursor: string | undefined): string | undefined {
  if (cursor === undefined) return undefined
  const text = Buffer.from(cursor, 'base64url').toString()
  if (!text.startsWith(mark(scope)) || toCursor(scope, text.slice(MARK)) !== cursor) {
    throw noCursor()
  }
  return text.slice(MARK)
}

const MARK = 8

const mark = (scope: string[]): string => createHash('sha256').update(JSON.stringify(scope)).digest('base64url').slice(0, MARK)
