#!/usr/bin/env bash
# Everything that only a GPU can show, in under nine minutes: on a machine with a GPU, without Rust and
# without a network.
#
#   cuda/suite.sh --pack DIR          where Rust is: builds, and gathers into DIR what has to be carried
#   DIR/cuda/suite.sh [JSON]          there: runs it and writes JSON (suite.json)
#
# Parts: all kernels against references; whole models (logits, losses, gradients, ten training steps
# against the CPU's); serving; commands, and a run that is killed and goes on; SmolLM2's text
# (PUNA_SMOLLM2=FILE, or packed if --pack found it); compute-sanitizer's memcheck and racecheck over small
# sizes; kernels and whole models timed, beside PyTorch where python3 has it. Each has a time limit; one
# that runs out of it, or fails, is told and the next one runs. Exit status 1 if any did.
#
# PUNA_CUDA=host runs the same on the host harness: a test of this script.
set -euo pipefail
export LC_ALL=C

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
budget_s=${PUNA_SUITE_SECONDS:-520}

say() { printf '%s\n' "$*"; }
fail() {
    printf 'suite.sh: %s\n' "$*" >&2
    exit 2
}

# ---- packing ----

pack() {
    local to=$1 tests puna
    command -v cargo >/dev/null 2>&1 || fail "--pack wants cargo"
    mkdir -p "$to/cuda" "$to/tests"
    cd "$here"
    local features=cuda
    [ "${PUNA_CUDA:-device}" != host ] || features=cuda-host
    cargo build --release --features "$features" --bin puna
    tests=$(cargo test --release --features "$features" --test cuda_vs_cpu --no-run --message-format=json |
        sed -n 's/.*"executable":"\([^"]*cuda_vs_cpu-[^"]*\)".*/\1/p' | tail -1)
    [ -n "$tests" ] || fail "cargo named no test binary"
    puna=${CARGO_TARGET_DIR:-target}/release/puna
    cp "$puna" "$to/puna"
    cp "$tests" "$to/cuda_vs_cpu"
    if command -v strip >/dev/null 2>&1; then strip "$to/cuda_vs_cpu" "$to/puna"; fi
    cp cuda/suite.sh "$to/cuda/"
    if [ -f cuda/bench_torch.py ]; then cp cuda/bench_torch.py "$to/cuda/"; fi
    cp -R tests/fixtures "$to/tests/"
    git rev-parse HEAD >"$to/commit" 2>/dev/null || echo unknown >"$to/commit"
    if [ -n "${PUNA_SMOLLM2:-}" ]; then cp "$PUNA_SMOLLM2" "$to/smollm2.gguf"; fi
    du -sm "$to" | awk '{ print "suite.sh: " $1 " MiB in all" (($1 >= 64) ? ", more than 64" : "") }'
}

if [ "${1:-}" = --pack ]; then
    [ $# = 2 ] || fail "--pack wants one folder"
    pack "$2"
    exit 0
fi
case "${1:-}" in
-h | --help)
    sed -n '2,16s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
-*) fail "unknown option $1 (known: --pack DIR)" ;;
esac

# ---- running ----

json=${1:-suite.json}
export PUNA_CUDA=${PUNA_CUDA:-device} PUNA_PROGRAM=$here/puna PUNA_FIXTURES=$here/tests/fixtures
[ "$PUNA_CUDA" != device ] || export REQUIRE_CUDA=1
on=cuda slower=1
# The harness takes its time.
[ "$PUNA_CUDA" = device ] || on=harness slower=10
budget_s=$((budget_s * slower))
[ -x "$here/cuda_vs_cpu" ] && [ -x "$here/puna" ] ||
    fail "no $here/cuda_vs_cpu and $here/puna: run suite.sh --pack DIR where Rust is, and DIR/cuda/suite.sh here"
if [ -z "${PUNA_SMOLLM2:-}" ] && [ -f "$here/smollm2.gguf" ]; then export PUNA_SMOLLM2=$here/smollm2.gguf; fi
command -v timeout >/dev/null 2>&1 || fail "no timeout (GNU coreutils)"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
started=$SECONDS
parts=()
table=()
failed=0
refusals=0

