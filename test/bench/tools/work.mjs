// The tools of the benchmarks: they do nothing, for a while.
const parameters = { type: 'object', properties: { i: { type: 'integer' } } }
const tool = (name, ms) => ({
  name,
  description: `Answers after ${ms} ms.`,
  parameters,
  effects: 'read',
  run: ms === 0 ? ({ i }) => ({ i }) : ({ i }) => new Promise((resolve) => { setTimeout(resolve, ms, { i }) })
})

export default [tool('work', 0), tool('work_100ms', 100), tool('work_1000ms', 1000)]
