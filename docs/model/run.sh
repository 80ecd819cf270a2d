#!/bin/sh
# Checks the models beside this file: each as it is, where nothing may be found, and each with one safeguard switched off, where something must be.
#
#   sh docs/model/run.sh          all of it, some minutes
#   sh docs/model/run.sh quick    the safety of each, with one fault, and what is switched off
#
# Exit code 0: all as it should be. 1: not. 77: there is no spin or no C compiler, and nothing was checked.

CC=${CC:-cc}
command -v "$CC" > /dev/null || CC=gcc
if ! command -v spin > /dev/null || ! command -v "$CC" > /dev/null; then
  echo 'The model was not checked: install spin and a C compiler (Debian, Ubuntu: apt-get install spin gcc).'
  exit 77
fi

models=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failed=0
quick=
[ "$1" = quick ] && quick=yes

# check <model> <safety|live> <holds|broken> <switches>
check () {
  rm -f pan* ./*.trail
  : > pan.out
  # shellcheck disable=SC2086
  spin -a $4 "$models/$1.pml" > spin.out 2>&1 || { cat spin.out; exit 1; }
  # What is broken is found at once: there the compiler is what takes time.
  optimize=-O2
  { [ "$3" = broken ] || [ -n "$quick" ]; } && optimize=-O0
  # Everything is looked at, at most -m steps deep and -Q minutes long, or the check fails.
  if [ "$2" = safety ]; then
    "$CC" $optimize -w -DSAFETY -DNOCLAIM -DCOLLAPSE -o pan pan.c && ./pan -m2000000 -Q10 > pan.out 2>&1
  else
    "$CC" $optimize -w -DNFAIR=3 -DCOLLAPSE -o pan pan.c && ./pan -a -f -m2000000 -Q10 > pan.out 2>&1
  fi
  found=$(sed -n 's/.*errors: \([0-9]*\).*/\1/p' pan.out)
  states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.out | head -1)
  seconds=$(sed -n 's/.*elapsed time \([0-9.]*\) .*/\1/p' pan.out | head -1)
  what=$(sed -n 's/^pan:1: \(.*\) (at depth.*/\1/p' pan.out | head -1)
  if grep -qiE 'too small|out of memory|time limit' pan.out; then result='not looked at in full'
  elif [ -z "$found" ]; then result='did not run'
  elif [ "$found" = 0 ]; then result=holds
  else result=broken
  fi
  verdict=ok
  [ "$result" = "$3" ] || { verdict=WRONG; failed=1; }
  printf '%-6s %-9s %-7s %-36s %-7s %10s states %7s s  %s\n' "$verdict" "$1" "$2" "${4:--}" "$result" "${states:-?}" "${seconds:-0}" "$what"
}

if [ -n "$quick" ]; then
  check gate safety holds '-DFAULTS=1 -DNO_STOP'
  check approval safety holds '-DFAULTS=1'
else
  check gate safety holds '-DFAULTS=1'
  check gate safety holds '-DFAULTS=2 -DNO_STOP'
  check gate live holds '-DFAULTS=1 -DNO_STOP'
  check approval safety holds '-DFAULTS=2'
  check approval live holds '-DFAULTS=1'
fi
for safeguard in NO_VERSION NO_FENCE NO_TOKEN VACUOUS_BARRIER; do check gate safety broken "-DFAULTS=1 -DNO_STOP -D$safeguard"; done
check gate live broken '-DFAULTS=1 -DNO_STOP -DNO_SWEEP'
for safeguard in NO_VERSION NO_SUSPENSION_ID NO_GATE; do check approval safety broken "-DFAULTS=1 -D$safeguard"; done
check approval live broken '-DFAULTS=1 -DNO_SWEEP'
exit $failed
