/** Every event type there is. Clients switch on these names. */
export type EventType =
  | 'run.created' | 'run.started' | 'run.requires_action' | 'run.resumed' | 'run.completed' | 'run.incomplete' | 'run.failed' | 'run.cancelled'
  | 'turn.started' | 'turn.retrying' | 'turn.completed' | 'turn.cancelled'
  | 'batch.started' | 'batch.completed'
  | 'tool.started' | 'tool.progress' | 'tool.completed' | 'tool.failed' | 'tool.cancelled' | 'tool.orphaned'
  | 'suspension.created' | 'suspension.resolved'
  | 'message.accepted' | 'message.delivered' | 'message.superseded' | 'message.withdrawn'
  | 'conversation.recovered'

/** A fact clients can see. Stored as the JSON of this object, and never changed after. */
export interface Event {
  seq: number
  run_seq?: number
  type: EventType
  run_id?: string
  conversation_id: string
  time: string
  turn?: number
  lane?: string
  batch_id?: string
  call_id?: string
  caused_by: number[]
  [data: string]: unknown
}

export const TERMINAL: ReadonlySet<string> = new Set(['run.completed', 'run.incomplete', 'run.failed', 'run.cancelled'])
