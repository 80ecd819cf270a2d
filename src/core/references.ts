import type { CallError } from './run.js'

/**
 * References between the calls of a batch: `{{stepOutputs.<call>.<path>}}` anywhere in a call's arguments stands for what another call of
 * the same batch gives. `<call>` is the id the model gave the call, its id here, the name of its tool where only one call has it, or its
 * number in the batch from 1; all are matched exactly (E13). `<path>` goes into the output: `.field`, `.0` or `[0]`.
 */
const REFERENCE = /\{\{\s*stepOutputs\.([^{}]*)\}\}/g
const PARTS = /^([^.[\]]+)((?:\.[^.[\]]+|\[\d+\])*)$/
const PATH = /^(?:\.[^.[\]]+|\[\d+\])*$/
/** Also of what was put in (`marked`). */
const BEGINS = /\{\{\u0000?\s*stepOutputs\./

/** Whether a text may refer to a call, so that what it will say in the end is not known. */
export const mayRefer = (text: string): boolean => BEGINS.test(text)

/**
 * The call and the path of a reference. Ids are the model's to choose, and some have dots (`functions.look:0`): the longest of the `known` that it
 * begins with is meant. What cannot be read as a call and a path is taken for a call's name: there will be none of that name.
 */
function partsOf (inner: string, known: string[]): { call: string, path: string } {
  const written = inner.trim()
  const ids = known.filter((id) => id !== '' && written.startsWith(id) && PATH.test(written.slice(id.length)))
  const [, plain = written, path = ''] = PARTS.exec(written) ?? []
  const call = ids.reduce((longest, id) => id.length > longest.length ? id : longest, '')
  return call === '' ? { call: plain, path } : { call, path: written.slice(call.length) }
}

/** The calls that arguments refer to, as they are written there, each once. `ids`: those that the model gave to the calls of the batch. */
export function referencesIn (value: unknown, ids: string[] = []): string[] {
  const found = new Set<string>()
  visit(value, (text) => {
    for (const [, inner = ''] of text.matchAll(REFERENCE)) found.add(partsOf(inner, ids).call)
    return text
  })
  return [...found]
}

/**
 * The value with what one call gave put in the place of every reference to it: `written`, one of the `references` in it. A string that is
 * nothing but a reference becomes the JSON value itself; inside a longer text, a string goes in as it is and anything else as JSON. What is put in
 * is no reference any more, whatever it says (`asGiven` undoes the mark). `chars`: how many were put in. `fault`: why that cannot be done, if it
 * cannot: a path that leads nowhere, or more put in than there is `room` for (`otherwise`).
 */
export function putIn (
  value: unknown, written: string, references: string[], output: unknown, room: { chars: number, otherwise: string }
): { value: unknown, chars: number, fault: string | null } {
  let fault: string | null = null
  let left = room.chars
  const at = (reference: string): unknown => {
    const { call, path } = partsOf(reference, references)
    if (call !== written) return undefined
    let found: unknown = output
    for (const [, field, index] of path.matchAll(/\.([^.[\]]+)|\[(\d+)\]/g)) {
      const name = field ?? index ?? ''
      const holder = typeof found === 'object' && found !== null && Object.hasOwn(found, name) ? found as Record<string, unknown> : null
      if (holder === null) {
        fault ??= `{{stepOutputs.${reference.trim()}}} leads nowhere in the output it refers to`
        return null
      }
      found = holder[name]
    }
    left -= typeof found === 'string' ? found.length : JSON.stringify(found).length
    if (left < 0) fault ??= room.otherwise
    return left < 0 ? null : found
  }
  const filled = visit(value, (text) => {
    const [whole] = text.matchAll(REFERENCE)
    if (whole?.[0] === text) {
      const found = at(whole[1] as string)
      return found === undefined ? text : visit(found, marked)
    }
    return text.replace(REFERENCE, (all, reference: string) => {
      const found = at(reference)
      return found === undefined ? all : marked(typeof found === 'string' ? found : JSON.stringify(found))
    })
  })
  return { value: filled, chars: room.chars - left, fault }
}

/** Arguments into which all outputs were put, without the marks of `putIn`. */
export function asGiven (value: unknown): unknown {
  return visit(value, (text) => text.replace(/\{\{\u0000(\s*stepOutputs\.)/g, '{{$1'))
}

/** A tool's output may look like a reference: it must not become one. */
const marked = (text: string): string => text.replace(/\{\{(\s*stepOutputs\.)/g, '{{\u0000$1')

/** A copy in which every string is what `change` makes of it. Names of fields are left alone. */
function visit (value: unknown, change: (text: string) => unknown): unknown {
  if (typeof value === 'string') return value.includes('{{') ? change(value) : value
  if (Array.isArray(value)) return value.map((one) => visit(one, change))
  if (value === null || typeof value !== 'object') return value
  return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, visit(one, change)]))
}

/** A call as far as references can name it. */
export interface Referrer { call_id: string, provider_id: string, name: string, references: string[] }

/** How a call stands to the others of its batch. */
export interface Place {
  /** What its arguments refer to: as written there, and the id of the call it is. */
  after: Record<string, string>
  /** Its place in the order in which the batch can be run: request order, but for what waits for a later call. From 0. */
  rank: number
  /** Why it can never run. */
  fault: CallError | null
}

/** Arranges the calls of a batch. What refers to an unknown call, or in a circle, gets a fault. */
export function arrange (calls: Referrer[]): Place[] {
  const places = calls.map((): Place => ({ after: {}, rank: -1, fault: null }))
  const targets = calls.map(({ references }, i) => references.flatMap((written) => {
    const found = meant(calls, written)
    if (typeof found === 'string') {
      (places[i] as Place).fault = { code: 'invalid_arguments', message: `{{stepOutputs.${written}}} ${found}` }
      return []
    }
    const place = places[i] as Place
    // A plain assignment would lose a call named `__proto__`.
    place.after = { ...place.after, [written]: (calls[found] as Referrer).call_id }
    return [found]
  }))
  for (const [i, place] of places.entries()) {
    if (place.fault === null && reaches(targets, i, i)) {
      place.fault = { code: 'invalid_arguments', message: 'this call waits for its own output: its references go in a circle' }
    }
  }
  const ready = (i: number) => {
    const { rank, fault } = places[i] as Place
    return rank === -1 && (fault !== null || (targets[i] ?? []).every((target) => places[target]?.rank !== -1))
  }
  for (let rank = 0; rank < calls.length; rank++) {
    const next = calls.findIndex((_, i) => ready(i))
    ;(places[next] as Place).rank = rank
  }
  return places
}

/** Position of the call that is meant, or what is wrong. */
function meant (calls: Referrer[], written: string): number | string {
  // A model that gives no ids has given none that could be meant.
  const byId = written === '' ? -1 : calls.findIndex((call) => call.provider_id === written || call.call_id === written)
  if (byId !== -1) return byId
  const named = calls.flatMap((call, i) => call.name === written ? [i] : [])
  if (named.length > 1) return `could be ${named.length} calls; refer to one by its number, 1 to ${calls.length}`
  if (named[0] !== undefined) return named[0]
  const number = /^\d{1,4}$/.test(written) ? Number(written) : 0
  return number >= 1 && number <= calls.length ? number - 1 : `refers to no call of this batch; its calls have the numbers 1 to ${calls.length}`
}

function reaches (targets: number[][], from: number, to: number, seen = new Set<number>()): boolean {
  return (targets[from] ?? []).some((next) => {
    if (next === to) return true
    if (seen.has(next)) return false
    seen.add(next)
    return reaches(targets, next, to, seen)
  })
}
