# What the experiments share. Sourced by them, not run.
#
# PUNA and TOOL name the programs (from `cargo build --release` and `cargo build --release --example
# experiment_data`), MODEL the model, OUT where everything goes. SMALL=1 makes every size so small
# that all stages are passed through in about two minutes; the numbers mean nothing then.

set -eu

root=$(cd -- "$(dirname -- "$0")/../.." && pwd)
built=${CARGO_TARGET_DIR:-$root/target}/release
PUNA=${PUNA:-$built/puna}
TOOL=${TOOL:-$built/examples/experiment_data}
MODEL=${MODEL:-${PUNA_SMOLLM2:-}}
SMALL=${SMALL:-0}

# Variables that name files of the user; the report shows them without their folders.
paths='MODEL TEXT WORDNET PUBMEDQA PUBMEDQA_TEST INSTRUCT ARC ARC_EXAMPLES HELLASWAG HELLASWAG_EXAMPLES
MMLU MMLU_EXAMPLES TRUTHFULQA TRUTHFULQA_PREFIX'

say() { printf '%s: %s\n' "$experiment" "$*" >&2; }

fail() {
    say "error: $*"
    exit 1
}

# pick FULL SMALL: the one for this run.
pick() {
    if [ "$SMALL" = 1 ]; then printf '%s\n' "$2"; else printf '%s\n' "$1"; fi
}

# The books that Rust's installer brings along, as the text where none is named.
rust_books() {
    sysroot=$(rustc --print sysroot 2>/dev/null) || return 0
    found=
    for book in book nomicon embedded-book; do
        book=$sysroot/share/doc/rust/html/$book
        if [ -d "$book" ]; then found=$found,$book; fi
    done
    printf '%s\n' "${found#,}"
}

# need NAME HINT: the variable must have a value, and each of its paths must be there.
need() {
    eval "needed=\${$1:-}"
    [ -n "$needed" ] || fail "$1 is not set; $2"
    old_ifs=$IFS
    IFS=,
    for path in $needed; do
        [ -e "$path" ] || [ "$path" = builtin ] || fail "$1: no $path; $2"
    done
    IFS=$old_ifs
}

# begin NAME...: checks the programs, and notes the values of these variables. A folder that was
# begun with other values is not gone on with.
begin() {
    command -v "$PUNA" >/dev/null || fail "no $PUNA; \`cargo build --release\` makes it, or set PUNA"
    command -v "$TOOL" >/dev/null || fail "no $TOOL; \`cargo build --release --example experiment_data\` makes it"
    need MODEL "PUNA_SMOLLM2 or MODEL names the model, see tests/fetch-smollm2.sh; MODEL=builtin is a toy"
    mkdir -p "$OUT/results"
    OUT=$(cd -- "$OUT" && pwd)
    {
        for name in $paths; do
            eval "value=\${$name:-}"
            [ -z "$value" ] || printf '%s=%s\n' "$name" "$(printf '%s' "$value" | sed 's#[^,]*/##g')"
        done
        for name in "$@"; do eval "printf '%s=%s\n' \"\$name\" \"\${$name}\""; done
    } >"$OUT/settings.new"
    if [ -f "$OUT/settings.txt" ] && ! cmp -s "$OUT/settings.txt" "$OUT/settings.new"; then
        diff "$OUT/settings.txt" "$OUT/settings.new" >&2 || true
        fail "$OUT was begun with other settings; remove it, or set OUT"
    fi
    mv -f "$OUT/settings.new" "$OUT/settings.txt"
    for name in PUNA TOOL OUT $paths; do
        eval "printf '%s=%s\n' \"\$name\" \"\${$name:-}\""
    done >"$OUT/paths.txt"
    stage machine "$PUNA" info --machine --json
}

# stage NAME COMMAND...: runs it once; what it prints goes to $OUT/results/NAME.json.
stage() {
    stage_name=$1
    shift
    if [ -f "$OUT/results/$stage_name.json" ]; then return 0; fi
    say "$stage_name"
    printf '%s\n' "$*" >>"$OUT/commands.txt"
    stage_began=$(date +%s)
    "$@" >"$OUT/results/$stage_name.part"
    mv -f "$OUT/results/$stage_name.part" "$OUT/results/$stage_name.json"
    printf '%s\t%s\n' "$stage_name" "$(($(date +%s) - stage_began))" >>"$OUT/times.txt"
}

# report: writes the tables anew.
report() {
    "$TOOL" report --experiment "$experiment" --dir "$OUT" >"$OUT/report.new"
    mv -f "$OUT/report.new" "$OUT/report.md"
    say "done: $OUT/report.md"
}
