#!/usr/bin/env bash
# Makes the built-in model again, from its corpus or from nothing.
#
#   builtin/make.sh            from the corpus in the repository
#   builtin/make.sh --corpus   writes the corpus anew first, with SmolLM2 (half an hour more)
#
# Needs python3 (with pip for --corpus) and a built puna: PUNA names it, target/release/puna if not.
# What it makes on the way lies in builtin/build; the result is builtin/builtin.gguf.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

puna=${PUNA:-../target/release/puna}
shards=41
prompts=250
scenes=16000
max_bytes=6000000

say() { printf 'make: %s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }
[ -x "$(command -v "$puna")" ] || fail "no $puna; cargo build --release makes it, or set PUNA"

build=build
mkdir -p "$build"

if [ "${1:-}" = --corpus ]; then
    smollm2=$(bash ../tests/fetch-smollm2.sh "$build")
    python3 prompts.py "$build" "$shards" "$prompts"
    for ((i = 0; i < shards; i++)); do
        shard=$(printf '%02d' "$i")
        [ -s "$build/answers-$shard.json" ] && continue
        say "stories, shard $shard of $shards"
        "$puna" generate "$smollm2" --dataset "$build/prompts-$shard" \
            --output "$build/answers-$shard.json" --seed "$i" --temperature 0.6 --top-k 40 \
            --top-p 0.9 --repetition-penalty 1.1 --max-new-tokens 110
    done
    python3 filter.py "$build/stories.txt" "$build"/answers-*.json
    # No time stamp inside: the same stories give the same file.
    python3 -c 'import lzma, sys; sys.stdout.buffer.write(lzma.compress(sys.stdin.buffer.read(), preset=9))' \
        <"$build/stories.txt" >stories.txt.xz
fi

say "corpus"
sha256sum --check --quiet stories.sha256 ||
    say "the stories are not those that the published model was made of"
python3 corpus.py "$build/corpus" stories.txt.xz "$scenes"

say "tokenizer"
vocab_size=$(python3 -c 'import json; print(json.load(open("config.json"))["vocab_size"])')
"$puna" vocab train --dataset "$build/corpus/train" --vocab-size "$vocab_size" \
    --output tokenizer --overwrite
mkdir -p "$build/init"
cp config.json tokenizer/*.json "$build/init/"

# A config.json without weights: training begins from random ones.
say "training"
"$puna" train "$build/init/config.json" --method full --dataset "$build/corpus/train" \
    --output "$build/model" --overwrite --seed 1 \
    --block-size 512 --batch-size 4 --num-train-epochs 4 \
    --learning-rate 2e-3 --lr-scheduler-type cosine --warmup-ratio 0.02 \
    --weight-decay 0.05 --adam-beta2 0.95 --max-grad-norm 1

say "quantisation"
"$puna" quantize "$build/model" builtin.gguf --type Q6_K --overwrite
bytes=$(wc -c <builtin.gguf)
[ "$bytes" -le "$max_bytes" ] || fail "builtin.gguf has $bytes bytes, wanted at most $max_bytes"
say "builtin.gguf, $bytes bytes"

"$puna" eval nll builtin.gguf --text "$build/corpus/valid.txt" --window 512
"$puna" generate builtin.gguf -p "One day, Lily found a kite." --max-new-tokens 80
