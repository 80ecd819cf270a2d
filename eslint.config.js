import stylistic from '@stylistic/eslint-plugin'
import tseslint from 'typescript-eslint'

// Imports run one way: core ← store ← engine ← queue ← services ← plugins, routes, server, worker (ARCHITECTURE.md).
// Each layer names what of the code that works lies above it; schemas and http have none above them but plugins and routes.
const layers = {
  core: ['../store', '../engine', '../queue', '../redis', '../services', '../app', '../server', '../worker', '../config', '../http'],
  redis: ['../core', '../store', '../engine', '../queue', '../services', '../app', '../server', '../worker'],
  store: ['../engine', '../queue', '../services', '../app', '../server', '../worker'],
  engine: ['../queue', '../services', '../app', '../server', '../worker', '../redis'],
  queue: ['../services', '../app', '../server', '../worker']
}

const forbid = (names) => ({
  patterns: names.map((name) => ({ group: [`**/${name.slice(3)}/**`, `**/${name.slice(3)}.js`], message: 'imports run one way: see ARCHITECTURE.md' }))
})

export default tseslint.config(
  { ignores: ['dist/**', 'node_modules/**', '.tap/**', '.interlock/**', '.cache/**'] },
  ...tseslint.configs.recommended,
  stylistic.configs.customize({ semi: false, quotes: 'single', indent: 2, commaDangle: 'never', braceStyle: '1tbs', arrowParens: true }),
  {
    rules: {
      '@stylistic/space-before-function-paren': ['error', 'always'],
      '@stylistic/max-len': ['error', { code: 160, ignoreStrings: true, ignoreTemplateLiterals: true, ignoreRegExpLiterals: true, ignoreUrls: true }],
      '@stylistic/max-statements-per-line': ['error', { max: 2 }],
      '@stylistic/multiline-ternary': 'off',
      '@stylistic/member-delimiter-style': 'off',
      '@stylistic/operator-linebreak': 'off',
      '@stylistic/arrow-parens': 'off',
      '@stylistic/quote-props': ['error', 'as-needed'],
      '@stylistic/indent-binary-ops': 'off',
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_', caughtErrors: 'none' }],
      '@typescript-eslint/consistent-type-imports': 'error',
      'no-console': 'error',
      eqeqeq: ['error', 'always', { null: 'ignore' }]
    }
  },
  { files: ['src/demo/**', 'test/**', 'src/openapi.ts'], rules: { 'no-console': 'off' } },
  { files: ['**/*.cjs'], rules: { '@typescript-eslint/no-require-imports': 'off' } },
  {
    // A row of a table of cases reads better on one line.
    files: ['test/**'],
    rules: { '@stylistic/max-len': ['error', { code: 200, ignoreStrings: true, ignoreTemplateLiterals: true, ignoreRegExpLiterals: true, ignoreUrls: true }] }
  },
  ...Object.entries(layers).map(([layer, above]) => ({
    files: [`src/${layer}/**/*.ts`],
    rules: { 'no-restricted-imports': ['error', forbid(above)] }
  })),
  {
    // The core is a function of its arguments: time, ids and chance come in with the command.
    files: ['src/core/**/*.ts'],
    rules: {
      'no-restricted-imports': ['error', {
        patterns: [
          ...forbid(layers.core).patterns,
          { regex: '^(?!\\./|typebox)', message: 'core imports only typebox and itself' }
        ]
      }],
      'no-restricted-globals': ['error', 'process', 'setTimeout', 'setInterval', 'setImmediate', 'fetch', 'performance', 'crypto', 'console', 'Buffer'],
      'no-restricted-properties': ['error',
        { object: 'Math', property: 'random', message: 'chance comes in with the command' },
        { object: 'Date', property: 'now', message: 'time comes in with the command' }
      ],
      'no-restricted-syntax': ['error', { selector: 'NewExpression[callee.name=\'Date\'][arguments.length=0]', message: 'time comes in with the command' }]
    }
  }
)
