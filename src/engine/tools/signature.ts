import { createHmac } from 'node:crypto'

/**
 * The headers that vouch for a request by Standard Webhooks 1.0.0: who checks them knows that the body is ours and how old it is. `id`
 * must hold nothing that a client or a model chose. Without a secret there are none.
 */
export type Sign = (id: string, body: string) => Record<string, string>

/**
 * Reads `INTERLOCK_SIGNING_SECRET`: `whsec_` and 24 to 64 bytes in base64. While one secret takes the place of another both can stand
 * there, separated by a comma: requests then carry a signature by each. `now` is in milliseconds since 1970.
 *
 * @throws Error with one sentence for the operator, which holds no part of the secret.
 */
export function openSigning (setting: string | undefined, now: () => number = Date.now): Sign {
  const keys = setting === undefined ? [] : setting.split(',').map((secret) => keyOf(secret.trim()))
  if (keys.length === 0) return () => ({})
  return (id, body) => {
    const timestamp = String(Math.floor(now() / 1000))
    const signatures = keys.map((key) => `v1,${createHmac('sha256', key).update(`${id}.${timestamp}.${body}`).digest('base64')}`)
    return { 'webhook-id': id, 'webhook-timestamp': timestamp, 'webhook-signature': signatures.join(' ') }
  }
}

function keyOf (secret: string): Buffer {
  const [, text = ''] = /^whsec_([A-Za-z0-9+/]+={0,2})$/.exec(secret) ?? []
  const key = Buffer.from(text, 'base64')
  if (key.length < 24 || key.length > 64 || key.toString('base64') !== text) {
    throw new Error('INTERLOCK_SIGNING_SECRET has an unusable value; it must be whsec_ followed by 24 to 64 random bytes in base64, such as "openssl rand -base64 32" prints.')
  }
  return key
}
