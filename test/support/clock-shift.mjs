// For `node --import`: the wall clock of the process is off by what the file CLOCK_SHIFT_FILE says, in milliseconds, now and whenever that changes.
// Timers and performance.now go on as they do when somebody sets a machine's clock.
import { readFileSync } from 'node:fs'

const now = Date.now
let shift = 0
const read = () => { shift = Number(readFileSync(process.env.CLOCK_SHIFT_FILE, 'utf8')) || shift }
read()
setInterval(read, 20).unref()

globalThis.Date = class extends Date {
  constructor (...args) {
    super(...(args.length === 0 ? [now() + shift] : args))
  }

  static now () { return now() + shift }
}
