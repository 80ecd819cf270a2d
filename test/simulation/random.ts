/** A stream of chance that is the same for the same seed and name, on every machine. */
export interface Random {
  /** 0 to 1, 1 excluded. */
  next: () => number
  /** A whole number from `min` to `max`. */
  int: (min: number, max: number) => number
  chance: (probability: number) => boolean
  pick: <T>(from: readonly T[]) => T
}

export function createRandom (seed: number, name: string): Random {
  let a = seed >>> 0
  for (let i = 0; i < name.length; i++) a = Math.imul(a ^ name.charCodeAt(i), 0x9e3779b1) ^ (a >>> 15)
  // mulberry32
  const next = () => {
    a = (a + 0x6d2b79f5) | 0
    let t = Math.imul(a ^ (a >>> 15), 1 | a)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
  return {
    next,
    int: (min, max) => min + Math.floor(next() * (max - min + 1)),
    chance: (probability) => next() < probability,
    pick: (from) => from[Math.floor(next() * from.length)] as typeof from[number]
  }
}
