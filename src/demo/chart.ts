import type { Bar, Mark, Story } from './story.js'
import { fit, seconds } from './text.js'

type Paint = (text: string) => string

/** Colours by meaning. */
export interface Palette { turn: Paint, call: Paint, cut: Paint, failed: Paint, message: Paint, quiet: Paint, strong: Paint }

const plainText: Paint = (text) => text
const sgr = (code: number): Paint => (text) => text === '' ? '' : `\x1b[${code}m${text}\x1b[0m`

export const noColours: Palette = {
  turn: plainText, call: plainText, cut: plainText, failed: plainText, message: plainText, quiet: plainText, strong: plainText
}
export const colours: Palette = { turn: sgr(36), call: sgr(32), cut: sgr(33), failed: sgr(31), message: sgr(35), quiet: sgr(2), strong: sgr(1) }

export interface ChartOptions {
  /** Columns of the whole chart. */
  width: number
  /** Where the time line ends, in milliseconds behind the run's start. */
  span: number
  /** For bars that still grow: milliseconds since 1970. */
  now: number
  palette: Palette
}

/** Columns of the durations on the right. */
const DURATION = 9

/** Time lines that a growing run is drawn on, one after the other, so that the scale does not change all the time. Seconds. */
const SCALES = [4, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 60, 80, 100, 120]

export const growingSpan = (elapsed: number): number => 1000 * (SCALES.find((s) => s * 1000 >= elapsed + 200) ?? Math.ceil(elapsed / 60_000) * 60)

/**
 * The run on one time line: a thin bar for each LLM call, a thick one for each tool call, and a dotted line down from each message. A call that
 * was cut short ends in a cross, so that it can be told without colours.
 */
export function chart (story: Story, { width, span, now, palette }: ChartOptions): string[] {
  const label = width >= 100 ? 32 : 27
  const cells = width - label - DURATION
  const x = (at: number) => (at - story.from) * cells / span
  const cellOf = (at: number) => Math.max(0, Math.min(cells - 1, Math.floor(x(at))))
  const marks = story.marks().map((mark) => cellOf(mark.at))

  /** A row of the chart: what stands in front, what is drawn, what stands behind. `drawn` begins at cell `at`. */
  function line (front: string, at: number, drawn: string, paint: Paint, behind: string): string {
    const before = dotted(0, at)
    const after = dotted(at + drawn.length, cells)
    return `${fit(front, label - 1)} ${before}${paint(drawn)}${after}${behind === '' ? '' : palette.quiet(behind.padStart(DURATION))}`.trimEnd()
  }

  function dotted (from: number, to: number): string {
    let text = ''
    for (let cell = from; cell < to; cell++) text += marks.includes(cell) ? palette.message('┊') : ' '
    return text
  }

  function bar (row: Bar): string {
    const to = row.to ?? now
    const start = cellOf(row.from)
    const length = Math.min(x(to), cells) - start
    const drawn = row.kind === 'turn' ? thin(length) : thick(length)
    const end = { running: '', completed: '', failed: '!', cancelled: '╳' }[row.state]
    const paint = { running: palette[row.kind], completed: palette[row.kind], failed: palette.failed, cancelled: palette.cut }[row.state]
    return line(row.kind === 'turn' ? `${row.label}  LLM` : `  ${row.label}`, start, end === '' ? drawn : drawn.slice(0, -1) + end, paint, seconds(Math.max(0, to - row.from)))
  }

  function message ({ text, at }: Mark): string {
    const cell = cellOf(at)
    const quoted = `“${text}”`
    const front = `interrupt${`${quoted} `.padStart(label + cell - 'interrupt'.length)}`
    // To the left of its place in time, where there is room.
    if (front.length === label + cell) return palette.message(`${front}◆`)
    return line('interrupt', cell, `◆ ${quoted}`.slice(0, cells + DURATION - cell), palette.message, '')
  }

  return [axis(label, cells, span, palette), ...story.rows.map((row) => row.kind === 'message' ? message(row) : bar(row))]
}

/** Ticks at round numbers, no closer than seven cells. */
function axis (label: number, cells: number, span: number, palette: Palette): string {
  const step = [0.5, 1, 2, 5, 10, 20, 30, 60].find((s) => s * 1000 / span * cells >= 7) ?? 120
  let text = ''
  for (let n = 0; n * step * 1000 <= span; n++) {
    const tick = `${n * step} s`
    const cell = Math.round(n * step * 1000 / span * cells)
    if (cell + tick.length <= cells) text = text.padEnd(cell) + tick
  }
  return palette.quiet(' '.repeat(label) + text)
}

/** A bar of that many cells, to the eighth of a cell. */
function thick (length: number): string {
  const eighths = Math.max(1, Math.round(length * 8))
  return '█'.repeat(eighths >> 3) + ['', '▏', '▎', '▍', '▌', '▋', '▊', '▉'][eighths & 7]
}

function thin (length: number): string {
  const halves = Math.max(1, Math.round(length * 2))
  return '━'.repeat(halves >> 1) + (halves & 1 ? '╸' : '')
}
