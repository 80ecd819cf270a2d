/** Levels of arrays and objects that are taken apart. Far below where JSON.stringify runs out of stack, so what came in can always be stored. */
export const MAX_JSON_DEPTH = 100

const TEXT_MAY_NAME_PROTO = /__proto__|\\u005f/i

/**
 * JSON.parse for text from models and tools: throws a SyntaxError also for a `__proto__` key, which a later merge would turn into
 * a prototype (FAULTS S7), and for more than MAX_JSON_DEPTH levels. No part of the text is in the error.
 */
export function parseJson (text: string): unknown {
  let value: unknown
  try {
    value = TEXT_MAY_NAME_PROTO.test(text) ? JSON.parse(text, refuseProto) : JSON.parse(text)
  } catch (error) {
    throw new SyntaxError(withoutSnippet(error))
  }
  if (exceeds(value, { depth: MAX_JSON_DEPTH }) !== null) throw new SyntaxError(`JSON nested deeper than ${MAX_JSON_DEPTH} levels`)
  return value
}

function refuseProto (key: string, value: unknown): unknown {
  if (key === '__proto__') throw new SyntaxError('the key __proto__ is not accepted')
  return value
}

// V8 quotes the text around the mistake: `Unexpected token 'x', ..."secret"... is not valid JSON`.
function withoutSnippet (error: unknown): string {
  if (!(error instanceof SyntaxError)) return 'JSON nested too deep'
  return error.message.replace(/, (\.\.\.)?".*/s, '')
}

/** Which bound a JSON value breaks first, looked at no further than that; null when it keeps both. `chars` is about the length of its JSON text. */
export function exceeds (value: unknown, bounds: { depth: number, chars?: number }): 'depth' | 'chars' | null {
  let left = bounds.chars ?? Infinity
  const look = (item: unknown, depth: number): 'depth' | 'chars' | null => {
    left -= typeof item === 'string' ? item.length + 2 : 2
    if (left < 0) return 'chars'
    if (typeof item !== 'object' || item === null) return null
    if (depth === 0) return 'depth'
    if (Array.isArray(item)) {
      for (const child of item) {
        const broken = look(child, depth - 1)
        if (broken !== null) return broken
      }
      return null
    }
    // Not Object.entries: of a million keys it would write down all before the first is looked at.
    for (const key in item) {
      left -= key.length + 3
      const broken = look((item as Record<string, unknown>)[key], depth - 1)
      if (broken !== null) return broken
    }
    return null
  }
  return look(value, bounds.depth)
}

/**
 * A copy of what a module tool returned, as JSON would keep it: `undefined` becomes null (inside an object it is left out), NaN null,
 * dates text. Throws a TypeError with a sentence for what JSON would lose without a word (BigInt, function, Map, Promise, bytes) or
 * cannot say (a cycle), and for more than `maxChars` characters. A copy, so that the tool cannot change its answer afterwards.
 */
export function jsonValue (value: unknown, maxChars: number): unknown {
  let left = maxChars
  const ancestors = new Set<object>()

  const copy = (item: unknown, key: string): unknown => {
    left -= typeof item === 'string' ? item.length + 2 : 2
    if (left < 0) throw new TypeError(`the tool returned more than ${maxChars} characters`)
    if (item === undefined || item === null) return null
    if (typeof item === 'number') return Number.isFinite(item) ? item : null
    if (typeof item === 'string' || typeof item === 'boolean') return item
    if (typeof item !== 'object') throw notJson(`a ${typeof item}`)
    if (ArrayBuffer.isView(item)) throw notJson('bytes')
    const plain = 'toJSON' in item && typeof item.toJSON === 'function' ? item.toJSON(key) as unknown : item
    return typeof plain === 'object' && plain !== null ? copyObject(plain) : copy(plain, key)
  }

  const copyObject = (item: object): unknown => {
    if (ancestors.has(item)) throw notJson('a value that contains itself')
    if (ancestors.size === MAX_JSON_DEPTH) throw notJson(`more than ${MAX_JSON_DEPTH} levels`)
    ancestors.add(item)
    let result: unknown
    if (Array.isArray(item)) {
      // Not map: it leaves holes, and skips them for free however long the array is.
      const list = []
      for (const child of item as unknown[]) list.push(copy(child, String(list.length)))
      result = list
    } else {
      const kind = Object.prototype.toString.call(item).slice(8, -1)
      if (kind !== 'Object') throw notJson(`a ${kind}`)
      const object: Record<string, unknown> = {}
      for (const [key, child] of Object.entries(item)) {
        if (child === undefined || key === '__proto__') continue
        left -= key.length + 3
        object[key] = copy(child, key)
      }
      result = object
    }
    ancestors.delete(item)
    return result
  }

  return copy(value, '')
}

function notJson (what: string): TypeError {
  return new TypeError(`the tool returned ${what}, which is not JSON`)
}

/** The first `max` UTF-16 units of a text, without half a surrogate pair at the end. */
export function cut (text: string, max: number): string {
  if (text.length <= max) return text
  const last = text.charCodeAt(max - 1)
  return text.slice(0, last >= 0xd800 && last <= 0xdbff ? max - 1 : max)
}
