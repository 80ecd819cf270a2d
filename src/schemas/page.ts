import { Type, type TSchema } from 'typebox'

/** A list, newest or oldest first as its route says. */
export const page = <Item extends TSchema>(item: Item, title: string) => Type.Object({
  data: Type.Array(item),
  next_cursor: Type.Union([Type.String(), Type.Null()], { description: 'Opaque. Send it as `cursor` for what follows; null: nothing does.' })
}, { additionalProperties: false, title })

const Limit = { minimum: 1, maximum: 100 }
export const DEFAULT_LIMIT = 20

/** Items of a page of events; a stream takes none. */
export const eventLimit = Type.Integer({ ...Limit, description: `Events of one page, ${DEFAULT_LIMIT} if not said. A stream has no pages, and refuses it.` })

/** What every list takes in its query. */
export const pageQuery = {
  limit: Type.Integer({ ...Limit, default: DEFAULT_LIMIT, description: 'Items of one page.' }),
  cursor: Type.Optional(Type.String({ minLength: 1, maxLength: 1024, description: 'The `next_cursor` of the page before, with the same filters.' }))
}
