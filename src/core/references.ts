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
    // What is at fault is not filled in any further: each of many references to a large output would cost its whole length.
    if (fault !== null) return null
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
  /** Its place in the order in which the batch can be run: request order, but for what waits for a later call, or for one that does. From 0. */
  rank: number
  /** Why it can never run. */
  fault: CallError | null
}

/** Other calls that one may refer to. A model that writes more is in a loop. */
const MAX_REFERENCES = 64

/**
 * Arranges the calls of a batch. What refers to an unknown call, to too many, or in a circle, gets a fault. `conflict`: whether two calls, by their numbers
 * from 0, must not run at the same time: those keep the order in which they were asked for, unless the first of them needs the second.
 */
export function arrange (calls: Referrer[], conflict: (a: number, b: number) => boolean): Place[] {
  const places = calls.map((): Place => ({ after: {}, rank: -1, fault: null }))
  const invalid = (i: number, message: string) => { (places[i] as Place).fault = { code: 'invalid_arguments', message } }
  const targets = calls.map(({ references }, i) => {
    if (references.length > MAX_REFERENCES) {
      invalid(i, `the arguments refer to ${references.length} outputs; ${MAX_REFERENCES} are the most`)
      return []
    }
    const after: [string, string][] = []
    const found = references.flatMap((written) => {
      const target = meant(calls, written)
      if (typeof target === 'number') {
        after.push([written, (calls[target] as Referrer).call_id])
        return [target]
      }
      invalid(i, `{{stepOutputs.${written}}} ${target}`)
      return []
    })
    ;(places[i] as Place).after = Object.fromEntries(after)
    return found
  })
  const needs = targets.map((_, i) => neededBy(targets, i))
  for (const [i, place] of places.entries()) {
    if (place.fault === null && needs[i]?.has(i)) invalid(i, 'this call waits for its own output: its references go in a circle')
  }
  const before = calls.map((_, i) => calls.flatMap((_, j) => j < i && places[j]?.fault === null && needs[j]?.has(i) === false && conflict(j, i) ? [j] : []))
  const isDone = (i: number) => places[i]?.rank !== -1
  const isReady = (i: number) => !isDone(i) && (places[i]?.fault !== null || (targets[i] ?? []).every(isDone))
  for (let rank = 0; rank < calls.length; rank++) {
    const next = calls.findIndex((_, i) => isReady(i) && (before[i] ?? []).every(isDone))
    // Several that keep each other waiting across resources: the first that can run.
    ;(places[next === -1 ? calls.findIndex((_, i) => isReady(i)) : next] as Place).rank = rank
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

/** All calls that the one at `from` refers to, directly or through others; itself, if it stands in a circle. */
function neededBy (targets: number[][], from: number): Set<number> {
  const found = new Set<number>()
  const open = [...targets[from] ?? []]
  for (let at = open.pop(); at !== undefined; at = open.pop()) {
    if (found.has(at)) continue
    found.add(at)
    open.push(...targets[at] ?? [])
  }
  return found
}
