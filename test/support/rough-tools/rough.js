// Tools that harm the process they run in. Plain JavaScript, for processes that run compiled code.
const parameters = { type: 'object', properties: { ms: { type: 'integer' }, value: {} }, additionalProperties: false }

export default [
  {
    name: 'block',
    description: 'Holds up the whole process at its first attempt, as a mountain of JSON does.',
    effects: 'read',
    parameters,
    run ({ ms, value }, { attempt }) {
      const until = performance.now() + (attempt === 1 ? ms : 0)
      while (performance.now() < until);
      return value
    }
  },
  {
    name: 'poison',
    description: 'Kills the process.',
    effects: 'read',
    parameters,
    run: () => process.kill(process.pid, 'SIGKILL')
  },
  { name: 'good', description: 'Gives back what it is given.', effects: 'read', parameters, run: ({ value }) => value }
]
