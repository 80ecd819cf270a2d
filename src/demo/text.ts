/** Text from outside, without what would move a terminal's cursor or change its colours. As long as before. */
export const printable = (text: string): string => text.replace(/[\x00-\x09\x0b-\x1f\x7f-\x9f]/g, ' ')

export const seconds = (ms: number): string => `${(ms / 1000).toFixed(2)} s`

/** `1 call`, `2 calls`. */
export const count = (n: number, what: string): string => `${n} ${what}${n === 1 ? '' : 's'}`

export function fit (text: string, width: number): string {
  return text.length > width ? `${text.slice(0, width - 1)}…` : text.padEnd(width)
}

/** Breaks text at spaces into lines of at most that many characters, as far as its words allow. */
export function wrap (text: string, width: number): string[] {
  return text.split('\n').flatMap((paragraph) => {
    const lines: string[] = []
    let line = ''
    for (const word of paragraph.split(' ')) {
      if (line !== '' && line.length + 1 + word.length > width) {
        lines.push(line)
        line = ''
      }
      line = line === '' ? word : `${line} ${word}`
    }
    return [...lines, line]
  })
}