# note NAME STATUS SECONDS WHY
note() {
    table+=("$(printf '%-34s %-9s %5s s  %s' "$1" "$2" "$3" "$4")")
    parts+=("{\"part\":\"$1\",\"status\":\"$2\",\"seconds\":$3,\"note\":\"$(printf '%s' "$4" | tr -d '\n"\\' | cut -c1-300)\"}")
    [ "$2" != failed ] && [ "$2" != timeout ] || failed=1
    say "==> $1: $2${4:+ ($4)}"
}

# part LIMIT NAME COMMAND...: runs it for at most LIMIT seconds, and no longer than all may take.
part() {
    local limit=$(($1 * slower)) name=$2 from=$SECONDS left status=0
    shift 2
    left=$((budget_s - (SECONDS - started)))
    if [ "$left" -lt 5 ]; then
        note "$name" skipped 0 "no time left of $budget_s s"
        return 0
    fi
    [ "$limit" -le "$left" ] || limit=$left
    say "==> $name (at most $limit s)"
    timeout --kill-after=5 "$limit" "$@" >"$work/out" 2>&1 || status=$?
    case $status in
    0) note "$name" passed $((SECONDS - from)) "$(sed -n 's/^test result: ok\. \([0-9]* passed\).*/\1/p' "$work/out" | tail -1)" ;;
    124 | 137) note "$name" timeout $((SECONDS - from)) "limit $limit s" ;;
    *)
        # What a timing refuses by name is not there yet; a test that is refused has failed.
        if [ "$refusals" = 1 ] && grep -qE '(not supported: |computes on the CPU)' "$work/out"; then
            note "$name" absent $((SECONDS - from)) "not in this build: $(grep -v '^$' "$work/out" | tail -1)"
            return 0
        fi
        tail -40 "$work/out"
        note "$name" failed $((SECONDS - from)) "exit status $status: $(grep -v '^$' "$work/out" | tail -1)"
        ;;
    esac
}

tests() { "$here/cuda_vs_cpu" "$@"; }
export -f tests
export here

card=unknown driver=unknown
if command -v nvidia-smi >/dev/null 2>&1; then
    card=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1 || echo unknown)
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -1 || echo unknown)
fi
say "device: $card, driver $driver"

whole=(--skip model:: --skip serve:: --skip steps:: --skip commands:: --skip qlora::)
part 150 "kernels against references" "$here/cuda_vs_cpu" "${whole[@]}"
part 60 "models against the CPU" "$here/cuda_vs_cpu" model:: qlora:: steps::
part 60 "serving" "$here/cuda_vs_cpu" serve::
part 60 "commands, kill and resume" "$here/cuda_vs_cpu" commands::

smollm2() {
    local n=32
    [ "$on" = cuda ] || n=2
    local ask=(generate "$PUNA_SMOLLM2" -p "The capital of France is" --max-new-tokens "$n" --temperature 0
        --exact --json)
    "$here/puna" "${ask[@]}" --device cpu >"$work/cpu.json" &&
        "$here/puna" "${ask[@]}" --device "$on" >"$work/gpu.json" || return 1
    local field='s/.*"tokens":\(\[[^]]*\]\).*/\1/p'
    [ "$(sed -n "$field" "$work/cpu.json")" = "$(sed -n "$field" "$work/gpu.json")" ] || {
        cat "$work/cpu.json" "$work/gpu.json"
        return 1
    }
}
export -f smollm2
export work on
if [ -n "${PUNA_SMOLLM2:-}" ]; then
    part 60 "SmolLM2's text" bash -c smollm2
else
    note "SmolLM2's text" skipped 0 "PUNA_SMOLLM2 names no file"
fi

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
for tool in memcheck racecheck; do
    if [ -n "$sanitizer" ]; then
        part 70 "$tool" "$sanitizer" --tool "$tool" --error-exitcode 9 "$here/cuda_vs_cpu" \
            --test-threads 1 rms_norm:: rope:: swiglu:: embedding:: steps::two_runs
    else
        note "$tool" skipped 0 "no compute-sanitizer"
    fi
done

# ---- timings ----

