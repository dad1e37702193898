#!/bin/bash
# Installs what building, testing and the demo need on Debian 12, beyond the Rust toolchain, make, gcc and git.
# With --perf also what the rivals in `make perf` need, with --posix what `make posix-test` needs. Calls apt only if something is missing. Without root it
# prints what to install, and fails only if the build itself cannot work.
set -euo pipefail

# What must be there to build | what the tests and the demo drive | what the rivals need | outside suites.
build=(libclang-dev)
drive=(fuse3 fio nbdkit libnbd-bin python3-libnbd qemu-utils e2fsprogs attr acl rsync jq procps)
rivals=(libfuse3-dev pkg-config python3-numpy python3-venv)
suites=(stress-ng psmisc)

wanted=("${build[@]}" "${drive[@]}")
[ "${1:-}" = --perf ] && wanted+=("${rivals[@]}")
[ "${1:-}" = --posix ] && wanted+=("${suites[@]}")

if ! command -v dpkg-query >/dev/null; then
    echo "deps: not a Debian system; needed are the equivalents of: ${wanted[*]}" >&2
    exit 0
fi

missing=()
for package in "${wanted[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ]; then
    echo "deps: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -q -y --no-install-recommends "${missing[@]}"
    exit 0
fi

echo "deps: not root, so please have installed: apt-get install --no-install-recommends ${missing[*]}" >&2
for package in "${build[@]}"; do
    if [[ " ${missing[*]} " == *" $package "* ]]; then
        echo "deps: without $package nothing can be built" >&2
        exit 1
    fi
done
echo "deps: going on without; what needs them fails or is skipped with a line that says so" >&2
