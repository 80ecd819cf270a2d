import type { EventCursor } from '../services/services.js'

/**
 * An event's id as clients see it, the SSE `id` and what `Last-Event-ID` and `?after=` take: `<seq>` in the first epoch, `<seq>.<epoch>` from the
 * next one on. Digits and one dot only (FAULTS E8).
 */
export const eventId = ({ seq, epoch }: EventCursor): string => epoch === 1 ? `${seq}` : `${seq}.${epoch}`

/** What `eventId` writes, and nothing else. Both numbers are exact as JavaScript's. */
export const EVENT_ID = '^(0|[1-9][0-9]{0,14})(\\.([2-9]|[1-9][0-9]{1,14}))?$'

/** Reads what `EVENT_ID` has accepted. */
export function readEventId (text: string): EventCursor {
  const [seq, epoch = '1'] = text.split('.')
  return { seq: Number(seq), epoch: Number(epoch) }
}
