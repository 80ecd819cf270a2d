/** A number from a command line. Ends the process with one sentence when it is none, or below `least`. */
export function numberOf (option: string, text: string, least = 0): number {
  const number = Number(text)
  if (text.trim() !== '' && Number.isFinite(number) && number >= least) return number
  process.stderr.write(`--${option} takes a number of at least ${least}, not "${text}"\n`)
  process.exit(2)
}
