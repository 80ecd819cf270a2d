import fc from 'fast-check'
import { OPS, type Move } from './schedule-stage.js'

/** A whole schedule: up to 150 things that happen to one conversation, in any order. Shrinks to few and plain ones. */
export const schedules: fc.Arbitrary<Move[]> = fc.array(fc.tuple(fc.nat(OPS - 1), fc.nat(2 ** 31 - 1)), { maxLength: 150, size: 'max' })
