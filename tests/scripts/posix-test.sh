#!/bin/bash
# Outside suites against a FUSE mount, as root:
#   pjdfstest  every case that passes on ext4 here must pass (tests/posix/pjdfstest.exclusions names the exceptions)
#   fsx        a million random operations on a file, with mmap, over the borders of data classes, and by direct I/O
#   stress     stress-ng's file system class: nothing may fail that does not fail on ext4
# After each the volume is unmounted, checked by fsck.vexfs, mounted again and read whole.
#
# usage: tests/scripts/posix-test.sh [pjdfstest|fsx|stress]...
#        BIN=target/debug TOOLS=target/tools WORK=target/posix FSX_OPS=1000000 FSX_PARTS="small mixed nomsync direct"
#        STRESS_SECONDS=300 VEXFS_TEST_SEED=n
# fsx syncs each mapped write, and each is a commit: with WORK on a tmpfs it takes minutes, on a busy disk an hour.
set -euo pipefail
cd "$(dirname "$0")/../.."

suites=("$@")
[ ${#suites[@]} -gt 0 ] || suites=(pjdfstest fsx stress)
bin=$(realpath "${BIN:-target/debug}")
tools=$(realpath -m "${TOOLS:-target/tools}")
data=$(realpath tests/posix)
fsx_ops=${FSX_OPS:-1000000}
fsx_parts=${FSX_PARTS:-small mixed nomsync direct}
stress_seconds=${STRESS_SECONDS:-300}
seed=${VEXFS_TEST_SEED:-$RANDOM}
if [ "$(id -u)" -ne 0 ] || [ ! -e /dev/fuse ]; then
  echo "posix-test: needs root and /dev/fuse" >&2
  exit 2
fi
# Exact versions: results of one run are comparable with those of another.
for tool in pjdfstest@0.2.2 fsx@0.3.2; do
  if ! grep -qs "^\"${tool%@*} ${tool#*@} " "$tools/.crates.toml"; then
    ${CARGO:-cargo} install --quiet --locked --root "$tools" "$tool"
  fi
done
mkdir -p "${WORK:=target/posix}"
work=$(realpath "$(mktemp -d "$WORK/XXXXXX")")
cd "$work"
chmod 755 "$work"
mkdir mnt ext4
echo "posix-test: ${suites[*]}, VEXFS_TEST_SEED=$seed, in $work"

server=
loop=
finish() {
  status=$?
  if [ -n "$loop" ]; then losetup -d "$loop" || true; fi
  if mountpoint -q ext4; then umount ext4 || umount -l ext4; fi
  # A dead server's mount is still there.
  if [ -n "$server" ]; then
    kill -9 "$server" 2>/dev/null || true
    umount -l mnt 2>/dev/null || true
  fi
  if [ $status -eq 0 ]; then rm -rf "$work"; else echo "posix-test: FAILED; images and logs are in $work" >&2; fi
}
trap finish EXIT
trap 'exit 1' INT TERM HUP

fail() {
  echo "posix-test: $*" >&2
  exit 1
}

make_image() { # MIB
  rm -f image
  "$bin/mkfs-vexfs" image --size "$1M" >/dev/null
}

mount_vexfs() {
  # Ends with this script, even when that is killed (-9).
  setpriv --pdeathsig KILL -- "$bin/vexfs-fuse" -f image mnt >>fuse.log 2>&1 &
  server=$!
  for _ in $(seq 1 3000); do
    if mountpoint -q mnt; then return; fi
    kill -0 $server 2>/dev/null || { tail -5 fuse.log >&2; fail "the image cannot be mounted"; }
    sleep 0.01
  done
  fail "the mount does not come"
}

unmount_vexfs() {
  kill -0 $server 2>/dev/null || { tail -5 fuse.log >&2; fail "vexfs-fuse died"; }
  umount mnt || { fuser -vm mnt >&2 || true; fail "the mount stays busy"; }
  wait $server || { tail -5 fuse.log >&2; fail "vexfs-fuse did not end well"; }
  server=
  if grep -q 'panicked at' fuse.log; then fail "vexfs-fuse panicked: $work/fuse.log"; fi
}

# Unmounts, checks the volume, mounts it again, reads all there is, and unmounts.
settle() {
  local before after
  before=$(listing)
  unmount_vexfs
  "$bin/fsck-vexfs" -n image >fsck.log 2>&1 || { tail -20 fsck.log >&2; fail "fsck.vexfs finds faults: $work/fsck.log"; }
  mount_vexfs
  after=$(listing)
  if [ "$before" != "$after" ]; then
    diff <(echo "$before") <(echo "$after") | head -20 >&2
    fail "the tree is not the same after a remount"
  fi
  find mnt -type f -exec cat {} + >/dev/null || fail "not all can be read after a remount"
  unmount_vexfs
}

listing() {
  find mnt -printf '%P %y %m %n %u %g %s %T@ %l\n' | sort
}

mount_ext4() { # MIB
  truncate -s "$1M" ext4.img
  mkfs.ext4 -qF ext4.img
  mount -o loop ext4.img ext4
  chmod 755 ext4
}

unmount_ext4() {
  umount ext4
  rm ext4.img
}

# pjdfstest on a directory; the names of its cases go to LOG.ok, LOG.failed and LOG.skipped.
pjdfstest_on() { # DIR LOG
  # It fails as a whole when any case does; what counts is which.
  "$tools/bin/pjdfstest" -c "$data/pjdfstest.toml" -s "$work" -p "$1" >"$2" 2>&1 || true
  grep -q '^Summary' "$2" || { tail -5 "$2" >&2; fail "pjdfstest did not come to its end on $1"; }
  for result in ok FAILED skipped; do
    awk -v result=$result 'NF == 2 && $2 == result { print $1 }' "$2" >"$2.${result,,}"
  done
}

# What passed on ext4 must have passed on VexFS, but for what is excluded by name; what did not goes to the file bad.
compare() { # SUITE EXT4LOG VEXFSLOG
  local name
  sort "$2.ok" >ext4.ok
  sort "$3.ok" >vexfs.ok
  sed -E '/^(#|$)/d; s/: .*//' "$data/$1.exclusions" | sort >excluded
  comm -23 ext4.ok vexfs.ok | comm -23 - excluded >bad
  comm -12 vexfs.ok excluded >needless
  for log in "$2" "$3"; do
    echo "$1 on ${log%.log*}: $(wc -l <"$log.ok") pass, $(wc -l <"$log.failed") fail, $(wc -l <"$log.skipped") are skipped"
  done
  for name in $(cat bad); do echo "$1: $name passes on ext4, not on VexFS"; done
  for name in $(cat needless); do echo "$1: $name is excluded, but passes"; done
  if [ -s bad ] || [ -s needless ]; then good=0; fi
}

suite_pjdfstest() {
  mount_ext4 256
  pjdfstest_on ext4 ext4.log
  unmount_ext4
  # Such as a directory above that other users must not search.
  if [ -s ext4.log.failed ]; then fail "pjdfstest: cases fail on ext4, which is the measure: $(xargs <ext4.log.failed)"; fi
  make_image 1024
  mount_vexfs
  pjdfstest_on mnt vexfs.log
  settle
  compare pjdfstest ext4.log vexfs.log
  for name in $(cat bad); do grep -A1 "^$name " vexfs.log; done
}

fsx_run() { # CONFIGURATION OPERATIONS FILE
  local log=fsx-$1.log
  mkdir -p artifacts
  if ! "$tools/bin/fsx" -f "$data/fsx/$1.toml" -S "$seed" -N "$2" -P artifacts "$3" >"$log" 2>&1; then
    tail -40 "$log"
    echo "fsx: $1 fails (seed $seed): $work/$log"
    good=0
    return
  fi
  echo "fsx: $1, seed $seed: $2 operations"
}

suite_fsx() {
  local part
  make_image 1024
  mount_vexfs
  for part in $fsx_parts; do
    # The shares of the parts add up to all operations.
    case $part in
      small) fsx_run small $((fsx_ops * 4 / 10)) mnt/small ;;
      mixed) fsx_run mixed $((fsx_ops * 3 / 10)) mnt/mixed ;;
      nomsync) fsx_run nomsync $((fsx_ops * 2 / 10)) mnt/nomsync ;;
      # Each read and write of a loop device with direct I/O comes as O_DIRECT. (Borders of the higher data classes are crossed
      # by tests/tests/exercise.rs: fsx keeps the whole file in memory.)
      direct)
        truncate -s 4M mnt/backing
        loop=$(losetup --show --find --direct-io=on mnt/backing)
        fsx_run direct $((fsx_ops / 10)) "$loop"
        losetup -d "$loop"
        loop=
        ;;
      *) fail "fsx has no part $part; there are small, mixed, nomsync and direct" ;;
    esac
  done
  settle
}

