#!/bin/bash
# make demo: a volume, its daemon and mounts; a tree of documents ingested and asked; a raw volume under fio;
# the daemon killed with -9 and started again. Everything it makes is removed at the end.
#
# usage: demo.sh [DIR]      (DIR: the documents, /usr/share/doc by default)
# DEMO_BIN: our programs (target/release). DEMO_DIR: where to work (target/demo), on a real file system.
set -euo pipefail
cd "$(dirname "$0")/../.."
documents=${1:-/usr/share/doc}
bin=$(realpath "${DEMO_BIN:-target/release}")
mkdir -p "${DEMO_DIR:-target/demo}"
work=$(mktemp -d "$(realpath "${DEMO_DIR:-target/demo}")/run-XXXXXX")
mnt=$work/mnt
mkdir "$mnt" "$work/bin"
ln -s "$bin/mkfs-vexfs" "$work/bin/mkfs.vexfs" # cargo allows no dot in a binary's name
PATH=$work/bin:$bin:$PATH
summary=()

bold= plain=
[ -t 1 ] && bold=$(tput bold 2>/dev/null || true) plain=$(tput sgr0 2>/dev/null || true)
step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
note() { summary+=("$*"); printf '%s\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

mounted() { grep -q " $mnt " /proc/self/mountinfo; }

cleanup() {
    local status=$?
    set +e
    if mounted; then fusermount3 -u "$mnt" 2>/dev/null || fusermount3 -uz "$mnt"; fi
    # Not a list of our own: a process that was waited for may have left its number to a stranger.
    for pid in $(jobs -p); do
        kill "$pid" 2>/dev/null && wait "$pid" 2>/dev/null
    done
    if [ $status -ne 0 ]; then
        for log in "$work"/*.log; do
            [ -s "$log" ] && { printf -- '--- %s\n' "${log##*/}"; tail -n 20 "$log"; } >&2
        done
    fi
    rm -rf "$work"
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# What is started also ends when this script is killed (-9); setpriv runs a program in its own place.
tied=(setpriv --pdeathsig KILL --)

# wait_for SECONDS PID COMMAND...: until COMMAND succeeds; fails if PID ends before.
wait_for() {
    local deadline=$((SECONDS + $1)) pid=$2
    shift 2
    until "$@" 2>/dev/null; do
        kill -0 "$pid" 2>/dev/null || fail "process $pid ended unexpectedly while waiting for: $*"
        [ $SECONDS -lt $deadline ] || fail "waited too long for: $*"
        sleep 0.05
    done
}

# serve NAME: starts the daemon on $work/NAME.vexfs; its process id goes to $server.
serve() {
    "${tied[@]}" vexfs-blockd serve "$work/$1.vexfs" --nbd "unix:$work/$1.sock" --control none >>"$work/$1.log" 2>&1 &
    server=$!
    wait_for 60 "$server" nbdinfo --size "$(uri "$1")" >/dev/null
}

uri() { printf 'nbd+unix:///?socket=%s' "$work/$1.sock"; }

# mount_from SOURCE: mounts at $mnt; the process id goes to $mounter.
mount_from() {
    "${tied[@]}" vexfs-fuse "$1" "$mnt" -f >>"$work/fuse.log" 2>&1 &
    mounter=$!
    wait_for 60 "$mounter" mounted
}

unmount() {
    fusermount3 -u "$mnt"
    wait "$mounter" || fail "vexfs-fuse did not end well"
}

kill9() {
    kill -9 "$1"
    wait "$1" 2>/dev/null || true
}

milliseconds() { date +%s%3N; }

ask() { vexctl search "$mnt/docs" -k 3 --text "$1"; }

acknowledged_at_least() { [ "$(wc -l <"$work/acknowledged")" -ge "$1" ]; }

# What a search answers, without what may change from one process to the next.
answers() { vexctl search "$mnt/docs" -k 10 --json --text "$1" | jq -c '[.results[] | [.path, .offset, .length]]'; }

questions=(
    "how do I report a bug"
    "what has to be done when upgrading from an older release"
    "which environment variables change the behaviour"
)

file_system_part() {
    step "A volume of 8 GiB (sparse), the daemon on it, and a mount through the daemon"
    mkfs.vexfs "$work/docs.vexfs" --size 8G
    serve docs
    mount_from "$(uri docs)"
    df -h --output=size,used,avail "$mnt"

    step "Ingesting $documents"
    local start took
    start=$(milliseconds)
    vexctl ingest "$documents" --into "$mnt/docs" || [ $? -eq 3 ] || fail "ingest failed"
    took=$(($(milliseconds) - start))
    local files rows size
    files=$(find "$mnt/docs" -type f ! -name ".vexfs*" | wc -l)
    rows=$(vexctl stats "$mnt/docs" --json | jq .rows_live)
    size=$(du -sm --apparent-size "$mnt/docs" | cut -f1)
    note "ingested: $files files, $size MiB, $rows passages in $((took / 1000)).$((took % 1000 / 100)) s (built-in lexical embedder)"

    for question in "${questions[@]}"; do
        step "Question: $question"
        start=$(milliseconds)
        ask "$question"
        note "asked \"$question\": $(($(milliseconds) - start)) ms over $rows passages"
    done
    local before
    before=$(answers "${questions[0]}")

    step "kill -9 of the daemon while files are being written through the mount"
    mkdir "$mnt/live"
    (
        for number in $(seq 400); do
            head -c $((number * 37 % 30000 + 1)) "$bin/vexctl" >"$mnt/live/file-$number"
            sha256sum "$mnt/live/file-$number"
        done >"$work/acknowledged"
    ) &
    local writer=$!
    wait_for 60 "$writer" acknowledged_at_least 100
    kill9 "$server"
    echo "killed; $(wc -l <"$work/acknowledged") files were acknowledged, the writer waits"
    serve docs
    wait "$writer" || fail "the writer got an error"
    sha256sum --quiet -c "$work/acknowledged" || fail "something that was acknowledged is lost"
    unmount
    mount_from "$(uri docs)"
    sha256sum --quiet -c "$work/acknowledged" || fail "something that was acknowledged is lost after the remount"
    [ "$(answers "${questions[0]}")" = "$before" ] || fail "the search answers differently"
    note "daemon killed with -9 under the live mount: all $(wc -l <"$work/acknowledged") files written there are intact, the search answers the same"
    unmount
    kill "$server" && wait "$server"

    step "The same volume mounted without a daemon (the store embedded)"
    mount_from "$work/docs.vexfs"
    sha256sum --quiet -c "$work/acknowledged"
    [ "$(answers "${questions[0]}")" = "$before" ] || fail "the search answers differently"
    note "embedded mount: same files, same answers"
    kill -9 "$mounter"
    wait "$mounter" 2>/dev/null || true
    fusermount3 -uz "$mnt"
    mount_from "$work/docs.vexfs"
    sha256sum --quiet -c "$work/acknowledged"
    note "embedded mount killed with -9 and mounted again: same files"
    unmount
}

# fio_nbd ARGS...: prints IOPS.
fio_nbd() {
    (cd "$work" && "${tied[@]}" fio --thread=1 --name=demo --ioengine=nbd --uri="$(uri raw)" --size=256m --bs=4k --output-format=json "$@") |
        sed -n '/^{/,$p' | jq '.jobs[0] | (.read.iops + .write.iops) | floor'
}

raw_part() {
    step "A raw volume (a plain disk over the same log) under fio's nbd engine, 4 KiB at queue depth 32"
    mkfs.vexfs "$work/raw.vexfs" --raw --size 512M
    serve raw
    local writes reads
    writes=$(fio_nbd --rw=randwrite --iodepth=32 --time_based=1 --runtime=3 --randrepeat=0 --norandommap=1)
    reads=$(fio_nbd --rw=randread --iodepth=32 --time_based=1 --runtime=3 --randrepeat=0 --norandommap=1)
    note "fio, raw volume over NBD: $writes random writes/s, $reads random reads/s"
    fio_nbd --rw=randwrite --iodepth=32 --verify=crc32c --do_verify=0 --end_fsync=1 >/dev/null
    kill9 "$server"
    serve raw
    fio_nbd --rw=randwrite --iodepth=32 --verify=crc32c --verify_only=1 --verify_fatal=1 >/dev/null ||
        fail "fio found wrong data after kill -9"
    note "raw volume: 256 MiB of random writes, daemon killed with -9 and restarted, every block verified by fio"
    kill "$server" && wait "$server"
}

start=$SECONDS
if [ ! -w /dev/fuse ] || ! command -v fusermount3 >/dev/null; then
    note "no mounts shown: /dev/fuse or fusermount3 (package fuse3) is missing for this user"
elif ! command -v jq >/dev/null || ! command -v nbdinfo >/dev/null; then
    note "no mounts shown: jq or nbdinfo (package libnbd-bin) is missing"
else
    file_system_part
fi
if command -v fio >/dev/null && command -v jq >/dev/null && command -v nbdinfo >/dev/null; then
    raw_part
else
    note "no raw volume shown: fio, jq or nbdinfo is missing"
fi
[ ${#summary[@]} -gt 0 ]
step "Summary ($((SECONDS - start)) s)"
printf '  %s\n' "${summary[@]}"
