import { isUtf8 } from 'node:buffer'

/** Deeper bodies are refused before they are parsed: code that walks a value recursively must not be killed by it (FAULTS S8). */
export const MAX_DEPTH = 64

const QUOTE = 0x22
const BACKSLASH = 0x5c
const LETTER_U = 0x75
const MINUS = 0x2d

/**
 * What `JSON.parse` would accept of these bytes but could not give back unchanged, or should not be asked to read; null when there is
 * nothing. Looks at the bytes once and parses nothing: JSON that does not parse may pass.
 */
export function jsonFault (bytes: Buffer): string | null {
  if (!isUtf8(bytes)) return 'The body is not valid UTF-8.'
  let depth = 0
  for (let i = 0; i < bytes.length; i++) {
    const byte = bytes[i] as number
    if (byte === QUOTE) {
      const end = endOfString(bytes, i + 1)
      if (end < 0) return 'A string has a lone surrogate (\\ud800 to \\udfff without its other half).'
      i = end
    } else if (byte === 0x5b || byte === 0x7b) {
      if (++depth > MAX_DEPTH) return `Arrays and objects are nested deeper than ${MAX_DEPTH} levels.`
    } else if (byte === 0x5d || byte === 0x7d) {
      depth--
    } else if (byte === MINUS || isDigit(byte)) {
      let end = i + 1
      while (end < bytes.length && isNumeric(bytes[end] as number)) end++
      const fault = numberFault(bytes.toString('latin1', i, end))
      if (fault !== null) return fault
      i = end - 1
    }
  }
  return null
}

/** Index of the closing quote (or the end of the bytes); -1: a lone surrogate. */
function endOfString (bytes: Buffer, from: number): number {
  let high = false
  for (let i = from; i < bytes.length; i++) {
    const byte = bytes[i] as number
    if (byte === BACKSLASH && bytes[i + 1] === LETTER_U) {
      const unit = parseInt(bytes.toString('latin1', i + 2, i + 6), 16)
      const low = unit >= 0xdc00 && unit <= 0xdfff
      if (low !== high) return -1
      high = unit >= 0xd800 && unit <= 0xdbff
      i += 5
      continue
    }
    if (high) return -1
    if (byte === QUOTE) return i
    if (byte === BACKSLASH) i++
  }
  return bytes.length
}

function numberFault (text: string): string | null {
  if (text.length < 4) return null
  const value = Number(text)
  if (/^-?\d+$/.test(text)) return Number.isSafeInteger(value) ? null : 'An integer is beyond 2^53-1 and would be rounded; send it as a string.'
  return Number.isFinite(value) || Number.isNaN(value) ? null : 'A number is too large.'
}

const isDigit = (byte: number): boolean => byte >= 0x30 && byte <= 0x39

/** Digits and what else stands in a number: + - . E e */
const isNumeric = (byte: number): boolean => isDigit(byte) || byte === 0x2b || byte === MINUS || byte === 0x2e || byte === 0x45 || byte === 0x65
