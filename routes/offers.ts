import { Type, type FastifyPluginAsyncTypebox } from '@fastify/type-provider-typebox'
import { ModelListing, ToolListing } from '../src/schemas/offer.js'
import { json, problems } from '../src/schemas/request.js'

const tags = ['Server']

/** What the server itself offers to runs. */
export default (async (app) => {
  const { tools, models } = app.services
  const list = <Item extends typeof ToolListing | typeof ModelListing>(item: Item, title: string) =>
    Type.Object({ data: Type.Array(item), next_cursor: Type.Null() }, { additionalProperties: false, title })

  app.get('/tools', {
    schema: { operationId: 'listTools', summary: 'Tools the server has', tags, response: { 200: json('All of them.', list(ToolListing, 'ToolList')), ...problems() } }
  }, async () => ({ data: await tools(), next_cursor: null }))

  app.get('/models', {
    schema: { operationId: 'listModels', summary: 'Models the server has', tags, response: { 200: json('All of them.', list(ModelListing, 'ModelList')), ...problems() } }
  }, async () => ({ data: await models(), next_cursor: null }))
}) satisfies FastifyPluginAsyncTypebox
