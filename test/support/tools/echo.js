// A tool in plain JavaScript: nothing is imported, the default export is the tool.
export default {
  name: 'echo',
  description: 'Gives back what it is given.',
  effects: 'read',
  parameters: { type: 'object', properties: { value: {} }, required: ['value'], additionalProperties: false },
  run: ({ value }) => value
}
