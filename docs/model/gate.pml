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
 *   NO_TOKEN         a commit whose reply was lost is not recognised when it is sent again
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
bool answered
byte owner               /* the worker that has claimed it */
mtype call[2] = none
byte claimant[2]         /* per call: the worker that has claimed it */
bool waiting             /* an accepted message that is not in the ledger */

/*
 * What others know of the row: whether what they have read still stands (the version), and whether their fence is the row's. Numbers that only grow
 * are compared for nothing else, so bits will do.
 */
bool current[6]
bool fenced[3]

/* Beside the row. */
bool hint                /* a job: "advance this conversation" */
byte lease               /* who may pay for an LLM call */
bool sign[3]             /* signs of life */
bool dead[3]

/* What is observed. */
bool linked[2], written, asked, accepted, delivered

/* How much may go wrong: a crash, a pause beyond the lease or the sign of life, a hint that comes twice, a reply that is lost. */
#ifndef FAULTS
#define FAULTS 2
#endif
byte faults

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
#define IS_LOST(c) (call[c] == open && claimant[c] != 0 && !sign[claimant[c]])
#define WANTED (phase == due || phase == batch && (IS_FREE(READ) || IS_FREE(WRITE)))
#define CLAIMS(w) (phase == claimed && owner == w || claimant[READ] == w || claimant[WRITE] == w)

#ifdef VACUOUS_BARRIER
#define HOLDS_BARRIER(c) (call[c] == open && claimant[c] != 0)
#else
#define HOLDS_BARRIER(c) IS_OPEN(c)
#endif

/* Every change begins so: what others have read is old from here on, and nothing follows the end. */
inline change () {
  assert(phase != ended);
  current[1] = false; current[2] = false; current[SWEEP] = false; current[PERSON] = false; current[STOP] = false
}

inline move_fence () { fenced[1] = false; fenced[2] = false }

/* An accepted message enters the ledger: once. */
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
  call[c] = none; claimant[c] = 0
}

inline link () { link_one(READ); link_one(WRITE) }

inline cut_open () {
  if :: IS_OPEN(READ) -> call[READ] = cut :: else fi;
  if :: IS_OPEN(WRITE) -> call[WRITE] = cut :: else fi;
  link()
}

inline next_turn () { phase = due; turn++; begun = false; answered = false; owner = 0 }

inline end_run () {
  deliver();
  phase = ended; owner = 0;
  move_fence()
}

inline claim_turn (w, was_current) {
  if
  :: !begun -> deliver()
  :: else
  fi;
  phase = claimed; owner = w; begun = true;
  /* The next fence after one that is old is a fence that somebody else has. */
  if :: was_current -> move_fence() :: else fi;
  fenced[w] = true;
  assert(!(fenced[1] && fenced[2]))
}

/* Whoever makes a turn due may go on with it in the same commit, or leave it to others. */
inline perhaps_claim (w) {
  if
  :: phase == due -> claim_turn(w, true)
  :: true
  fi
}

inline close_batch () {
  if
  :: !HOLDS_BARRIER(READ) && !HOLDS_BARRIER(WRITE) -> link(); next_turn()
  :: else
  fi
}

/* What is held in memory is gone; what stands in the row stays. */
#define CRASH atomic { faults < FAULTS && phase != ended -> faults++; dead[id] = true; current[id] = false; work = 0; c = 2; goto gone }

/*
 * No reply comes to a commit that was stored, and it is sent again. Its token says that it was stored: it is as if the reply had come late, which
 * any step may. Without one it seems to have lost against somebody else, and is decided again.
 */
#ifdef NO_TOKEN
#define REPLY_LOST(decide) :: faults < FAULTS -> faults++; goto decide
#else
#define REPLY_LOST(decide)
#endif

