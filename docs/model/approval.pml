/*
 * A call that needs a person's consent, for Spin 6: raised when the call beside it is done, decided by the first of two people, too late after its time,
 * superseded by an interrupt whose next turn asks for consent anew, gone with a cancelled run. As in gate.pml, what is read and what is committed on it
 * are two steps, and a worker may crash or be paused between any two.
 *
 * Switched off one at a time, each of these must make the check fail:
 *   NO_VERSION        a commit does not compare the version
 *   NO_SUSPENSION_ID  a decision counts for whatever is suspended when it arrives
 *   NO_GATE           a call is dispatched before its consent is there
 *   NO_SWEEP          nobody looks for lapsed claims and for answers that are too late
 */

mtype = { batch, ended }

/* Of the gated call. */
mtype = { pending, suspended, running, settled }

#define WORKER 1
#define SWEEP 2
#define FIRST 3
#define SECOND 4
#define PERSON 5
#define STOP 6

/* The row. */
mtype phase = batch
byte turn = 1
bool beside = true       /* the other call of the batch is at work */
mtype call = pending
byte asked               /* the suspension that is open, by its turn; 0: none */
bool claimed             /* the worker has the call */
byte attempt

/* Whether what they have read still stands. */
bool current[7]

bool expires             /* there is a time to answer, and whether it is over */
bool late
bool sign = true         /* the worker's sign of life */

#ifndef FAULTS
#define FAULTS 2
#endif
byte faults

/* What is observed, by turn. */
bool decided[3], consent[3], performed[3], linked[3]

#ifdef NO_VERSION
#define STANDS(p) true
#else
#define STANDS(p) current[p]
#endif

#ifdef NO_SUSPENSION_ID
#define IS_ASKED(id) (asked != 0)
#else
#define IS_ASKED(id) (asked == id)
#endif

inline change () {
  assert(phase != ended);
  current[WORKER] = false; current[SWEEP] = false; current[FIRST] = false; current[SECOND] = false; current[PERSON] = false; current[STOP] = false
}

/* The rules: raise it once nothing else of the batch is at work, and close the batch once both are settled. */
inline settle () {
  if
#ifdef NO_GATE
  :: phase == batch && call == pending -> call = running; attempt++
#endif
  :: phase == batch && !beside && call == pending -> call = suspended; asked = turn; late = false
  :: phase == batch && !beside && call == settled -> assert(!linked[turn] && asked == 0); linked[turn] = true; phase = ended
  :: else
  fi
}

inline fail_call () { call = settled; claimed = false; asked = 0 }

/* Does the one thing it can do, and comes again. What it has claimed it performs, though it may have been paused for long. */
proctype Worker () {
  byte mine, works;
end:
  do
  :: atomic { phase == batch && beside && !claimed -> current[WORKER] = true }
    atomic {
      if
      :: STANDS(WORKER) && beside -> change(); beside = false; settle()
      :: else
      fi
    }
  :: atomic { phase == batch && call == running && !claimed && sign -> current[WORKER] = true; works = turn; mine = attempt }
    if
    :: atomic { STANDS(WORKER) -> change(); claimed = true }
      if
      :: atomic { assert(consent[works] && !performed[works]); performed[works] = true }
        do
        :: atomic {
            if
            :: phase == batch && turn == works && call == running && claimed && attempt == mine -> current[WORKER] = true
            :: else -> break
            fi
          }
          atomic {
            if
            :: STANDS(WORKER) -> change(); call = settled; claimed = false; settle(); break
            :: else
            fi
          }
        /* Its process dies with the result. */
        :: atomic { faults < FAULTS && phase != ended -> faults++; sign = false; break }
        od
      :: atomic { faults < FAULTS && phase != ended -> faults++; sign = false }
      fi
    :: atomic { !STANDS(WORKER) }
    fi;
    atomic { works = 0; mine = 0 }
  /* Another takes its place, or it is back: what it had claimed is nobody's by then. */
  :: atomic { !sign && !claimed && phase != ended -> sign = true }
  :: phase == ended -> break
  od
}

/* Time passes: an answer may be too late, and a sign of life run out although nothing is wrong. */
proctype Time () {
end:
  do
  :: atomic { expires && asked != 0 && !late -> late = true }
  :: atomic { sign && faults < FAULTS && phase != ended -> faults++; sign = false }
  :: phase == ended -> break
  od
}

proctype Sweep () {
end:
  do
  :: atomic { phase == batch && asked != 0 && late -> current[SWEEP] = true }
    atomic {
      if
      :: STANDS(SWEEP) -> change(); assert(!decided[turn]); decided[turn] = true; fail_call(); settle()
      :: else
      fi
    }
  /* Nobody knows whether it took effect. */
  :: atomic { phase == batch && claimed && !sign -> current[SWEEP] = true }
    atomic {
      if
      :: STANDS(SWEEP) -> change(); fail_call(); settle()
      :: else
      fi
    }
  :: phase == ended -> break
  od
}

/* Sees what is asked, thinks for as long as it takes, and says yes or no to that: or never does. */
proctype Reviewer (byte id) {
  byte seen;
  if
  :: asked != 0 -> seen = asked
  :: goto out
  fi;
send:
  atomic {
    if
    :: phase == batch && IS_ASKED(seen) && call == suspended && !late -> current[id] = true
    :: else -> goto out
    fi
  }
  atomic {
    if
    :: !STANDS(id) -> goto send
    :: else
    fi;
    change();
    assert(!decided[seen]);
    decided[seen] = true;
    if
    :: consent[seen] = true; call = running; attempt++; asked = 0
    :: fail_call(); settle()
    fi
  }
out:
  seen = 0
}

/* A message that interrupts: the open calls leave without a trace, and the next turn asks for the same again. */
proctype Person () {
post:
  if
  :: atomic { phase == batch -> current[PERSON] = true }
  :: goto out
  fi;
  atomic {
    if
    :: !STANDS(PERSON) -> goto post
    :: else
    fi;
    change();
    asked = 0; claimed = false; call = pending; attempt = 0; beside = true; turn++; late = false
#ifdef NO_GATE
    ; settle()
#endif
  }
out:
  skip
}

proctype Stop () {
cancel:
  if
  :: atomic { phase == batch -> current[STOP] = true }
  :: goto out
  fi;
  atomic {
    if
    :: !STANDS(STOP) -> goto cancel
    :: else
    fi;
    change();
    asked = 0; claimed = false; phase = ended
  }
out:
  skip
}

/* The world goes on though nothing happens here: Spin does not find a property that is broken by standing still for ever, unless something can move. */
proctype World () {
  do
  :: phase != ended -> skip
  :: phase == ended -> break
  od
}

init {
  atomic {
    if :: expires = true :: expires = false fi;
    run Worker(); run Time(); run World();
#ifndef NO_SWEEP
    run Sweep();
#endif
    run Reviewer(FIRST); run Reviewer(SECOND); run Person(); run Stop()
  }
}

/* It ends; or it waits for a person who has all the time in the world. */
ltl live { <> (phase == ended || [] (asked != 0 && !expires)) }
