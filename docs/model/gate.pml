/*
 * The gate of a conversation, for Spin 6: one run of one conversation, two workers, and everything that may happen to them.
 * See README.md for what is left out and why. Each action below is one step of the code, and others may happen between any two:
 *
 *   read      the row is loaded, and what to do is decided on it        src/engine/execute.ts, src/core/transition.ts
 *   commit    stored if the row is still the one that was read          src/store/lua/commit.lua
 *   hint      only then is the queue told                               src/core/schedule.ts (wanted)
 *
 * Switched off one at a time, each of these must make the check fail:
 *   NO_VERSION       a commit does not compare the version
 *   NO_FENCE         the answer to a turn is taken from whoever brings it
 *   NO_SWEEP         nobody looks for lapsed claims and lost hints
 *   NO_TOKEN         a commit that is sent again is not recognised
 *   VACUOUS_BARRIER  the barrier asks only the calls that somebody has claimed, and opens when that is none
 */

mtype = { due, claimed, batch, ended }

/* Of calls. `unknown`: a write whose worker was lost; `cut`: cancelled. */
mtype = { none, open, done, unknown, cut }

#define READ 0
#define WRITE 1
#define SWEEP 3
#define PERSON 4
#define STOP 5

/* The row. */
mtype phase = due
byte turn = 1            /* the one that is due, claimed, or whose batch is open */
bool begun               /* it was claimed before: `attempt > 0` */
byte owner               /* the worker that has claimed it */
mtype call[2] = none
byte claimant[2]         /* per call: the worker that has claimed it */
bool waiting             /* an accepted message that is not in the ledger */

/* What others know of the row: whether what they have read still stands (the version), and whether their fence is the row's. Numbers that only grow are
   compared for nothing else, so bits will do. */
bool current[6]
bool fenced[3]

/* Beside the row. */
bool hint                /* a job: "advance this conversation" */
byte lease               /* who may pay for an LLM call */
bool sign[3]             /* signs of life */
bool dead[3]

/* What may go wrong, and how often. */
byte crashes, pauses, lost, doubled

/* What is observed. */
bool answered[6], linked[2], written, asked, accepted, delivered

#ifndef CRASHES
#define CRASHES 1
#endif

#ifdef NO_VERSION
#define STANDS(p) true
#else
#define STANDS(p) current[p]
#endif

#ifdef NO_FENCE
#define MAY_ANSWER(w) (phase == claimed)
#else
#define MAY_ANSWER(w) (phase == claimed && owner == w && fenced[w])
#endif

#define IS_OPEN(c) (call[c] == open)
#define IS_FREE(c) (call[c] == open && claimant[c] == 0)
#define WANTED (phase == due || phase == batch && (IS_FREE(READ) || IS_FREE(WRITE)))
#define CLAIMS(w) (phase == claimed && owner == w || claimant[READ] == w || claimant[WRITE] == w)

#ifdef VACUOUS_BARRIER
#define HOLDS_BARRIER(c) (call[c] == open && claimant[c] != 0)
#else
#define HOLDS_BARRIER(c) IS_OPEN(c)
#endif

/* Every change begins so: it is the only one made on the row as it was read, and nothing follows the end. */
inline change () {
  assert(phase != ended);
  current[1] = false; current[2] = false; current[SWEEP] = false; current[PERSON] = false; current[STOP] = false
}

inline move_fence () { fenced[1] = false; fenced[2] = false }

inline deliver () {
  if
  :: waiting -> assert(accepted && !delivered); delivered = true; waiting = false
  :: else
  fi
}

/* A result enters the ledger: once, and only if there is one. */
inline link_one (c) {
  assert(call[c] != open);
  if
  :: call[c] == done || call[c] == unknown -> assert(!linked[c]); linked[c] = true
  :: else
  fi;
  claimant[c] = 0
}

inline link () { link_one(READ); link_one(WRITE); call[READ] = none; call[WRITE] = none }

inline cancel_open () {
  if :: IS_OPEN(READ) -> call[READ] = cut :: else fi;
  if :: IS_OPEN(WRITE) -> call[WRITE] = cut :: else fi;
  link()
}

inline next_turn () { phase = due; turn++; begun = false; owner = 0 }

inline end_run () {
  deliver();
  phase = ended; owner = 0;
  move_fence()
}

inline claim_turn (w) {
  assert(turn < 6);
  if
  :: !begun -> deliver()
  :: else
  fi;
  phase = claimed; owner = w; begun = true;
  /* A fence that was counted on from an old row is the one that somebody else has: the others keep theirs. */
  if :: current_was -> move_fence() :: else fi;
  fenced[w] = true;
  assert(!(fenced[1] && fenced[2]))
}

