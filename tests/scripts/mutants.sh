#!/bin/bash
# Breaks the store on purpose, in one way at a time, and checks that the simulator notices each. In place, on a
# clean tree, so that only what changed is compiled; everything is put back, also when interrupted.
#
# usage: tests/scripts/mutants.sh [NAME...]     RUNS=40 lives of each kind per mutant
set -euo pipefail
cd "$(dirname "$0")/../.."

store=blockd/src/store
runs=${RUNS:-40}
log=$(mktemp)
trap 'git checkout --quiet -- "$store"; rm -f "$log"' EXIT

if ! git diff --quiet -- "$store"; then
  echo "$store has changes: commit them first, since this script puts files back" >&2
  trap - EXIT
  exit 2
fi

wanted=("$@")
failed=0

# mutant NAME FILE PERL: PERL changes FILE (read whole) so that the store is broken.
mutant() {
  local name=$1 file=$store/$2 perl=$3
  if [ ${#wanted[@]} -gt 0 ] && [[ ! " ${wanted[*]} " == *" $name "* ]]; then return; fi
  perl -0pi -e "$perl" "$file"
  if git diff --quiet -- "$file"; then
    echo "STALE   $name: its pattern is not found in $file any more"
    failed=1
    return
  fi
  if ! cargo test --quiet -p vexfs-blockd --lib --no-run >"$log" 2>&1; then
    echo "STALE   $name: does not compile"
    tail -20 "$log"
    failed=1
  elif VEXFS_SIM_RUNS=$runs cargo test -p vexfs-blockd --lib -- sim_tests::raw sim_tests::vexfs a_copy_that_comes_late >"$log" 2>&1; then
    echo "MISSED  $name"
    failed=1
  else
    echo "caught  $name"
    grep -hE 'life of seed|^test .*FAILED' "$log" | cut -c1-300 | sed 's/^/          /'
  fi
  git checkout --quiet -- "$file"
}

# Drop one fsync: FLUSH and FUA are answered when the records are written.
mutant no-sync-for-flush log/complete.rs \
  's/self\.queue\.sync\(SYNC_TOKEN\);/let upto = self.applied_seq; self.syncing = None; self.now_durable(upto); return true;/'
# Drop one fsync: the superblock names a checkpoint that may not be there.
mutant no-sync-before-superblock checkpoint/mod.rs \
  's/self\.writer\.sync\(log\);\s*(Phase::Syncing)/$1/'
# Apply the output of the cleaner late: a copy wins over what was written meanwhile.
mutant copies-win map/base.rs \
  's/found\.loc == old && found\.crc == new\.crc =>/found.loc == old || found.crc != 0 =>/'
# The same where the place was used again: only the crc tells.
mutant copies-ignore-crc map/base.rs \
  's/found\.loc == old && found\.crc == new\.crc =>/found.loc == old =>/'
# Ignore the epoch: uncommitted changes survive a roll-back.
mutant no-rollback map/mod.rs \
  's/(pub fn rollback\(&mut self\) \{)/$1\n        if self.epoch < u64::MAX { return; }/'
# Free an input early: before a checkpoint without it is durable.
mutant free-early log/build.rs \
  's/(let keep = self\.shared\.keep_segments\(&maps, taker\);)/let empty: Vec<u32> = maps.segments.empty().collect();\n            maps.segments.release(&empty);\n            $1/'
# Skip one crc: of a page that is read.
mutant no-page-crc reader.rs \
  's/if found == mapping\.crc \{/if found == mapping.crc || found != 0 {/g'
# Skip one crc: of the data pages of a record at the end of the log.
mutant no-replay-crc recover/scan.rs \
  's/let bad_page = bad_data\(/let bad_page = None.or(None::<(u64, u32, u32)>); let _ = bad_data(/'
exit $failed
