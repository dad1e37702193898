#!/bin/bash
# Breaks the store and the mount on purpose, in one way at a time, and checks that the simulators notice each. In place, on a
# clean tree, so that only what changed is compiled; everything is put back, also when interrupted.
#
# usage: tests/scripts/mutants.sh [NAME...]     RUNS=40 lives of each kind per mutant
set -euo pipefail
cd "$(dirname "$0")/../.."

store=blockd/src/store
engine=fuse/src/engine
fs=layout/src/fs
runs=${RUNS:-40}
log=$(mktemp)
trap 'git checkout --quiet -- "$store" "$engine" "$fs"; rm -f "$log"' EXIT

if ! git diff --quiet -- "$store" "$engine" "$fs"; then
  echo "$store, $engine or $fs has changes: commit them first, since this script puts files back" >&2
  trap - EXIT
  exit 2
fi

wanted=("$@")
failed=0

# mutant NAME FILE PERL: PERL changes FILE (read whole) so that the store is broken.
mutant() {
  broken "$1" "$store/$2" "$3" vexfs-blockd sim_tests::raw sim_tests::vexfs a_copy_that_comes_late
}

# mount_mutant NAME FILE PERL: the same for the mount.
mount_mutant() {
  VEXFS_SIM_MINIMISE=0 broken "$1" "$2" "$3" vexfs-fuse sim_tests
}

# broken NAME FILE PERL CRATE TESTS...
broken() {
  local name=$1 file=$2 perl=$3 crate=$4
  shift 4
  if [ ${#wanted[@]} -gt 0 ] && [[ ! " ${wanted[*]} " == *" $name "* ]]; then return; fi
  perl -0pi -e "$perl" "$file"
  if git diff --quiet -- "$file"; then
    echo "STALE   $name: its pattern is not found in $file any more"
    failed=1
    return
  fi
  if ! cargo test --quiet -p "$crate" --lib --no-run >"$log" 2>&1; then
    echo "STALE   $name: does not compile"
    tail -20 "$log"
    failed=1
  elif VEXFS_SIM_RUNS=$runs cargo test -p "$crate" --lib -- "$@" >"$log" 2>&1; then
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
# Nobody notes who was cloned from a segment: the cleaner does not find it.
mutant no-referrer map/mod.rs \
  's/self\.segments\.add_referrer\(loc, page\);//'
# The same after a checkpoint.
mutant referrers-not-saved checkpoint/frozen.rs \
  's/(segments\.referrers\.table\(\))\.collect\(\)/$1.take(0).collect()/'
# A copy of the cleaner is of the segment's own page only.
mutant clones-not-moved clean/copy.rs \
  's/live\.extend\(cloned\.into_iter\(\)/live.extend(cloned.into_iter().take(0)/'

# A batch goes without its discards.
mount_mutant no-discards $engine/cache.rs \
  's/(PageRange \{ first: PageNo\(first\), count: end - first \}\))/$1.take(0)/'
# Discards count as carried out as soon as they are taken.
mount_mutant discards-forgotten-early $engine/cache.rs \
  's/(let mut pages = Vec::with_capacity\(dirty\.len\(\)\);)/self.discards_in_flight.clear();\n        $1/'
# Data goes out between the freeze and the acknowledgement.
mount_mutant data-amid-a-commit $engine/commit.rs \
  's/let Some\(_one_batch\) = self\.write_back\.try_lock\(\) else \{ return Ok\(false\) \};/let _one_batch = self.write_back.try_lock();/'
# A frozen page is changed in place.
mount_mutant no-copy-on-change $engine/pager.rs \
  's/Arc::make_mut\(&mut self\.bytes\)/unsafe { &mut *Arc::as_ptr(&self.bytes).cast_mut() }/'
# The superblock is written before the pages are there.
mount_mutant superblock-first $engine/commit.rs \
  's/self\.send\(&batch\)\?;(\s+let mut wait_for_space)/$1/; s/(let available = self\.status\(\))/self.send(&batch)?;\n        $1/'
# A commit leaves the data of its epoch behind.
mount_mutant data-goes-after $engine/cache.rs \
  's/dirty\.append\(&mut self\.dirty_data\.take\(usize::MAX, &self\.slots\)\);//'
# fsync is content with a commit that was frozen before it came.
mount_mutant late-fsync-shares $engine/commit.rs \
  's/let needed = state\.begun \+ 1;/let needed = state.begun;/'
# A page that changed in flight counts as sent.
mount_mutant change-in-flight-lost $engine/cache.rs \
  's/if slot\.dirty\.is_some\(\) \{\s+continue;\s+\}/if let Some(dirt) = slot.dirty.take() {\n                if dirt == Dirt::Data { self.dirty_data.count -= 1 } else { self.dirty_metadata.count -= 1 }\n            }/'
# Dropped dirty pages stay charged.
mount_mutant no-refund $engine/pager.rs \
  's/self\.0\.credits\.refund\(dropped\);/let _ = dropped;/'
# Space is never refused at the operation.
mount_mutant no-credit $engine/credits.rs \
  's/if \(s\.available \/ 8 \* 7\)/if false \&\& (s.available \/ 8 * 7)/'
# An orphan is not on the list.
mount_mutant orphan-dropped $fs/orphans.rs \
  's/self\.superblock\.orphan_head = inode\.ino\.0;/let _ = \&self.superblock;/'
# The rest of a page beyond a new end is not zeroed.
mount_mutant no-zero-tail $engine/data.rs \
  's/0 => Ok\(\(\)\),/_ if true => Ok(()),/'
# What is dirty of the source is not sent before it is cloned.
mount_mutant clone-without-dirty $engine/clone.rs \
  's/clones\.iter\(\)\.any\(\|c\| \(c\.from/clones.iter().take(0).any(|c| (c.from/'
# What is dirty of the destination stays, and is written over the clone.
mount_mutant clone-keeps-dirty $engine/clone.rs \
  's/cache\.forget\(c\.to, c\.to \+ c\.count\)/cache.forget(c.to, c.to)/'
exit $failed
