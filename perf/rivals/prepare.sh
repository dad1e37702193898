#!/bin/bash
# Builds the rivals into target/perf: libfuse's passthrough_ll (from the example source that libfuse3-dev
# installs) and a Python environment with faiss. What cannot be had is skipped by vexfs-perf with a line.
set -uo pipefail
cd "$(dirname "$0")/../.."
out=target/perf
mkdir -p "$out"

build_passthrough() {
    local examples=/usr/share/doc/libfuse3-dev/examples
    if [ ! -e "$examples/passthrough_ll.c" ]; then
        # Images without documentation: the same file from Debian's source package.
        (cd "$out" && apt-get source -q --download-only fuse3 && rm -rf fuse3-source &&
            dpkg-source -x fuse3_*.dsc fuse3-source) || return
        examples=$out/fuse3-source/example
    fi
    # shellcheck disable=SC2046
    gcc -O2 -o "$out/passthrough_ll" "$examples/passthrough_ll.c" $(pkg-config --cflags --libs fuse3)
}

make_venv() {
    rm -rf "$out/venv"
    python3 -m venv "$out/venv" && "$out/venv/bin/pip" install -q faiss-cpu numpy || { rm -rf "$out/venv"; return 1; }
}

[ -x "$out/passthrough_ll" ] || build_passthrough || echo "prepare: no passthrough_ll, the fuse workload is skipped" >&2
[ -d "$out/venv" ] || make_venv || echo "prepare: no faiss, numpy is used if it is there" >&2
exit 0