/* Whoever opens a barrier or ends a turn may go on with the next one in the same commit, or leave it to others. */
inline perhaps_claim (w) {
  if
  :: phase == due -> if :: claim_turn(w) :: skip fi
  :: else
  fi
}

inline close_batch () {
  if
  :: !HOLDS_BARRIER(READ) && !HOLDS_BARRIER(WRITE) -> link(); next_turn()
  :: else
  fi
}

/* What somebody has read is old as soon as another commit was stored. `stored` is what the sender of a commit cannot know when no reply comes. */
#define CRASH if :: atomic { crashes < CRASHES -> crashes++; dead[id] = true; current[id] = false; goto gone } :: skip fi

proctype Worker (byte id) {
  byte work;          /* the turn it works for */
  byte c;             /* the call it runs, and 2: none */
  bool stored, current_was;

idle:
  atomic { work = 0; c = 2; stored = false }
  if
  :: atomic { hint -> if :: hint = false :: doubled < 1 -> doubled++ fi }
  :: phase == ended -> goto fin
  fi;

advance:
  CRASH;
  atomic {
    if
    :: phase == due -> work = turn
    :: phase == batch && IS_FREE(READ) -> c = READ
    :: phase == batch && IS_FREE(WRITE) -> c = WRITE
    :: else -> goto idle
    fi;
    current[id] = true
  }
  atomic {
    if
    :: !STANDS(id) -> work = 0; c = 2; goto advance
    :: else
    fi;
    current_was = current[id];
    change();
    if
    :: c < 2 -> claimant[c] = id
    :: else -> claim_turn(id)
    fi;
    current_was = false;
    if
    :: lost < 1 -> lost++;
#ifdef NO_TOKEN
      work = 0; c = 2; goto advance
#endif
    :: true
    fi
  }
  if
  :: c < 2 -> goto perform
  :: else
  fi;

ask:
  CRASH;
  if
  :: atomic { lease == 0 -> lease = id }
  :: atomic { !fenced[id] -> goto idle }
  fi;
  /* The LLM call. */
  CRASH;

answer:
  atomic {
    if
    :: !MAY_ANSWER(id) -> assert(!stored); goto release
    :: else -> current[id] = true
    fi
  }
  atomic {
    if
    :: !STANDS(id) -> goto answer
    :: else
    fi;
    current_was = current[id];
    change();
    assert(fenced[id] && !answered[work]);
    answered[work] = true; stored = true; fenced[id] = false;
    if
    :: !asked -> asked = true; phase = batch; owner = 0; call[READ] = open; call[WRITE] = open;
      if
      :: claimant[READ] = id; claimant[WRITE] = id
      :: claimant[WRITE] = id
      :: skip
      fi;
#ifdef VACUOUS_BARRIER
      close_batch();
      perhaps_claim(id)
#endif
    :: asked && waiting -> next_turn(); deliver(); perhaps_claim(id)
    :: asked && !waiting -> end_run()
    fi;
    current_was = false;
    if
    :: lost < 1 -> lost++;
#ifdef NO_TOKEN
      goto answer
#endif
    :: true
    fi
  }
release:
  atomic {
    if :: lease == id -> lease = 0 :: else fi;
    stored = false; work = 0
  }

/* What it has claimed in that commit, or else what the state now wants of others. */
proceed:
  CRASH;
  atomic {
    if
    :: phase == claimed && owner == id && fenced[id] -> work = turn; goto ask
    :: claimant[READ] == id -> c = READ; goto perform
    :: claimant[WRITE] == id -> c = WRITE; goto perform
    :: else -> if :: WANTED -> hint = true :: else fi
    fi
  }
  goto idle;

perform:
  CRASH;
  atomic {
    if
    :: c == WRITE -> assert(!written); written = true
    :: else
    fi
  }
  CRASH;

result:
  atomic {
    if
    :: !(phase == batch && IS_OPEN(c) && claimant[c] == id) -> goto refused
    :: else -> current[id] = true
    fi
  }
  atomic {
    if
    :: !STANDS(id) -> goto result
    :: else
    fi;
    current_was = current[id];
    change();
    call[c] = done; claimant[c] = 0; stored = true;
    close_batch();
    perhaps_claim(id);
    current_was = false;
    if
    :: lost < 1 -> lost++;
#ifdef NO_TOKEN
      goto result
#endif
    :: true
    fi
  }
  atomic { stored = false; c = 2 }
  goto proceed;

/* Its result becomes an orphan. It must not be in the ledger as well. */
refused:
  atomic { assert(!stored); c = 2; goto proceed }

/* A process that takes its place has another name: it does not know what this one had claimed. */
gone:
  atomic { work = 0; c = 2; stored = false; current_was = false }
  if
  :: atomic { !CLAIMS(id) && lease != id && !sign[id] -> dead[id] = false; sign[id] = true; goto idle }
  :: phase == ended
  fi;
fin:
  atomic { work = 0; c = 0; stored = false; sign[id] = false; dead[id] = false; current[id] = false }
}

