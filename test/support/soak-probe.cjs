// Preloaded into the processes of the soak test: on SIGWINCH collects all garbage, then says in one line of JSON what is still held.
const { setFlagsFromString } = require('node:v8')
const { runInNewContext } = require('node:vm')

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc')

process.on('SIGWINCH', () => {
  // Twice: what a finalizer lets go of in the first goes in the second.
  collect()
  setTimeout(() => {
    collect()
    const { rss, heapUsed, external } = process.memoryUsage()
    const handles = {}
    for (const kind of process.getActiveResourcesInfo()) handles[kind] = (handles[kind] ?? 0) + 1
    process.stdout.write(`${JSON.stringify({ msg: 'probe', rss, heapUsed, external, handles })}\n`)
  }, 20)
})