timings=()
refusals=1
# measured NAME LIMIT FILE COMMAND...: a part whose standard output is JSON, kept in the result.
measured() {
    local name=$1 limit=$2 file=$3
    shift 3
    part "$limit" "$name" bash -c '"$@" >"$0" || exit' "$file" "$@"
    if [ -s "$file" ] && head -c1 "$file" | grep -q '[[{]'; then
        timings+=("\"$name\":$(tr -d '\n' <"$file")")
    fi
}

if [ "$on" = cuda ]; then
    kernels=(--shape llama3-8b)
    models=("BF16 llama3-8b" "Q4_K llama3-8b")
else
    # The harness takes seconds for what a GPU does in none.
    kernels=(-r 1)
    models=()
fi
have_torch=0
if python3 -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then have_torch=1; fi
for round in 1 2; do
    if [ "$on" = cuda ] || [ "$round" = 1 ]; then
        measured "kernels, round $round" 60 "$work/kernels$round.json" \
            "$here/puna" bench --kernels --device "$on" "${kernels[@]}" -o json
    fi
    if [ $have_torch = 1 ] && [ -f "$here/cuda/bench_torch.py" ]; then
        measured "PyTorch, round $round" 60 "$work/torch$round.json" \
            python3 "$here/cuda/bench_torch.py" "$work/kernels$round.json"
    elif [ "$round" = 1 ]; then
        note "PyTorch" skipped 0 "python3 has no torch with a GPU"
    fi
done
for model in "${models[@]}"; do
    read -r type shape <<<"$model"
    measured "tokens, $shape $type" 90 "$work/decode-$type.json" \
        "$here/puna" bench --shape "$shape" --type "$type" -p 512 -n 64 -r 3 --device "$on" -o json
done
if [ "$on" = cuda ]; then
    for method in lora qlora; do
        measured "step, llama3-8b $method" 90 "$work/step-$method.json" \
            "$here/puna" bench --train --shape llama3-8b --type BF16 --method "$method" --dtype bf16 \
            -p 4096 -b 1 -r 3 --device "$on" -o json
    done
fi

join() {
    local IFS=,
    printf '%s' "$*"
}
commit=$(cat "$here/commit" 2>/dev/null || echo unknown)
{
    printf '{"device":"%s","driver":"%s","commit":"%s","seconds":%d,"parts":[%s],"timings":{%s}}\n' \
        "$card" "$driver" "$commit" $((SECONDS - started)) "$(join "${parts[@]}")" "$(join "${timings[@]}")"
} >"$work/suite.json"
mv "$work/suite.json" "$json"

say ""
printf '%s\n' "${table[@]}"

# Ours beside PyTorch, row by row: medians of the rounds, and the ratio of speeds.
if [ $have_torch = 1 ]; then
    python3 - "$json" <<'PY' || say "no ratios: the rows of the two do not meet"
import json, statistics, sys

result = json.load(open(sys.argv[1]))
timings = result["timings"]
ratios = []
sides = {"kernels": {}, "PyTorch": {}}
for name, found in timings.items():
    side = sides.get(name.split(",")[0])
    if side is None:
        continue
    for row in found["results"]:
        if row.get("ms"):
            side.setdefault(row["test"], []).append(row["ms"])
print(f"{'row':44} {'ours ms':>10} {'torch ms':>10} {'speed':>7}")
for test, ours in sides["kernels"].items():
    theirs = sides["PyTorch"].get(test)
    own = statistics.median(ours)
    if theirs:
        peer = statistics.median(theirs)
        # The spread is that of the rounds, each beside its own.
        rounds = [b / a for a, b in zip(ours, theirs)]
        ratios.append({"test": test, "ms": own, "torch_ms": peer, "speed": peer / own, "rounds": rounds})
        print(f"{test:44} {own:10.4f} {peer:10.4f} {peer / own:6.2f}x")
    else:
        print(f"{test:44} {own:10.4f} {'-':>10}")
result["ratios"] = ratios
with open(sys.argv[1], "w") as file:
    json.dump(result, file)
PY
fi
say "$json written, $((SECONDS - started)) s"
[ $failed = 0 ]
