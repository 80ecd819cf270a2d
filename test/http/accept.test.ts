import t from 'tap'
import { preferred } from '../../src/http/accept.js'
import { waitOf } from '../../src/http/prefer.js'

t.test('Accept: the highest q wins, then the most exact, then the first offered', async (t) => {
  const offers = ['text/event-stream', 'application/json'] as const
  for (const [accept, wanted] of [
    [undefined, 'text/event-stream'], ['', 'text/event-stream'], ['*/*', 'text/event-stream'], ['application/json', 'application/json'], ['APPLICATION/JSON', 'application/json'],
    ['application/json, text/plain, */*', 'application/json'], ['text/event-stream;q=0.4, application/json;q=0.5', 'application/json'],
    ['text/*;q=0.9, application/json;q=0.5', 'text/event-stream'], ['*/*, text/event-stream;q=0', 'application/json'], ['application/*', 'application/json'],
    ['text/html', undefined], ['application/json;q=0', undefined], ['application/json;q=7', undefined], ['application/json;q=x', undefined], ['json', undefined], [',,;', undefined],
    ['application/json; charset=utf-8 ; q=0.3', 'application/json']
  ] as const) t.equal(preferred(accept, offers), wanted, String(accept))
})

t.test('Prefer: wait is found among other preferences, capped, and nothing else is taken for it', async (t) => {
  for (const [prefer, seconds] of [
    [undefined, null], ['wait=5', 5], ['respond-async, wait=5', 5], ['wait = "10"', 10], ['Wait=5', 5], [['respond-async', 'wait=3'], 3], ['handling=lenient; x=1, wait=2', 2],
    ['wait=601', 600], ['wait=0', 0], ['wait=-1', null], ['wait=1.5', null], ['wait', null], ['await=5', null], ['wait=5s', null]
  ] as const) t.equal(waitOf(prefer as string | string[] | undefined), seconds, String(prefer))
})
