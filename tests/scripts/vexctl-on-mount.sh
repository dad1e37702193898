#!/bin/bash
# Tries vexctl on a mounted volume: collections, put, search, ingest and what it does when run again.
#
# usage: vexctl-on-mount.sh VEXCTL MOUNTPOINT     (needs jq, python3, gzip; leaves nothing behind)
set -euo pipefail

vexctl=$(realpath "$1")
mount=$(realpath "$2")
sample=$(dirname "$(realpath "$0")")/../data/passages.jsonl
work=$(mktemp -d)
base=$mount/vexctl-test.$$
mkdir "$base"
trap 'rm -rf "$work" "$base"' EXIT

fail() { echo "FAILED: $*" >&2; exit 1; }
# same WHAT EXPECTED FOUND
same() { [ "$2" = "$3" ] || fail "$1: expected '$2', found '$3'"; }
# refused WORDS COMMAND...: it must fail with status 1 and say WORDS
refused() {
    local words=$1 status=0; shift
    "$@" >"$work/out" 2>&1 || status=$?
    same "status of '$*' ($(cat "$work/out"))" 1 $status
    grep -qF -- "$words" "$work/out" || fail "'$*' did not say '$words' but: $(cat "$work/out")"
}

echo "== collections, put and search"
for element in f32 f16 i8; do
    for metric in cosine l2 ip; do
        c=$base/$element-$metric
        "$vexctl" collection create "$c" --dim 3 --element $element --metric $metric
        for v in 1,0,0 0,2,0 3,4,0 -5,0,1; do
            echo "text of $v" >"$c/$v"
            "$vexctl" put "$c/$v" --vector "[$v]" --tag $((1 + ${#v} % 2))
        done
        case $metric in
            ip) want="3,4,0 1,0,0 0,2,0 -5,0,1" ;;
            *) want="1,0,0 3,4,0 0,2,0 -5,0,1" ;;
        esac
        found=$("$vexctl" search "$c" --vector '[2,0,0]' --json | jq -r '[.results[].path] | join(" ")')
        # Under l2 from (2,0,0): (1,0,0) 1, (0,2,0) 8, (3,4,0) 17.
        [ $metric = l2 ] && want="1,0,0 0,2,0 3,4,0 -5,0,1"
        same "order in $element $metric" "$want" "$found"
    done
done
c=$base/f32-l2
same schema '{"dim":3,"element":"f32","metric":"l2"}' "$("$vexctl" collection show "$c" --json | jq -c .schema)"
same rows 4 "$("$vexctl" stats "$c" --json | jq .rows_live)"
refused "already" "$vexctl" collection create "$c" --dim 3
refused "collections do not nest" "$vexctl" collection create "$c/inner" --dim 3
[ ! -e "$c/inner" ] || fail "a refused collection left its directory"
refused "has 2 elements" bash -c '"$1" put "$2" --vector "[1,2]" 2>&1 | sed "s/of 2 elements/has 2 elements/"; exit ${PIPESTATUS[0]}' - "$vexctl" "$c/1,0,0"
refused "vectors of 2 elements" "$vexctl" search "$c" --vector '[1,2]'
refused "not (in) a collection" "$vexctl" search "$base" --vector '[1,2,3]'
refused "not on a VexFS mount" "$vexctl" search "$work" --vector '[1,2,3]'
refused "norm" bash -c '"$1" put "$2" --vector "[0,0,0]" 2>&1 | sed "s/zero/norm zero/"; exit ${PIPESTATUS[0]}' - "$vexctl" "$base/f32-cosine/1,0,0"
refused "remembers no embedder" "$vexctl" search "$c" --text words
same tags "1,0,0 0,2,0 3,4,0" "$("$vexctl" search "$c" --vector '[2,0,0]' --tags-any 2 --json | jq -r '[.results[].path] | join(" ")')"
python3 - "$work" <<'PY'
import struct, sys
header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n"
data = struct.pack("<6f", 9, 9, 9, 8, 8, 8)
open(sys.argv[1] + "/two.npy", "wb").write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)
open(sys.argv[1] + "/one.raw", "wb").write(struct.pack("<3f", 9, 9, 9))
PY
same "rows of a .npy" 2 "$("$vexctl" put "$c/1,0,0" --vector-file "$work/two.npy" --json | jq .count)"
same "nearest to a raw vector" "1,0,0" "$("$vexctl" search "$c" --vector-file "$work/one.raw" -k 1 --json | jq -r '.results[0].path')"
echo '[{"vector":[7,7,7],"offset":5,"length":2,"tag":9}]' | "$vexctl" put "$c/1,0,0" --rows - --append
same "range of a row" "5 2 9 of" \
    "$("$vexctl" search "$c" --vector '[7,7,7]' -k 1 --json | jq -r '.results[0] | "\(.offset) \(.length) \(.tag) \(.text)"')"
echo more >>"$c/1,0,0"
same "stale after a write" true "$("$vexctl" search "$c" --vector '[7,7,7]' -k 1 --json | jq '.results[0].stale')"
same "fresh only" 3 "$("$vexctl" search "$c" --vector '[7,7,7]' --fresh-only --json | jq '.results | length')"
rm "$c/0,2,0"
same "after a removal" 0 "$("$vexctl" search "$c" --vector '[0,2,0]' --json | jq '[.results[] | select(.path == "0,2,0")] | length')"

echo "== ingest"
tree=$work/tree
mkdir -p "$tree/html" "$tree/bin"
n=0
while read -r row; do
    n=$((n + 1))
    jq -r '.heading + "\n\n" + .text' <<<"$row" >"$tree/$n.txt"
