import type { StreamedEvent } from './client.js'
import type { Palette } from './chart.js'

/** Shows a run while it happens, and lines before and after it. */
export interface View {
  palette: Palette
  /** Columns to print in. */
  width: () => number
  print: (lines: string[]) => void
  /** The story has taken this event. */
  show: (event: StreamedEvent) => void
  /** Leaves the terminal as it was. Twice is fine. */
  end: () => void
}

/** Text hangs this far to the right, behind its heading. */
export const HANGING = ' '.repeat(9)
