#!/bin/bash
# Builds the rivals into target/perf: libfuse's passthrough_ll and passthrough_hp (from Debian's source package of fuse3)
# and a Python environment with faiss. What cannot be had is skipped by vexfs-perf with a line.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=target/perf
mkdir -p "$out"

# The machine's own package sources, asked for source packages, in lists of our own: nothing of the machine is changed.
fuse_examples() {
    [ -d "$out/fuse3-source/example" ] && return
    local lists=$PWD/$out/apt
    mkdir -p "$lists/parts" "$lists/state/partial"
    find /etc/apt -name '*.sources' -exec sh -c 'sed "s/^Types:.*/Types: deb-src/" "$0" >"$1/$(basename "$0")"' {} "$lists/parts" \;
    find /etc/apt -name '*.list' -exec sh -c 'sed "s/^deb /deb-src /" "$0" >"$1/$(basename "$0")"' {} "$lists/parts" \;
    local ours=(-q -o "Dir::Etc::sourcelist=/dev/null" -o "Dir::Etc::sourceparts=$lists/parts" -o "Dir::State::Lists=$lists/state")
    apt-get "${ours[@]}" update >/dev/null
    (cd "$out" && apt-get "${ours[@]}" source --download-only fuse3 && rm -rf fuse3-source && dpkg-source -x fuse3_*.dsc fuse3-source)
}

# build COMPILER NAME SOURCE
build() {
    # shellcheck disable=SC2046,SC2086
    $1 -O2 -o "$out/$2" "$out/fuse3-source/example/$3" $(pkg-config --cflags --libs fuse3)
}

make_venv() {
    rm -rf "$out/venv"
    python3 -m venv "$out/venv" && "$out/venv/bin/pip" install -q faiss-cpu numpy || { rm -rf "$out/venv"; return 1; }
}

[ -x "$out/passthrough_ll" ] || { fuse_examples && build gcc passthrough_ll passthrough_ll.c; } || echo "prepare: no passthrough_ll, the fuse workload goes without" >&2
[ -x "$out/passthrough_hp" ] || { fuse_examples && build "g++ -std=c++17" passthrough_hp passthrough_hp.cc; } ||
    echo "prepare: no passthrough_hp, the fuse workload goes without" >&2
[ -d "$out/venv" ] || make_venv || echo "prepare: no faiss, numpy is used if it is there" >&2
exit 0
