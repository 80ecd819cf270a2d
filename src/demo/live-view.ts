import type { WriteStream } from 'node:tty'
import { chart, colours, growingSpan } from './chart.js'
import type { Story } from './story.js'
import { wrap } from './text.js'
import { HANGING, type View } from './view.js'

/** Milliseconds between two pictures. */
const FRAME_MS = 80

/** Lines for what the model is writing. */
const TEXT_LINES = 3

/** Redraws the run in place while it grows. What is printed at the end stays. */
export function createLiveView (terminal: WriteStream, story: Story): View {
  const palette = colours
  let height = 0
  let timer: NodeJS.Timeout | undefined
  const width = () => Math.min(terminal.columns, 120)
  const resized = () => {
    // Lines have wrapped who knows how: only an empty screen is a sure ground.
    if (height > 0) terminal.write('\x1b[2J\x1b[H')
    height = 0
  }

  function draw (): void {
    const now = Date.now()
    const [axis = '', ...rows] = chart(story, { width: width(), span: growingSpan(now - story.from), now, palette })
    const room = Math.max(3, terminal.rows - TEXT_LINES - 4)
    const text = wrap(story.text, width() - HANGING.length).slice(-TEXT_LINES)
    const written = Array.from({ length: TEXT_LINES }, (_, i) => `${i === 0 ? palette.turn('model'.padEnd(HANGING.length)) : HANGING}${text[i] ?? ''}`)
    replace([axis, ...rows.slice(-room), '', ...written])
  }

  /**
   * Puts these lines where the last picture was. One write, so that it does not flicker; and without line wrap, so that a character which is wider
   * than it says cannot make the picture higher.
   */
  function replace (lines: string[]): void {
    const up = height > 0 ? `\x1b[${height}A` : ''
    terminal.write(`\x1b[?25l\x1b[?7l${up}\r${lines.map((line) => `\x1b[K${line}\n`).join('')}\x1b[J`)
    height = lines.length
  }

  return {
    palette,
    width,
    print: (lines) => { terminal.write(lines.map((line) => `${line}\n`).join('')) },
    show () {
      if (timer !== undefined) return
      terminal.on('resize', resized)
      timer = setInterval(draw, FRAME_MS)
      draw()
    },
    end () {
      if (timer === undefined) return
      clearInterval(timer)
      timer = undefined
      terminal.off('resize', resized)
      replace([])
      terminal.write('\x1b[?7h\x1b[?25h')
      height = 0
    }
  }
}
