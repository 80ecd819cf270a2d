import { Counter, Gauge, Histogram, Registry, collectDefaultMetrics } from 'prom-client'
import type { Event } from '../core/event.js'
import type { Services } from './services.js'

export interface Metrics {
  /** Counts what this process has stored. */
  observe: (events: Event[]) => void
  read: Services['metrics']
  registry: Registry
}

/** Metrics of one process. Everything the service does is an event, so the counters count events; durations come with them. */
export function createMetrics (load: () => { turns: number, calls: number }): Metrics {
  const registry = new Registry()
  collectDefaultMetrics({ register: registry })
  const counted = new Counter({ name: 'interlock_events_total', help: 'Events stored by this process, by type', labelNames: ['type'], registers: [registry] })
  const tokens = new Counter({ name: 'interlock_tokens_total', help: 'Tokens of LLM calls, by direction', labelNames: ['direction'], registers: [registry] })
  const buckets = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
  const calls = new Histogram({ name: 'interlock_tool_call_seconds', help: 'Duration of tool calls, by outcome', labelNames: ['outcome'], buckets, registers: [registry] })
  const batches = new Histogram({ name: 'interlock_batch_seconds', help: 'Duration of batches of tool calls', buckets, registers: [registry] })
  const running = new Gauge({
    name: 'interlock_running',
    help: 'What this worker is doing now',
    labelNames: ['kind'],
    registers: [registry],
    collect () {
      const now = load()
      this.set({ kind: 'turns' }, now.turns)
      this.set({ kind: 'calls' }, now.calls)
    }
  })
  running.set({ kind: 'turns' }, 0)

  return {
    registry,
    observe (events) {
      for (const event of events) {
        counted.inc({ type: event.type })
        const seconds = Number(event.duration_ms) / 1000
        if (event.type === 'batch.completed') batches.observe(seconds)
        else if (event.type === 'tool.completed' || event.type === 'tool.failed' || event.type === 'tool.cancelled') {
          calls.observe({ outcome: event.type.slice('tool.'.length) }, seconds)
        } else if (event.type === 'turn.completed' && event.usage !== null) {
          const usage = event.usage as { input_tokens: number, output_tokens: number }
          tokens.inc({ direction: 'input' }, usage.input_tokens)
          tokens.inc({ direction: 'output' }, usage.output_tokens)
        }
      }
    },
    read: async () => ({ contentType: registry.contentType, body: await registry.metrics() })
  }
}