/* Leases and signs of life run out: of the dead for sure, of the living when they are paused or cut off. Those show life again. */
proctype Time () {
  do
  :: atomic { phase != ended && lease != 0 && dead[lease] -> lease = 0 }
  :: atomic { phase != ended && lease != 0 && pauses < 1 -> pauses++; lease = 0 }
  :: atomic { phase != ended && sign[1] && dead[1] -> sign[1] = false }
  :: atomic { phase != ended && sign[2] && dead[2] -> sign[2] = false }
  :: atomic { phase != ended && sign[1] && pauses < 1 -> pauses++; sign[1] = false }
  :: atomic { phase != ended && sign[2] && pauses < 1 -> pauses++; sign[2] = false }
  :: atomic { phase != ended && !sign[1] && !dead[1] -> sign[1] = true }
  :: atomic { phase != ended && !sign[2] && !dead[2] -> sign[2] = true }
  :: phase == ended -> break
  od
}

#ifndef NO_SWEEP
proctype Sweep () {
  byte c = 2;
  do
  :: atomic { WANTED && !hint -> hint = true }
  :: atomic { phase == claimed && !sign[owner] -> current[SWEEP] = true }
    atomic {
      if
      :: STANDS(SWEEP) -> change(); phase = due; owner = 0; move_fence()
      :: else
      fi
    }
  :: atomic {
      phase == batch && (IS_OPEN(READ) && claimant[READ] != 0 && !sign[claimant[READ]] || IS_OPEN(WRITE) && claimant[WRITE] != 0 && !sign[claimant[WRITE]]) ->
      current[SWEEP] = true;
      c = (IS_OPEN(READ) && claimant[READ] != 0 && !sign[claimant[READ]] -> READ : WRITE)
    }
    atomic {
      if
      :: STANDS(SWEEP) -> change(); claimant[c] = 0;
        /* What only reads may be run again; whether a write took effect nobody knows. */
        if :: c == WRITE -> call[WRITE] = unknown; close_batch() :: else fi
      :: else
      fi;
      c = 2
    }
  :: phase == ended -> break
  od
}
#endif

/* Somebody sends one message in mid-run, at any time or never: it interrupts, or it waits for the next turn. */
proctype Person () {
  bool interrupts;
  if
  :: interrupts = true
  :: interrupts = false
  :: goto out
  fi;
post:
  atomic {
    if
    :: phase == ended -> goto out
    :: else -> current[PERSON] = true
    fi
  }
  atomic {
    if
    :: !STANDS(PERSON) -> goto post
    :: else
    fi;
    change();
    if
    :: interrupts && phase == batch -> cancel_open(); next_turn(); move_fence()
    :: interrupts && phase != batch && begun -> next_turn(); move_fence()
    :: else
    fi;
    accepted = true; waiting = true
  }
  /* The API may die here. */
  if :: atomic { WANTED -> hint = true } :: skip fi;
out:
  interrupts = false
}

/* Somebody cancels the run, at any time or never. */
proctype Stop () {
  if
  :: skip
  :: goto out
  fi;
cancel:
  atomic {
    if
    :: phase == ended -> goto out
    :: else -> current[STOP] = true
    fi
  }
  atomic {
    if
    :: !STANDS(STOP) -> goto cancel
    :: else
    fi;
    change();
    if :: phase == batch -> cancel_open() :: else fi;
    end_run()
  }
out:
  skip
}

init {
  atomic {
    sign[1] = true; sign[2] = true; hint = true;
    run Worker(1); run Worker(2); run Time();
#ifndef NO_SWEEP
    run Sweep();
#endif
    run Person(); run Stop()
  }
}

/* Fairness is asked of the checker (-f): whoever can go on for ever does so some time. */
ltl live { <> (phase == ended) && [] (accepted -> <> delivered) }
