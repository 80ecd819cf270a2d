import { ModelError, type Model, type ModelAnswer, type ModelErrorCode, type ModelRequest } from '../../src/engine/model/model.js'
import type { Machine } from './machine.js'
import { createRandom } from './random.js'
import type { Timeline } from './timeline.js'

/** One request the provider has seen. */
export interface LlmCall {
  run_id: string
  turn: number
  attempt: number
  machine: Machine
  model: string
  request: ModelRequest
  start: number
  /** When the provider had sent its last word, unless the caller hung up before. */
  planned: number
  hungUp: number | null
  /** Newest event of the conversation when it began. */
  seq: number
  answer: ModelAnswer | null
  error: { code: string, retryAfterMs: number | null } | null
}

export interface ProviderOptions {
  seed: number
  timeline: Timeline
  errorRate: number
  leaseMs: number
  calm: () => boolean
  /** Newest event of the conversation a run belongs to. */
  seqOf: (runId: string) => number
  trace: ((who: string, what: string) => void) | null
}

/** A provider that all workers share: it answers by the seed and the request, and remembers every request. */
export interface Provider { calls: LlmCall[], modelOf: (machine: Machine) => Model }

export function createProvider ({ seed, timeline, errorRate, leaseMs, calm, seqOf, trace }: ProviderOptions): Provider {
  const calls: LlmCall[] = []

  function modelOf (machine: Machine): Model {
    return {
      complete: (request, { signal, onText }) => new Promise((resolve, reject) => {
        if (signal.aborted) {
          reject(signal.reason as Error)
          return
        }
        const [runId, turn, attempt] = request.request_id.split('.') as [string, string, string]
        const random = createRandom(seed, `llm ${request.request_id}`)
        const start = timeline.now()
        const long = random.chance(0.05)
        const call: LlmCall = {
          run_id: runId,
          turn: Number(turn),
          attempt: Number(attempt),
          machine,
          model: request.model,
          request,
          start,
          planned: start + (long ? leaseMs * (0.3 + 2 * random.next()) : 2 + 50 * random.next() ** 2),
          hungUp: null,
          seq: seqOf(runId),
          answer: null,
          error: null
        }
        calls.push(call)
        trace?.(machine.name, `LLM call ${request.request_id} begins`)

        const failure = !calm() && random.chance(errorRate) ? errorOf(random.next(), random.pick([0, 40, 300, 1500])) : null
        const answer = answerOf(request, random)
        // The answer comes in pieces, and fails in the middle of one if it fails.
        const pieces = answer.text.match(/[\s\S]{1,7}/g) ?? []
        const heard = failure === null ? pieces.length : random.int(0, pieces.length)
        const timers = pieces.slice(0, heard).map((piece, i) => {
          return machine.deliver(start + (call.planned - start) * (i + 1) / (pieces.length + 1), () => onText(piece))
        })
        timers.push(machine.deliver(call.planned, () => {
          signal.removeEventListener('abort', abort)
          if (failure === null) {
            call.answer = answer
            trace?.(machine.name, `LLM call ${request.request_id} answers: ${answer.tool_calls.length} calls, ${answer.finish_reason}`)
            resolve(answer)
          } else {
            call.error = failure
            trace?.(machine.name, `LLM call ${request.request_id} fails: ${failure.code}`)
            reject(failure)
          }
        }))
        const abort = (): void => {
          for (const timer of timers) timer.cancel()
          call.hungUp = timeline.now()
          trace?.(machine.name, `LLM call ${request.request_id} is aborted`)
          reject(signal.reason as Error)
        }
        signal.addEventListener('abort', abort, { once: true })
      })
    }
  }
  return { calls, modelOf }
}

function errorOf (chance: number, retryAfterMs: number): ModelError {
  const [code, retryable] = ([
    ['provider_rate_limited', true], ['provider_unavailable', true], ['provider_timeout', true], ['provider_truncated', true], ['provider_bad_request', false]
  ] as [ModelErrorCode, boolean][])[chance < 0.94 ? Math.floor(chance / 0.94 * 4) : 4] as [ModelErrorCode, boolean]
  return new ModelError(code, 'it failed', { retryable, retryAfterMs: code === 'provider_rate_limited' ? retryAfterMs : null })
}

function answerOf ({ request_id: id, messages, tools }: ModelRequest, random: ReturnType<typeof createRandom>): ModelAnswer {
  const asked = messages.length - 1 - messages.findLastIndex((message) => message.role === 'user')
  const names = (tools ?? []).flatMap((tool) => tool.type === 'function' ? [tool.function.name] : [])
  const usage = { input_tokens: messages.length, output_tokens: 1, total_tokens: messages.length + 1 }
  const text = `says ${id} 🙂 as ever`
  const end = random.next()
  if (names.length === 0 || asked > 12 || random.chance(0.4)) {
    const finish = end < 0.04 ? 'length' : end < 0.06 ? 'content_filter' : 'stop'
    return { text: random.chance(0.03) ? '' : text, refusal: end > 0.98 ? 'no' : null, finish_reason: finish, tool_calls: [], usage }
  }
  const many = random.chance(0.1)
  const same = random.chance(0.05)
  const count = many ? random.int(5, 9) : random.int(1, 3)
  const refers = random.chance(0.3)
  const wanted = Array.from({ length: count }, (_, i) => {
    const broken = random.chance(0.04)
    const name = random.chance(0.03) ? 'no such tool' : random.pick(names)
    const of = refers && random.chance(0.4) ? { of: referenceTo(random, random.int(1, count + 1), id, names) } : {}
    return {
      id: same ? 'same' : random.chance(0.05) ? '' : `${id}-${i}`,
      name,
      arguments: broken ? '{"n": ' : JSON.stringify({ n: `${id} ${i}`, box: random.pick(['a', 'a', 'b', 3]), ...of })
    }
  })
  return { text: random.chance(0.5) ? text : '', refusal: null, finish_reason: end < 0.02 ? 'length' : 'tool_calls', tool_calls: wanted, usage }
}

/** What stands for the output of another call: by its number, the id the model gave it, or the name of its tool. */
function referenceTo (random: ReturnType<typeof createRandom>, number: number, id: string, names: string[]): string {
  const written = `{{stepOutputs.${random.pick([String(number), String(number), `${id}-${number - 1}`, random.pick(names)])}${random.pick(['', '', '.of'])}}}`
  return random.chance(0.7) ? written : `as in ${written}!`
}
