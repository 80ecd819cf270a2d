import OpenAI from 'openai'

/**
 * The ids of the models a provider offers (`GET /models`), in its order. Null when it does not say: it has no such list, refuses it, or takes longer than
 * `timeoutMs` (default 5,000). Never rejects: a list of models is a convenience, not a need.
 */
export async function listModels ({ apiKey, baseUrl, timeoutMs = 5000 }: { apiKey: string, baseUrl: string, timeoutMs?: number }): Promise<string[] | null> {
  const client = new OpenAI({ apiKey, baseURL: baseUrl, maxRetries: 0, logLevel: 'off' })
  try {
    // The client's own timeout ends at the headers.
    const { data } = await client.models.list({ signal: AbortSignal.timeout(timeoutMs) })
    const ids = data.map((model) => model.id)
    return ids.every((id) => typeof id === 'string') ? ids : null
  } catch {
    return null
  }
}
