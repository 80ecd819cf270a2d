import { post, run } from './client.js'

/** Milliseconds, of a number of interrupts: until the message was accepted, and until the next LLM request arrived. */
export interface Interrupts { accepted: number[], asked: number[] }

/**
 * Starts a run and interrupts it `count` times, each time as soon as `busy` has come, then cancels it.
 * @param newest when the newest requests reached the model server, in milliseconds since 1970
 */
export async function interrupts (
  origin: string, body: object, busy: string, count: number, newest: () => Promise<{ arrived: number }[]>
): Promise<Interrupts> {
  const accepted: number[] = []
  const asked: number[] = []
  let address = ''
  let heard: () => void = () => { /* nobody waits yet */ }
  let seen = 0
  const ended = run(origin, body, {
    onOpen: (location) => { address = location },
    onEvent: (type) => {
      if (type !== busy) return
      seen++
      heard()
    }
  })
  const early = ended.then(({ terminal }) => { throw new Error(`the run ended with ${terminal} before it was interrupted ${count} times`) })
  early.catch(() => { /* it may end once we are done */ })
  for (let i = 0; i < count; i++) {
    while (seen <= i) await Promise.race([new Promise<void>((resolve) => { heard = resolve }), early])
    // What began the turn is told before its LLM request has arrived.
    await settled(newest)
    const at = performance.timeOrigin + performance.now()
    await post(`${origin}${address}/messages`, { content: `instead ${i}`, mode: 'interrupt' })
    accepted.push(performance.timeOrigin + performance.now() - at)
    for (;;) {
      const next = (await newest()).find(({ arrived }) => arrived > at)
      if (next === undefined) continue
      asked.push(next.arrived - at)
      break
    }
  }
  await post(`${origin}${address}/cancel`, {})
  await ended
  return { accepted, asked }
}

/** Resolves once no new request has come for 20 ms. */
async function settled (newest: () => Promise<{ arrived: number }[]>): Promise<void> {
  for (let before = NaN; ;) {
    const last = (await newest()).at(-1)?.arrived
    if (last === before) return
    before = last ?? NaN
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}
