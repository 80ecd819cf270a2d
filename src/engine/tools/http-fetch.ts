import { Type } from 'typebox'
import type { Egress } from './egress.js'
import { exchange } from './exchange.js'
import { defineTool, serverTool, type ServerTool } from './module-tools.js'
import { ToolError } from './tool.js'

/**
 * The builtin `http_fetch`: GETs a URL the model names. The same guard and caps as http tools; no id of ours is sent, because the
 * server asked may be anyone's.
 */
export function httpFetch (egress: Egress, maxBytes: number): ServerTool {
  return serverTool(defineTool({
    name: 'http_fetch',
    description: 'Fetches a URL with GET. Returns the parsed body when it is JSON, else its text.',
    effects: 'read',
    idempotent: true,
    parameters: Type.Object({
      url: Type.String({ maxLength: 2048, description: 'An absolute http or https URL.' })
    }, { additionalProperties: false }),
    run ({ url }, { signal }) {
      if (!URL.canParse(url)) throw new ToolError('http_error', 'url is not an absolute URL')
      return exchange(egress, { url: new URL(url), method: 'GET', body: null, headers: {}, declaredHeaders: {} }, { signal, maxBytes })
    }
  }))
}
