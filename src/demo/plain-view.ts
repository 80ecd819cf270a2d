import type { Writable } from 'node:stream'
import type { StreamedEvent } from './client.js'
import { noColours } from './chart.js'
import { callLabel, type Story } from './story.js'
import { count, printable, seconds } from './text.js'
import type { View } from './view.js'

const WIDTH = 80
const INDENT = ' '.repeat(11)

/** Tells the run line by line, for files, pipes and terminals without colours. */
export function createPlainView (out: Writable, story: Story): View {
  /** How much of the newest turn's text is written, and how far the line is. */
  let written = 0
  let column = 0
  let shown = false

  function print (lines: string[]): void {
    out.write(`${column > 0 ? '\n' : ''}${lines.map((line) => `${line}\n`).join('')}`)
    column = 0
  }

  function tell (event: StreamedEvent, what: string): void {
    print([`${seconds(Date.parse(event.time) - story.from).padStart(9)}  ${what}`])
  }

  /** The text up to its last whole word, or with `all` to its end. */
  function write (all: boolean): void {
    const fresh = story.text.slice(written)
    const ready = all ? fresh : fresh.slice(0, fresh.lastIndexOf(' ') + 1)
    written += ready.length
    for (const word of ready.split(/\s+/).filter((one) => one !== '')) {
      const fits = column > 0 && column + 1 + word.length <= WIDTH
      const before = fits ? ' ' : `${column > 0 ? '\n' : ''}${INDENT}| `
      out.write(before + word)
      column = (fits ? column + 1 : INDENT.length + 2) + word.length
    }
  }

  function show (event: StreamedEvent): void {
    shown = true
    switch (event.type) {
      case 'turn.delta':
        if (event.offset < written) written = event.offset
        return write(false)
      case 'turn.started':
        written = 0
        return tell(event, `turn ${event.turn}: LLM call`)
      case 'turn.retrying':
        return tell(event, `turn ${event.turn}: tried again in ${event.delay_ms} ms (${event.reason})`)
      case 'turn.completed':
        write(true)
        return event.tool_calls.length === 0 ? undefined : tell(event, `turn ${event.turn}: asks for ${count(event.tool_calls.length, 'tool call')}`)
      case 'turn.cancelled':
        return tell(event, `turn ${event.turn}: cut short (${event.reason})`)
      case 'tool.started':
        return tell(event, `  ${callLabel(event)} started`)
      case 'tool.completed':
        return tell(event, `  ${label(event)} completed in ${seconds(event.duration_ms)}`)
      case 'tool.failed':
        return tell(event, `  ${label(event)} failed: ${printable(event.error?.message ?? '')}`)
      case 'tool.cancelled':
        return tell(event, `  ${label(event)} cut short after ${seconds(event.duration_ms)} (${event.reason})`)
      case 'message.accepted':
        return tell(event, `message (${event.mode}): “${printable(event.content)}”`)
      case 'run.completed': case 'run.incomplete': case 'run.failed': case 'run.cancelled':
        return tell(event, event.type.replace('.', ' '))
    }
  }

  /** The events of a call name it, but only its first one says what it is about. */
  const label = ({ call_id: id, name }: StreamedEvent): string => {
    const started = story.events.find((one) => one.type === 'tool.started' && one.call_id === id)
    return started === undefined ? name : callLabel(started)
  }

  return {
    palette: noColours,
    width: () => WIDTH,
    print,
    show,
    end () {
      if (shown) print([''])
      shown = false
    }
  }
}
