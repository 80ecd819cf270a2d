import type { Piece } from '../core/draft.js'
import type { Event } from '../core/event.js'
import type { State } from '../core/state.js'
import type { Commit, StoredEvent } from './store.js'

/** A commit as strings, ready to be stored. */
export interface Plan {
  state: string
  /** In the epoch the store finds itself in. */
  events: Omit<StoredEvent, 'epoch'>[]
  puts: [name: string, value: string][]
  messages: Piece[][]
  drops: string[]
  /** Whose deltas are welcome; 0: nobody's. */
  fence: number
}

/** Turns a commit into strings. A text that comes and goes within the commit is joined here and never stored. */
export function planCommit (commit: Commit): Plan {
  const texts = new Map<string, string>()
  const last = new Map<string, string | null>()
  for (const { name, value } of commit.docs) {
    last.set(name, value)
    if (value !== null) texts.set(name, value)
  }
  const messages = commit.messages.map((pieces) => compact(pieces.map((piece) => {
    return typeof piece === 'string' ? piece : texts.get(piece.doc) ?? piece
  })))
  return {
    state: JSON.stringify(commit.state),
    events: commit.events.map(textOf),
    puts: [...last].flatMap(([name, value]): [string, string][] => value === null ? [] : [[name, value]]),
    messages,
    drops: [...last].flatMap(([name, value]) => value === null ? [name] : []),
    fence: fenceOf(commit.state)
  }
}

/** An event that was just stored, as a reader of the log would get it. */
export function storedEvent (event: Event, epoch: number): StoredEvent {
  return { ...textOf(event), epoch }
}

function textOf (event: Event): Omit<StoredEvent, 'epoch'> {
  return { seq: event.seq, type: event.type, run_id: event.run_id ?? null, json: JSON.stringify(event) }
}

/** The fence of the turn that is at work, whose text is welcome; 0: none is. */
export function fenceOf (state: State): number {
  const phase = state.run?.phase
  return phase?.type === 'turn' && phase.worker !== null ? phase.fence : 0
}

/** Joins neighbouring literals. */
function compact (pieces: Piece[]): Piece[] {
  const joined: Piece[] = []
  for (const piece of pieces) {
    const last = joined.at(-1)
    if (typeof piece === 'string' && typeof last === 'string') joined[joined.length - 1] = last + piece
    else joined.push(piece)
  }
  return joined
}
