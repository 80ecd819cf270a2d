/**
 * Which of the offered media types an `Accept` header wants (RFC 9110, 12.5.1): the highest `q` wins, then the one named most exactly,
 * then the first offered. Undefined when it wants none of them. No header: the first.
 */
export function preferred<T extends string> (accept: string | undefined, offers: readonly [T, ...T[]]): T | undefined {
  if (accept === undefined || accept.trim() === '') return offers[0]
  const ranges = accept.split(',').slice(0, 64).map(range)
  let best: { offer: T, q: number, exactness: number } | undefined
  for (const offer of offers) {
    const type = `${offer.split('/')[0]}/*`
    const match = ranges
      .map(({ name, q }) => ({ offer, q, exactness: name === offer ? 2 : name === type ? 1 : name === '*/*' ? 0 : -1 }))
      .filter(({ exactness }) => exactness >= 0)
      .sort((a, b) => b.exactness - a.exactness)[0]
    if (match === undefined || match.q === 0) continue
    if (best === undefined || match.q > best.q || (match.q === best.q && match.exactness > best.exactness)) best = match
  }
  return best?.offer
}

function range (text: string): { name: string, q: number } {
  const [name, ...parameters] = text.split(';').map((part) => part.trim().toLowerCase()) as [string, ...string[]]
  const weight = parameters.find((parameter) => parameter.startsWith('q='))
  const q = weight === undefined ? 1 : Number(weight.slice(2))
  return { name, q: q >= 0 && q <= 1 ? q : 0 }
}
