import t from 'tap'
import { parseRedisUrl } from '../../src/redis/url.js'

t.test('an address of one server gives its host, port, database and credentials', async (t) => {
  t.strictSame(parseRedisUrl('redis://cache.example'), { kind: 'single', options: { host: 'cache.example', port: 6379, db: 0 } })
  t.strictSame(parseRedisUrl('redis://me:p%40ss@10.0.0.1:7000/3'), { kind: 'single', options: { host: '10.0.0.1', port: 7000, db: 3, username: 'me', password: 'p@ss' } })
  t.strictSame(parseRedisUrl('redis://:secret@[::1]:7000'), { kind: 'single', options: { host: '::1', port: 7000, db: 0, password: 'secret' } })
  t.strictSame(parseRedisUrl('rediss://cache.example:6380/'), { kind: 'single', options: { host: 'cache.example', port: 6380, db: 0, tls: {} } })
})

t.test('a unix socket is its absolute path, with or without a scheme', async (t) => {
  for (const url of ['/run/redis.sock', 'unix:///run/redis.sock', 'redis+unix:///run/redis.sock']) {
    t.strictSame(parseRedisUrl(url), { kind: 'single', options: { path: '/run/redis.sock', db: 0 } })
  }
  t.strictSame(parseRedisUrl('/run/redis.sock?db=2&password=x'), { kind: 'single', options: { path: '/run/redis.sock', db: 2, password: 'x' } })
})

t.test('a cluster is named by some of its nodes', async (t) => {
  t.strictSame(parseRedisUrl('redis+cluster://a,b:7001,[::1]:7002'), {
    kind: 'cluster', nodes: [{ host: 'a', port: 6379 }, { host: 'b', port: 7001 }, { host: '::1', port: 7002 }], options: {}
  })
  t.strictSame(parseRedisUrl('rediss+cluster://me:a:b@a:7000'), {
    kind: 'cluster', nodes: [{ host: 'a', port: 7000 }], options: { username: 'me', password: 'a:b', tls: {} }
  })
})

t.test('what is no address, or would be half ignored, is refused', async (t) => {
  for (const url of [
    '', 'localhost', 'localhost:6379', 'http://a', 'redis:', 'redis://', 'redis://a:99999', 'redis://a:x', 'redis://a/x', 'redis://a/0/1', 'redis://a?tls=1', 'redis://a#x',
    'redis://a:%zz@b', 'redis+cluster://', 'redis+cluster://a,,b', 'redis+cluster://a:x', 'redis+cluster://a/1', 'redis+sentinel://a', './redis.sock', 'unix://redis.sock', '//a', '/s?db=x', '/s?tls=1'
  ]) t.equal(parseRedisUrl(url), undefined, JSON.stringify(url))
})
