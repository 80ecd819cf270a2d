import type { Event } from '../../src/core/event.js'

/**
 * First come, first served, among messages that wait for the same (I5): the ways, each a run and a mode, on which messages of a conversation were delivered
 * in another order than they were accepted. What was posted for later comes in at its time.
 */
export function outOfOrder (events: Event[]): string[] {
  const ways = new Map<string, unknown[]>()
  for (const event of events) {
    if (event.type !== 'message.accepted' || event.edited === true || event.due_at !== undefined) continue
    const way = `${event.run_id} ${String(event.mode)}`
    ways.set(way, [...ways.get(way) ?? [], event.message_id])
  }
  const delivered = events.flatMap((event) => event.type === 'message.delivered' ? [event.message_id] : [])
  return [...ways].flatMap(([way, accepted]) => {
    const came = accepted.filter((id) => delivered.includes(id))
    return came.join() === delivered.filter((id) => came.includes(id)).join() ? [] : [way]
  })
}
