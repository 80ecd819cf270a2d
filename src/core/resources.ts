import { mayRefer } from './references.js'

/**
 * What a call holds while it is unsettled: names filled from its arguments. Null: a name that cannot be known, because the arguments do not have what it takes
 * or still refer to another call; it may be any.
 */
export type Held = (string | null)[]

/** Fills resource templates like `orders/{order_id}` from arguments. Values are escaped, so that none can look like another name. */
export function fillResources (templates: string[], args: Record<string, unknown>): Held {
  return templates.map((template) => {
    let known = true
    const filled = template.replace(/\{([^{}]+)\}/g, (_, field: string) => {
      const value = Object.hasOwn(args, field) ? args[field] : undefined
      const plain = typeof value === 'number' || typeof value === 'boolean' || (typeof value === 'string' && !mayRefer(value))
      if (!plain) known = false
      return encodeURIComponent(String(value).replace(/\p{Surrogate}/gu, '_'))
    })
    return known ? filled : null
  })
}

export interface Holder { effects: 'read' | 'write', exclusive: boolean, holds: Held }

/** Whether two calls must not run at the same time: readers may always, writers not on one resource, and `exclusive` with nobody. */
export function conflict (a: Holder, b: Holder): boolean {
  if (a.exclusive || b.exclusive) return true
  if (a.effects === 'read' && b.effects === 'read') return false
  return a.holds.some((name) => b.holds.some((other) => name === null || other === null || name === other))
}
