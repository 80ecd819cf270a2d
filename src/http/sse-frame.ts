import type { LiveItem, StoredEvent } from '../services/services.js'
import { eventId } from './event-id.js'

/** Frames of events, made once for all readers: they share the bytes, also while these wait in a slow reader's socket. */
const frames = new WeakMap<StoredEvent, Buffer>()

/** Deltas are not objects that readers share, but one delta goes to all its readers before the next one comes. */
let lastDelta = { json: '', frame: Buffer.alloc(0) }

/** The bytes of one SSE frame, blank line included. A delta and a reset have no id: they are no place in the log. */
export function frameOf (item: LiveItem): Buffer {
  switch (item.kind) {
    case 'event': {
      let frame = frames.get(item.event)
      if (frame === undefined) frames.set(item.event, frame = Buffer.from(`id: ${eventId(item.event)}\n${body(item.event.type, item.event.json)}`))
      return frame
    }
    case 'delta':
      if (item.json !== lastDelta.json) lastDelta = { json: item.json, frame: Buffer.from(body('turn.delta', item.json)) }
      return lastDelta.frame
    case 'reset':
      return Buffer.from(body('stream.reset', item.json))
  }
}

/** A line end would end the field (FAULTS E8, S6). In JSON one can only stand between two tokens, where a space does as well. */
function body (type: string, json: string): string {
  if (!/^[a-z_.]+$/.test(type)) throw new Error('an event type has letters, dots and underscores only')
  return `event: ${type}\ndata: ${/[\r\n]/.test(json) ? json.replace(/[\r\n]/g, ' ') : json}\n\n`
}
