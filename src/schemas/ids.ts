import { Type } from 'typebox'

/** Ids are checked by pattern before anything is looked up (FAULTS 4.3): nothing else reaches a Redis key. */
export const RunId = Type.String({ pattern: '^run_[0-9A-HJKMNP-TV-Z]{28}$', title: 'RunId' })
export const CONVERSATION_ID = '^[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}$'
/** Minted `conv_` + ULID, or chosen by the client at `POST /conversations`. */
export const ConversationId = Type.String({ pattern: CONVERSATION_ID, title: 'ConversationId' })
export const CallId = Type.String({ pattern: '^call_[0-9A-HJKMNP-TV-Z]{26}$', title: 'CallId' })
export const MessageId = Type.String({ pattern: '^msg_[0-9A-HJKMNP-TV-Z]{26}$', title: 'MessageId' })
