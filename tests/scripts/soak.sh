#!/bin/bash
# Random writes by fio while the daemon is killed (-9) every few seconds, on raw images of several sizes: after each
# restart fio verifies every write that had been acknowledged. At the end everything is read, and written once more.
#
# usage: tests/scripts/soak.sh [SECONDS]     VEXFS_TEST_SEED=n repeats the choices (not the moments), BIN=target/debug,
#        WORK=target/soak is where the images are (1 GB)
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=${1:-600}
bin=$(realpath "${BIN:-target/release}")
seed=${VEXFS_TEST_SEED:-$RANDOM}
RANDOM=$seed
mkdir -p "${WORK:=target/soak}"
dir=$(realpath "$(mktemp -d "$WORK/XXXXXX")")
cd "$dir"
export VEXFS_RUN_DIR=$dir/run
echo "soak: $seconds s, VEXFS_TEST_SEED=$seed, in $dir"

daemon=
fio=
finish() {
  status=$?
  for pid in $daemon $fio; do kill -9 "$pid" 2>/dev/null || true; done
  if [ $status -eq 0 ]; then rm -rf "$dir"; else echo "soak: FAILED; the images and logs are in $dir" >&2; fi
}
trap finish EXIT
trap 'exit 1' INT TERM HUP
# What is started also ends when this script is killed (-9); setpriv runs a program in its own place.
tied=(setpriv --pdeathsig KILL --)
# KiB of a file that fio or the daemon's log may have at most, several times what a round writes: nothing fills the disk.
ulimit -f $((4 << 20))

fail() {
  echo "soak: $*" >&2
  exit 1
}

start() { # IMAGE
  local before
  before=$(grep -c 'serving' daemon.log 2>/dev/null || true)
  "${tied[@]}" "$bin/vexfs-blockd" serve "$1" --nbd "unix:$dir/socket" >>daemon.log 2>&1 &
  daemon=$!
  for _ in $(seq 1 3000); do
    [ "$(grep -c 'serving' daemon.log || true)" -gt "${before:-0}" ] && return
    kill -0 $daemon 2>/dev/null || { tail -5 daemon.log >&2; fail "the daemon does not start"; }
    sleep 0.01
  done
  fail "the daemon does not serve"
}

stop() { # SIGNAL
  kill "-$1" $daemon
  wait $daemon 2>/dev/null || true
  daemon=
  if grep -q 'panicked at' daemon.log; then fail "the daemon panicked"; fi
}

# Writes that end with the daemon, or when all is written; fio notes how far it came. Its jobs are threads: processes would go
# on without it. To be killed by its number it is started with replace=exec, in place of the background shell.
job() { # MIB BS SEED ARGS...
  local mib=$1 bs=$2 jobseed=$3
  shift 3
  ${replace:-} "${tied[@]}" fio --thread=1 --name=soak --ioengine=nbd --uri="nbd+unix:///?socket=$dir/socket" --rw=randwrite --bs="$bs" --iodepth=$depth \
    --size="${mib}m" --verify=crc32c --verify_fatal=1 --randrepeat=1 --randseed="$jobseed" "$@"
}

sizes=(64 200 512)
blocks=(4k 4k 16k 64k 512)
for mib in "${sizes[@]}"; do "$bin/mkfs.vexfs" "image-$mib" --raw --size "${mib}M" >/dev/null; done

pause() { sleep "$((RANDOM % $1 / 1000)).$(printf %03d $((RANDOM % $1 % 1000)))"; }

depth=32
kills=0
acks=0
verified=0
cycle=0
end=$((SECONDS + seconds))
while [ $SECONDS -lt $end ]; do
  mib=${sizes[cycle % ${#sizes[@]}]}
  bs=${blocks[RANDOM % ${#blocks[@]}]}
  jobseed=$RANDOM
  rm -f local-soak-0-verify.state acked_*.log
  start "image-$mib"
  replace=exec job "$mib" "$bs" "$jobseed" --do_verify=0 --verify_state_save=1 --end_fsync=1 \
    --write_lat_log=acked --log_offset=1 >write.log 2>&1 &
  fio=$!
  pause 4000
  stop 9
  kills=$((kills + 1))
  wait $fio && whole=1 || whole=0
  fio=
  # Now and then it dies on its way up, too.
  while [ $((RANDOM % 4)) -eq 0 ]; do
    "${tied[@]}" "$bin/vexfs-blockd" serve "image-$mib" --nbd "unix:$dir/socket" >>daemon.log 2>&1 &
    daemon=$!
    pause 100
    stop 9
    kills=$((kills + 1))
  done
  start "image-$mib"
  load=()
  [ $whole -eq 1 ] || load=(--verify_state_load=1)
  if [ $whole -eq 1 ] || [ -s local-soak-0-verify.state ]; then
    job "$mib" "$bs" "$jobseed" --verify_only=1 --verify_fatal=0 --continue_on_error=verify "${load[@]}" \
      >verify.log 2>&1 && all=1 || all=0
    # fio takes writes that were under way for done; its log has those that were acknowledged.
    sed -n 's/^fio: io_u error.*write offset=\([0-9]*\),.*/\1/p' write.log | sort -u >failed
    cut -d, -f5 acked_clat.1.log | tr -d ' ' | sort -u | comm -23 - failed >acked
    sed -nE '/^verify:|verify failed/s/.* offset ([0-9]+),.*/\1/p' verify.log | sort -u >bad
    comm -12 acked bad >lost
    if [ -s lost ] || { [ $all -eq 0 ] && [ ! -s bad ]; }; then
      head -20 verify.log >&2
      fail "what fio wrote to image-$mib (bs $bs, seed $jobseed) is not there after kill $kills"
    fi
    if [ "$(wc -l <bad)" -gt $depth ]; then fail "more is missing than was under way: $(wc -l <bad) writes"; fi
    acks=$((acks + $(wc -l <acked)))
    n=$(sed -n 's/.*issued rwts: total=\([0-9]*\),.*/\1/p' verify.log | head -1)
    verified=$((verified + ${n:-0}))
  fi
  if [ $((RANDOM % 3)) -eq 0 ]; then stop TERM; else stop 9; fi
  cycle=$((cycle + 1))
  if [ $((cycle % 20)) -eq 0 ]; then echo "soak: $cycle cycles, $kills kills, $acks writes acknowledged, $verified verified"; fi
done

for mib in "${sizes[@]}"; do
  start "image-$mib"
  # Each page is read and its checksum verified by the store.
  nbdcopy "nbd+unix:///?socket=$dir/socket" null: || fail "image-$mib cannot be read whole"
  job "$mib" 4k 1 --do_verify=1 >whole.log 2>&1 || { tail -20 whole.log >&2; fail "a whole pass over image-$mib fails"; }
  stop TERM
done
if [ $verified -eq 0 ] || [ $acks -eq 0 ]; then fail "nothing was verified"; fi
echo "soak: good: $cycle cycles, $kills kills, $acks writes acknowledged before them, $verified verified after them"