# Each stressor of the class alone, on a directory, for so many seconds; the names go to LOG.ok, LOG.failed and LOG.skipped.
stress_on() { # DIR LOG SECONDS
  local name status
  mkdir "$1/stress"
  : | tee "$2" "$2.ok" "$2.failed" "$2.skipped"
  for name in $stressors; do
    status=0
    stress-ng "--$name" 2 --timeout "$3" --verify --temp-path "$1/stress" --seed "$seed" >one.log 2>&1 || status=$?
    { echo "== $name: exit status $status"; cat one.log; } >>"$2"
    # 3: no resources for it, 4: not implemented (stress-ng(1)).
    case $status in
      0) if grep -q 'skipping' one.log; then status=skipped; else status=ok; fi ;;
      3 | 4) status=skipped ;;
      # One that it thinks is dangerous.
      1) if grep -q 'No stress workers invoked' one.log; then status=skipped; else status=failed; fi ;;
      *) status=failed ;;
    esac
    echo "$name" >>"$2.$status"
  done
}

suite_stress() {
  local each name
  stressors=$(stress-ng --class 'filesystem?' 2>&1 | sed -n 's/^class .* stressors: //p')
  [ -n "$stressors" ] || fail "stress-ng does not tell its file system class"
  each=$((stress_seconds / $(wc -w <<<"$stressors")))
  mount_ext4 2048
  stress_on ext4 ext4.log 1
  unmount_ext4
  make_image 4096
  mount_vexfs
  stress_on mnt vexfs.log $((each > 0 ? each : 1))
  settle
  compare stress-ng ext4.log vexfs.log
  for name in $(cat bad); do sed -n "/^== $name:/,/^== /p" vexfs.log | sed '1d; /^==/d' | head -10; done
}

failed=()
for suite in "${suites[@]}"; do
  declare -F "suite_$suite" >/dev/null || fail "no suite $suite; there are pjdfstest, fsx and stress"
  began=$SECONDS
  good=1
  "suite_$suite"
  result=good
  if [ $good -eq 0 ]; then
    result=FAILED
    failed+=("$suite")
  fi
  echo "posix-test: $suite: $result, $((SECONDS - began)) s"
done
if [ ${#failed[@]} -gt 0 ]; then fail "failed: ${failed[*]}"; fi
