import { toUSVString } from 'node:util'
import { cut } from './json.js'

/** What a tool message says when there is nothing to say: providers refuse an empty one. */
const NOTHING = '(no output)'

/**
 * What the model is told of a call's output: strings as they are, everything else as JSON, never empty and always well-formed
 * Unicode. Of a longer text the first `maxChars` UTF-16 units (`limits.max_result_chars`), followed by a note of how much is missing.
 */
export function forModel (output: unknown, maxChars: number): { text: string, truncated: boolean } {
  const whole = typeof output === 'string' ? output : output == null ? '' : JSON.stringify(output)
  // Some providers also refuse a message of nothing but white space.
  if (whole.trim() === '') return { text: NOTHING, truncated: false }
  if (whole.length <= maxChars) return { text: toUSVString(whole), truncated: false }
  const kept = cut(whole, maxChars)
  return { text: `${toUSVString(kept)}\n[cut: ${whole.length - kept.length} of ${whole.length} characters left out]`, truncated: true }
}

/** The text of the tool message for a failed call (API.md "Errors"). */
export function errorForModel (error: { code: string, message: string }): string {
  return JSON.stringify({ error: { code: error.code, message: toUSVString(error.message) } })
}
