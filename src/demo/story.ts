import type { StreamedEvent } from './client.js'
import { printable } from './text.js'

/** A turn's LLM call or a tool call, with its place in time. Milliseconds since 1970; `to` null: it runs. */
export interface Bar {
  kind: 'turn' | 'call'
  label: string
  turn: number
  from: number
  to: number | null
  state: 'running' | 'completed' | 'failed' | 'cancelled'
}

/** A message that was posted while the run was active. */
export interface Mark { kind: 'message', text: string, at: number, cancelled: number }

/** A run as its events tell it. */
export interface Story {
  /** In the order in which they came to be. */
  rows: (Bar | Mark)[]
  /** When the run was created, and when it ended: null until then. */
  from: number
  to: number | null
  /** What the model has written so far in the newest turn. */
  text: string
  /** Stored events so far, as they came. */
  events: StreamedEvent[]
  take: (event: StreamedEvent) => void
  turns: () => Bar[]
  calls: () => Bar[]
  marks: () => Mark[]
  /** Sum of the calls' own times, and the time during which at least one of them ran. Milliseconds. */
  toolTime: () => { sum: number, clock: number }
}

/** Folds the events of one run, in order, into bars on a time line. */
export function createStory (): Story {
  const bars = new Map<string, Bar>()
  const of = (kind: Bar['kind']) => story.rows.filter((row): row is Bar => row.kind === kind)

  function open (id: string, bar: Omit<Bar, 'to' | 'state'>): void {
    if (bars.has(id)) return // the next attempt of the same turn or call
    const row: Bar = { ...bar, to: null, state: 'running' }
    bars.set(id, row)
    story.rows.push(row)
  }

  function close (id: string, at: number, state: Bar['state']): void {
    const bar = bars.get(id)
    if (bar?.to === null) Object.assign(bar, { to: at, state })
  }

  function take (event: StreamedEvent): void {
    if (event.type === 'turn.delta') {
      story.text = story.text.slice(0, event.offset) + printable(event.text)
      return
    }
    if (event.seq === undefined) return
    story.events.push(event)
    const at = Date.parse(event.time)
    const turn = `turn ${event.turn}`
    switch (event.type) {
      case 'run.created':
        story.from = at
        break
      case 'turn.started':
        story.text = ''
        open(turn, { kind: 'turn', label: turn, turn: event.turn, from: at })
        break
      case 'turn.completed':
        story.text = printable(event.text)
        close(turn, at, 'completed')
        break
      case 'turn.cancelled':
        close(turn, at, 'cancelled')
        break
      case 'tool.started':
        open(event.call_id, { kind: 'call', label: callLabel(event), turn: event.turn, from: at })
        break
      case 'tool.completed': case 'tool.failed': case 'tool.cancelled':
        close(event.call_id, at, event.type.slice('tool.'.length) as Bar['state'])
        for (const mark of story.marks()) if (event.type === 'tool.cancelled' && mark.at === at) mark.cancelled++
        break
      case 'message.accepted':
        story.rows.push({ kind: 'message', text: printable(event.content), at, cancelled: 0 })
        break
      case 'run.completed': case 'run.incomplete': case 'run.failed': case 'run.cancelled':
        for (const id of bars.keys()) close(id, at, 'failed')
        story.to = at
    }
  }

  const story: Story = {
    rows: [],
    from: Date.now(),
    to: null,
    text: '',
    events: [],
    take,
    turns: () => of('turn'),
    calls: () => of('call'),
    marks: () => story.rows.filter((row) => row.kind === 'message'),
    toolTime () {
      const spans = story.calls().map(({ from, to }) => ({ from, to: to ?? from })).sort((a, b) => a.from - b.from)
      let sum = 0
      let clock = 0
      let reached = 0
      for (const { from, to } of spans) {
        sum += to - from
        clock += Math.max(0, to - Math.max(from, reached))
        reached = Math.max(reached, to)
      }
      return { sum, clock }
    }
  }
  return story
}

/** A call and what it is about: its first argument, of a URL the path. */
export function callLabel ({ name, arguments: args }: Pick<StreamedEvent, 'name' | 'arguments'>): string {
  const [first] = Object.values(args)
  if (first === undefined) return name
  const text = typeof first === 'string' ? first : JSON.stringify(first)
  return printable(`${name} ${URL.canParse(text) ? new URL(text).pathname : text}`)
}
