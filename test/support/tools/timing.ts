import { setTimeout as wait } from 'node:timers/promises'
import { Type } from 'typebox'
import { defineTool } from '../../../src/engine/tools/module-tools.js'

const parameters = Type.Object({
  ms: Type.Integer({ minimum: 0, maximum: 60_000 }),
  value: Type.Optional(Type.Unknown())
}, { additionalProperties: false })

/** Heeds the abort. */
const sleep = defineTool({
  name: 'sleep',
  description: 'Waits, then answers `value`.',
  effects: 'read',
  parameters,
  run: ({ ms, value }, { signal }) => wait(ms, value, { signal })
})

/** Does not. */
const deafSleep = defineTool({
  name: 'deaf_sleep',
  description: 'Waits, whatever happens, then answers `value`.',
  parameters,
  run: ({ ms, value }) => wait(ms, value)
})

const hang = defineTool({
  name: 'hang',
  description: 'Never answers.',
  idempotent: true,
  timeout_ms: 60_000,
  placement: 'spread',
  run: () => new Promise(() => {})
})

export default [sleep, deafSleep, hang]