done < <(head -40 "$sample" | jq -c .)
gzip "$tree/40.txt"
echo '<h1>Quokkas</h1><p>The quokka is a small <b>marsupial</b> &amp; lives on Rottnest Island.</p>' >"$tree/html/q.html"
printf 'Das Caf\xe9 zur sch\xf6nen Zwiebel serviert Zwiebelkuchen.\n' >"$tree/latin1"
head -c 5000 /dev/urandom >"$tree/bin/random"
: >"$tree/empty"
ln -s 1.txt "$tree/link"
chmod 640 "$tree/1.txt"
touch -d '2001-02-03 04:05:06.789' "$tree/1.txt"
coll=$base/docs
ingest() { "$vexctl" ingest "$tree" --into "$coll" --json "$@"; }
summary=$(ingest)
same "first run" "43 0 0 0" "$(jq -r '"\(.added) \(.replaced) \(.reembedded) \(.unchanged)"' <<<"$summary")"
same "skipped" '{"binary":1,"symbolic link":1}' "$(jq -cS .skipped <<<"$summary")"
same "live rows" "$(jq .passages <<<"$summary")" "$("$vexctl" stats "$coll" --json | jq .rows_live)"
cmp "$tree/1.txt" "$coll/1.txt"
same "mode and time" "$(stat -c '%a %y' "$tree/1.txt")" "$(stat -c '%a %y' "$coll/1.txt")"
zcmp "$tree/40.txt.gz" "$coll/40.txt"
same "hidden names" ".vexfs-embedder" "$(ls -A "$coll" | grep '^\.')"

best() { "$vexctl" search "$coll" --text "$1" -k 1 --json | jq -r '.results[0] | "\(.path):\(.line)"'; }
same "html" "html/q.html:1" "$(best 'small marsupials of Rottnest')"
same "latin1" "latin1:1" "$(best 'café zwiebelkuchen')"
"$vexctl" search "$coll" --text 'quokka' -k 1 | grep -q 'marsupial & lives' || fail "the passage of HTML is not shown as text"
for i in 5 20 40; do
    heading=$(sed -n "${i}p" "$sample" | jq -r .heading)
    same "heading of $i" "$i.txt:1" "$(best "$heading")"
done
same "below a directory" 1 "$("$vexctl" search "$coll" --text 'select' --subdir html --json | jq '.results | length')"

echo "== ingest again"
same "nothing to do" "0 0 0 43" "$(ingest | jq -r '"\(.added) \(.replaced) \(.reembedded) \(.unchanged)"')"
echo 'The axolotl regrows its limbs.' >>"$tree/2.txt"
echo 'The platypus lays eggs.' >>"$coll/3.txt"
same "stale" true "$("$vexctl" search "$coll" --text "$(head -1 "$tree/3.txt")" -k 1 --json | jq '.results[0].stale')"
rm "$tree/4.txt"
: >"$coll/.vexfs-ingest-1-1.tmp"
status=0
summary=$(ingest 2>/dev/null) || status=$?
same "status" 0 $status
same "second run" "0 1 1 40 1 1" \
    "$(jq -r '"\(.added) \(.replaced) \(.reembedded) \(.unchanged) \(.gone) \(.leftovers_removed)"' <<<"$summary")"
same "changed source" "2.txt" "$(best 'axolotl limbs' | cut -d: -f1)"
same "edit in the collection" "3.txt" "$(best 'platypus eggs' | cut -d: -f1)"
grep -q platypus "$coll/3.txt" || fail "an edit was lost"
echo 'changed too' >>"$tree/3.txt"
status=0
ingest --prune >"$work/out" 2>/dev/null || status=$?
same "status with a conflict" 3 $status
same "conflict and prune" "1 1" "$(jq -r '"\(.refused) \(.pruned)"' "$work/out")"
[ ! -e "$coll/4.txt" ] || fail "a pruned file is there"
ingest --overwrite >/dev/null
cmp "$tree/3.txt" "$coll/3.txt"
setfattr -x user.vexfs.vector "$coll/5.txt"
same "lost rows" 1 "$(ingest | jq .reembedded)"
summary=$(ingest --retrain)
same "all anew" 42 "$(jq .reembedded <<<"$summary")"
same "live rows are those of the files" "$(jq .passages <<<"$summary")" "$("$vexctl" stats "$coll" --json | jq .rows_live)"
same "the same table again" 0 "$(ingest --retrain | jq .reembedded)"

echo "== an embedding command"
cat >"$work/embed.py" <<'PY'
import json, sys
for line in sys.stdin:
    text = json.loads(line).lower()
    print(json.dumps([1 + text.count(letter) for letter in "aeiou"]), flush=True)
PY
refused "leave --embed-cmd out" "$vexctl" search "$coll" --text x --embed-cmd "python3 $work/embed.py"
other=$base/vowels
"$vexctl" ingest "$tree" --into "$other" --embed-cmd "python3 $work/embed.py" --embed-name vowels >/dev/null
same "its dimension" 5 "$("$vexctl" collection show "$other" --json | jq .schema.dim)"
refused "give --embed-cmd" "$vexctl" search "$other" --text x
refused "--embed-name 'vowels'" "$vexctl" search "$other" --text x --embed-cmd true --embed-name consonants
"$vexctl" search "$other" --text aaaa -k 1 --embed-cmd "python3 $work/embed.py" --embed-name vowels >/dev/null
refused "status 7" "$vexctl" ingest "$tree" --into "$other" --embed-cmd "exit 7" --embed-name vowels
echo "vexctl on $mount: all well"