proctype Worker (byte id) {
  byte work;          /* the turn it works for; 0: none */
  byte c = 2;         /* the call it runs; 2: none */
  bool stored;        /* what it has to say was stored: only the model knows, it does not */
  bool was_current;

idle:
  if
  :: atomic { hint && phase != ended -> hint = false }
  :: atomic { hint && phase != ended && faults < FAULTS -> faults++ }
  :: phase == ended -> goto fin
  fi;

advance:
  if
  :: atomic { phase == due -> work = turn; current[id] = true }
  :: atomic { phase == batch && IS_FREE(READ) -> c = READ; current[id] = true }
  :: atomic { phase == batch && !IS_FREE(READ) && IS_FREE(WRITE) -> c = WRITE; current[id] = true }
  :: atomic { !WANTED -> goto idle }
  :: CRASH
  fi;
  if
  :: atomic { !STANDS(id) -> work = 0; c = 2; goto advance }
  :: atomic { STANDS(id) ->
      was_current = current[id];
      change();
      if
      :: c < 2 -> claimant[c] = id
      :: else -> claim_turn(id, was_current)
      fi;
      was_current = false;
      if
      :: c < 2 -> goto perform
      :: else -> goto ask
      fi
    }
  fi;

ask:
  if
  :: atomic { lease == 0 && fenced[id] -> lease = id }
  :: atomic { !fenced[id] -> work = 0; goto idle }
  :: CRASH
  fi;

/* The LLM call is under way. */
answer:
  if
  :: atomic { MAY_ANSWER(id) -> current[id] = true }
  :: atomic { !MAY_ANSWER(id) -> assert(!stored); goto proceed }
  :: CRASH
  fi;
  if
  :: atomic { !STANDS(id) -> goto answer }
  :: atomic { STANDS(id) ->
      change();
      assert(phase == claimed && fenced[id] && work == turn && !answered);
      answered = true; stored = true; fenced[id] = false; owner = 0;
      if
      :: !asked -> asked = true; phase = batch; call[READ] = open; call[WRITE] = open;
        if
        :: claimant[READ] = id; claimant[WRITE] = id
        :: claimant[WRITE] = id
        :: skip
        fi;
#ifdef VACUOUS_BARRIER
        close_batch()
#endif
      :: asked && waiting -> next_turn(); deliver(); perhaps_claim(id)
      :: asked && !waiting -> end_run()
      fi;
      if
      :: true
      REPLY_LOST(answer)
      fi
    }
  fi;

/* Goes on with what it has claimed in that commit; else says what the state now wants of others. */
proceed:
  if
  :: atomic { true ->
      if :: lease == id -> lease = 0 :: else fi;
      stored = false; work = 0; c = 2;
      if
      :: phase == claimed && owner == id && fenced[id] -> work = turn; goto ask
      :: claimant[READ] == id -> c = READ
      :: claimant[READ] != id && claimant[WRITE] == id -> c = WRITE
      :: else -> if :: WANTED -> hint = true :: else fi; goto idle
      fi
    }
  :: CRASH
  fi;

perform:
  if
  :: atomic { c == WRITE -> assert(!written); written = true }
  :: atomic { c == READ -> skip }
  :: CRASH
  fi;

/* The tool has given its result. What is refused becomes an orphan, and must not be in the ledger as well. */
result:
  if
  :: atomic { phase == batch && IS_OPEN(c) && claimant[c] == id -> current[id] = true }
  :: atomic { !(phase == batch && IS_OPEN(c) && claimant[c] == id) -> assert(!stored); goto proceed }
  :: CRASH
  fi;
  if
  :: atomic { !STANDS(id) -> goto result }
  :: atomic { STANDS(id) ->
      change();
      call[c] = done; claimant[c] = 0; stored = true;
      close_batch();
      perhaps_claim(id);
      if
      :: goto proceed
      REPLY_LOST(result)
      fi
    }
  fi;

/* A process that takes its place has another name: it does not know what this one had claimed. */
gone:
  if
  :: atomic { phase != ended && !CLAIMS(id) && lease != id && !sign[id] -> stored = false; dead[id] = false; sign[id] = true; goto idle }
  :: phase == ended
  fi;
fin:
  skip
}

/* Leases and signs of life run out: of the dead for sure, of the living when they are paused or cut off. Those show life again. */
proctype Time () {
  do
  :: atomic { lease != 0 && dead[lease] -> lease = 0 }
  :: atomic { sign[1] && dead[1] -> sign[1] = false }
  :: atomic { sign[2] && dead[2] -> sign[2] = false }
  :: atomic { lease != 0 && faults < FAULTS && phase != ended -> faults++; lease = 0 }
  :: atomic { sign[1] && faults < FAULTS && phase != ended -> faults++; sign[1] = false }
  :: atomic { sign[2] && faults < FAULTS && phase != ended -> faults++; sign[2] = false }
  :: atomic { !sign[1] && !dead[1] && phase != ended -> sign[1] = true }
  :: atomic { !sign[2] && !dead[2] && phase != ended -> sign[2] = true }
  :: phase == ended -> break
  od
}

/* Looks at what is due: hands on the claims of those that show no life, and asks again for what is wanted. */
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
  :: atomic { phase == batch && (IS_LOST(READ) || IS_LOST(WRITE)) -> current[SWEEP] = true; c = (IS_LOST(READ) -> READ : WRITE) }
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

/* Somebody sends one message in mid-run, at any time or never: it interrupts, or waits for the next turn. */
proctype Person () {
post:
  if
  :: atomic { phase != ended -> current[PERSON] = true }
  :: goto out
  fi;
  atomic {
    if
    :: !STANDS(PERSON) -> goto post
    :: else
    fi;
    change();
    if
    :: phase == batch -> cut_open(); next_turn(); move_fence()
    :: phase != batch && begun -> next_turn(); move_fence()
    :: true
    fi;
    accepted = true; waiting = true;
    /* Or the API dies before it says so. */
    if :: WANTED -> hint = true :: true fi
  }
out:
  skip
}

/* Somebody cancels the run, at any time or never. */
proctype Stop () {
cancel:
  if
  :: atomic { phase != ended -> current[STOP] = true }
  :: goto out
  fi;
  atomic {
    if
    :: !STANDS(STOP) -> goto cancel
    :: else
    fi;
    change();
    if :: phase == batch -> cut_open() :: else fi;
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
#ifndef NO_PERSON
    run Person();
#endif
#ifndef NO_STOP
    run Stop();
#endif
    skip
  }
}

/* Fairness is asked of the checker (-f): whoever can go on for ever does so some time. */
ltl live { <> (phase == ended) && [] (accepted -> <> delivered) }
