/** Bugs in the core that its tables and its sequences of commands must find: in one of its files, a text that stands there once, and what it becomes. */
export const CORE_BUGS: { bug: string, find: string, put: string }[] = [
  // Turns and fences
  { bug: 'an old fence may still write', find: ' || run.phase.fence !== fence) return null', put: ') return null' },
  { bug: 'a fence is only the next number', find: 'Math.max(draft.state.fence + 1, draft.now)', put: 'draft.state.fence + 1' },
  { bug: 'a turn is claimed without a new fence', find: 'phase.fence = nextFence(draft)', put: 'phase.fence = state.fence' },
  { bug: 'a claimed turn is claimed again', find: 'if (phase.worker !== null || phase.ready_at > now) return false', put: 'if (phase.ready_at > now) return false' },
  { bug: 'a retry does not wait', find: 'if (phase.worker !== null || phase.ready_at > now) return false', put: 'if (phase.worker !== null) return false' },
  { bug: 'a turn that is put back stays with its worker', find: 'Object.assign(phase, { worker: null, fence: 0, ready_at', put: 'Object.assign(phase, { ready_at' },
  { bug: 'every try starts its turn anew', find: 'if (phase.attempt === 1) {', put: 'if (phase.attempt >= 1) {' },
  { bug: 'a fallback has no tries of its own', find: '    held.phase.tries = 0\n', put: '' },
  { bug: 'fallbacks end one too early', find: 'held.phase.model + 1 < held.run.models.length', put: 'held.phase.model + 2 < held.run.models.length' },
  { bug: 'a turn may lose one worker more', find: 'phase.losses >= MAX_TURN_LOSSES', put: 'phase.losses > MAX_TURN_LOSSES' },
  { bug: 'max_turns is off by one', find: 'run.answers >= maxTurns', put: 'run.answers > maxTurns' },
  { bug: 'max_total_tokens is off by one', find: 'run.usage.total_tokens >= maxTokens', put: 'run.usage.total_tokens > maxTokens' },
  { bug: 'run_timeout_ms is off by one', find: 'command.at >= timeout', put: 'command.at > timeout' },
  { bug: 'a failed try costs nothing', find: '  count(held.run, command.usage)\n  if (command.tried', put: '  if (command.tried' },
  { bug: 'a lost lease uses up a try', find: 'if (command.tried) held.phase.tries++', put: 'held.phase.tries++' },
  { bug: 'a handover counts as a loss', find: 'reason === \'handed_over\' ? 0 : 1', put: '1' },

  { bug: 'a try that gave no answer was no LLM call', find: '    run.usage.llm_calls++\n', put: '    run.usage.llm_calls = run.turns + 1\n' },
  { bug: 'a lost worker is told to stop twice', find: '    phase.worker = null\n    if (phase.losses', put: '    if (phase.losses' },

  // Batches
  { bug: 'a result counts twice', find: 'call === undefined || call.status !== \'running\' || call.attempt', put: 'call === undefined || call.attempt' },
  { bug: 'a result of an earlier attempt counts', find: ' || call.attempt !== attempt) return null', put: ') return null' },
  { bug: 'the barrier forgets an unanswered call', find: 'phase === null || phase.calls.some(isOpen)', put: 'phase === null || phase.calls.filter(isOpen).length > 1' },
  { bug: 'the barrier never opens', find: 'phase === null || phase.calls.some(isOpen)', put: 'phase !== null || phase === null' },
  { bug: 'results enter the ledger in the wrong order', find: '(a, b) => a.settled - b.settled) : kept\n', put: '(a, b) => a.settled - b.settled) : [...kept].reverse()\n' },
  { bug: 'message_order is ignored', find: 'run.policy.message_order === \'completion\'', put: 'run.policy.message_order === null' },
  { bug: 'more calls run than may', find: '    if (room <= 0) break\n', put: '' },
  { bug: 'the last call asked for starts first', find: '.sort((a, b) => a.rank - b.rank)', put: '.sort((a, b) => b.rank - a.rank)' },
  { bug: 'parallel false is ignored', find: 'run.policy.parallel ? run.limits.max_tool_concurrency : 1', put: 'run.limits.max_tool_concurrency' },
  { bug: 'a call that cannot run starts', find: 'call.worker === null && call.fault === null && call.ready_at <= now', put: 'call.worker === null && call.ready_at <= now' },
  { bug: 'a call that cannot run never fails', find: 'call.status === \'pending\' && call.fault !== null', put: 'call.status === \'suspended\' && call.fault !== null' },
  { bug: 'a worker gets more calls than it has room for', find: 'free.slice(0, executor.calls)', put: 'free' },
  { bug: 'placement is ignored', find: ' && (executor.spread || call.rules.placement === \'local\')', put: '' },
  { bug: 'a lost call that wrote runs again', find: '(call.rules.effects === \'read\' || call.rules.idempotent) &&', put: 'call.since > 0 &&' },
  { bug: 'a lost call never runs again', find: '(call.rules.effects === \'read\' || call.rules.idempotent) &&', put: 'call.since < 0 &&' },
  { bug: 'a call that runs again keeps its attempt', find: '  call.attempt++\n', put: '  call.attempt = 1\n' },
  { bug: 'the last of two final answers counts', find: 'index(call.id) < index(run.final.call_id)', put: 'index(call.id) > index(run.final.call_id)' },
  { bug: 'fail_run fails a run that has its final answer', find: 'run.final === null && first !== undefined', put: 'first !== undefined' },
  { bug: 'fail_run is ignored', find: 'run.policy.on_error === \'fail_run\'', put: 'run.policy.on_error === null' },
  { bug: 'on_final_answer cancel stops a final answer that may yet be the first', find: 'isOpen(call) && !mayCount(call, i)', put: 'isOpen(call)' },
  { bug: 'fail_run names the failures in request order', find: 'call.status === \'failed\').sort((a, b) => a.settled - b.settled)', put: 'call.status === \'failed\')' },

  // Ends and cancellations
  { bug: 'nobody aborts the LLM call of a run that ends', find: '    abortWorker(draft, phase.worker, phase.fence, [], why)\n', put: '' },
  { bug: 'nobody aborts the calls of a run that ends', find: '  if (call.rules.uncancellable !== true || call.status === \'pending\') abortWorker(draft, call.worker, null, [call.id], reason)\n', put: '' },
  { bug: 'a cancelled run does not say that its turn was', find: 'if (stopped && phase.attempt > 0) {', put: 'if (stopped && phase.attempt > 9) {' },
  { bug: 'cancelled calls stay in the ledger', find: 'call.status === \'cancelled\' ? leavesTombstone(run, call) : keepCompleted', put: 'call.status === \'cancelled\' || keepCompleted' },
  { bug: 'results that came before a cancellation are lost', find: 'closeEarly(draft, run, phase, why, null, true)', put: 'closeEarly(draft, run, phase, why, null, false)' },
  { bug: 'a run that ends stays active', find: '  state.run = null\n  nextFence(draft)', put: '  nextFence(draft)' },
  { bug: 'a cancelled run keeps its place in the queue', find: '  state.queue = state.queue.filter((one) => one.id !== run.id)\n', put: '' },

  // Runs that wait
  { bug: 'a run is started twice', find: '  if (state.seen.includes(command.run_id)) return \'duplicate\'\n', put: '' },
  { bug: 'ids are forgotten one too early', find: 'state.seen.slice(1 - SEEN)', put: 'state.seen.slice(2 - SEEN)' },
  { bug: 'the newest run comes first', find: 'else state.queue.push(run)', put: 'else state.queue.unshift(run)' },
  { bug: 'a scheduled run does not wait for its time', find: 'run.due_at === null || run.due_at <= now)\n    if (next', put: 'run.due_at !== undefined)\n    if (next' },
  { bug: 'on_active_run "reject" is ignored', find: 'if (busy && command.on_active_run === \'reject\')', put: 'if (busy && command.on_active_run === null)' },
  { bug: 'a rolled back run stays in the ledger', find: '  draft.rewind = run.ledger_start\n', put: '' },

  // Messages
  { bug: 'a message is delivered twice', find: '  state.waiting = state.waiting.filter((message) => !messages.includes(message))\n  return', put: '  return' },
  { bug: 'a message that steers is forgotten', find: 'message.run_id === run.id && message.mode === \'steer\'', put: 'message.run_id === run.id && message.mode === \'queue\'' },
  { bug: 'an answer ends a run although a message waits', find: 'answer !== null && waiting.length === 0', put: 'answer !== null' },
  { bug: 'messages of a run that ends are lost', find: 'if (message.run_id === run.id) message.run_id = null\n  emit(', put: 'if (message.run_id === run.id) message.run_id = \'lost\'\n  emit(' },
  { bug: 'an interrupt leaves the old fence valid', find: '  run.final = null\n  run.phase = dueTurn(draft.state.turn + 1, draft.now, causes)\n', put: '  run.final = null\n' },
  { bug: 'a withdrawn message is delivered', find: 'draft.state.waiting = draft.state.waiting.filter((one) => one !== message)', put: 'draft.state.waiting = [...draft.state.waiting]' },
  { bug: 'a message can be withdrawn after the answer it kept from being final', find: '[...causedBy, ...deliver(draft, run, waiting)]', put: 'waiting.map((message) => { message.mode = \'steer\'; return message.cause })' },

  { bug: 'a delayed message goes to the run before its own', find: 'if (!state.queue.some((run) => run.id === message.run_id)) message', put: 'message' },

  // Events and texts
  { bug: 'seq has a gap', find: 'const seq = ++state.seq', put: 'const seq = state.seq += state.seq === 7 ? 2 : 1' },
  { bug: 'run_seq stands still', find: 'run_seq: ++run.run_seq', put: 'run_seq: run.run_seq + 1' },
  { bug: 'batch.completed does not say what it follows from', find: 'caused_by: phase.calls.map((call) => call.cause) }', put: 'caused_by: [] }' },
  { bug: 'message_count is counted before the messages', find: 'message_count: state.messages', put: 'message_count: state.messages - draft.messages.length' },
  { bug: 'a text is not put beside the row', find: '  put(draft, docNames.text(phase.turn), ', put: '  if (calls.length < 2) put(draft, docNames.text(phase.turn), ' },
  { bug: 'texts nobody needs any more stay', find: '  drop(draft, docNames.text(phase.turn))\n', put: '' },
  { bug: 'an input is not dropped when it has entered the ledger', find: '  drop(draft, name)\n}', put: '}' },
  { bug: 'a decision changes the state it is given', find: 'state === null ? blank(command as CreateConversation | StartRun) : clone(state)', put: 'state ?? blank(command as CreateConversation | StartRun)' },

  // Schedule
  { bug: 'nobody is wanted for calls', find: 'call.status === \'running\' && call.worker === null)\n  const jobs', put: 'call.status === \'suspended\')\n  const jobs' },
  { bug: 'nobody is wanted for a turn', find: 'if (phase.worker !== null || phase.ready_at > now) return []', put: 'return []' },
  { bug: 'nobody looks when a retry is due', find: '(readyAt > now ? readyAt : unclaimed(readyAt))', put: '(readyAt > now ? readyAt + 1000 : unclaimed(readyAt))' },
  { bug: 'nobody looks when a run times out', find: '    if (timeout !== null) times.push(timeout)\n', put: '' },
  { bug: 'nobody looks when a run is due', find: 'if (queued.due_at !== null) times.push(queued.due_at)', put: 'if (queued.due_at === 0) times.push(0)' },
  { bug: 'a run that waits behind another is looked at all the time', find: '  if (run === null) {\n', put: '  for (const one of run === null ? [] : state.queue) times.push(one.due_at ?? now)\n  if (run === null) {\n' },
  { bug: 'an attempt\'s job has the id of the one before', find: '-a${phase.attempt + 1}$', put: '-a1$' },
  { bug: 'claims of calls are not seen', find: 'isOpen(call) && call.worker !== null ?', put: 'isOpen(call) && call.worker === null ?' },

  // Transcript
  { bug: 'a call without a result is sent', find: 'if (!twice && answers.has(id)) return true', put: 'if (!twice) return true' },
  { bug: 'a result that answers nothing is sent', find: 'if (answers.has(id) || !calls.some((call) => call.call_id === id))', put: 'if (answers.has(id))' },
  { bug: 'an id is sent twice', find: '  while (used.has(id)) id += \'_\'\n  used.add(id)\n', put: '' },
  { bug: 'a finished answer is sent last', find: 'while (isFinished(messages.at(-1))) {', put: 'while (messages.length > 99) {' },
  { bug: 'half a surrogate pair is sent', find: 'return (text as string & { toWellFormed: () => string }).toWellFormed()', put: 'return text' }
]
