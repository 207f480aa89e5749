#!/bin/sh
# The whole table of README.md in one run: every part one after the other, rounds alternating.
#
#     PUNA=target/release/puna LATENCY=target/release/examples/latency LATENCY_PEER=latency_llama \
#     LLAMA_CPP=DIR IK_LLAMA_CPP=DIR LLAMA_CPP_AVX2=DIR IK_LLAMA_CPP_AVX2=DIR \
#     OPENVINO=ITS_PYTHON MODELS=DIR SMOLLM2=SmolLM2-135M-Instruct.Q4_1.gguf \
#     sh benches/peers/table.sh benches/results/2026-11-24-zen5-2c
#
# The peers' directories hold llama-bench and llama-simple (llama.cpp) or llama-cli (ik_llama.cpp).
# MODELS holds tl-TYPE.gguf and l7b-TYPE.gguf (`puna bench --shape tinyllama-1.1b | llama-7b --type
# TYPE --save FILE`), l32-q4_0.gguf (`--shape llama-3.2-1b`), and OpenVINO's tl-ov-int4 and
# smol-ov-int4. About 75 minutes with two cores; nothing else should run on the machine.
# A part that fails is named at the end, and the others are run all the same.
set -u
out=$1 rounds=${ROUNDS:-3} here=$(dirname "$0") failed=""
native="--peer llama.cpp=$LLAMA_CPP/llama-bench --peer ik_llama.cpp=$IK_LLAMA_CPP/llama-bench"
avx2="--peer llama.cpp=$LLAMA_CPP_AVX2/llama-bench --peer ik_llama.cpp=$IK_LLAMA_CPP_AVX2/llama-bench"
openvino="--openvino $OPENVINO --openvino-model tl-q4_0.gguf=$MODELS/tl-ov-int4 \
    --openvino-model $(basename "$SMOLLM2")=$MODELS/smol-ov-int4"
text="The three largest cities of France by population are Paris, Marseille and also"

models() { # NAME TYPE...: flags for the files MODELS/NAME-TYPE.gguf
    name=$1; shift
    for type; do printf -- '--model %s/%s-%s.gguf ' "$MODELS" "$name" "$type"; done
}
engines() { # PART FLAGS...
    part=$1; shift
    echo "$(date -u +%H:%M) $part"
    python3 "$here/engines.py" --puna "$PUNA" --rounds "$rounds" --out "$out-$part.md" "$@" || failed="$failed $part"
}
own() { # PART FLAGS...: a row of ours a line, the tests by turns in every round
    part=$1; shift
    echo "$(date -u +%H:%M) $part"
    for round in $(seq "$rounds"); do
        "$PUNA" bench "$MODELS/tl-q4_0.gguf" -p 0 -t 2 -r 1 --no-limits -o jsonl "$@"
    done | sed "s#$MODELS/##" > "$out-$part.jsonl"
    [ -s "$out-$part.jsonl" ] || failed="$failed $part"
}
first_token() { # PART COMMAND
    echo "$(date -u +%H:%M) $1"
    python3 "$here/first_token.py" --puna "$PUNA" --peer-command "$2" --model "$SMOLLM2" $(models tl q4_0) \
        $(models l7b q4_0) --same-text --prompt "$text" --puna-args=--cache-weights --rounds "$rounds" \
        --out "$out-$1.md" || failed="$failed $1"
}

# Lists of flags are split into words on purpose; paths hold no spaces.
engines 2-threads $native $openvino --model "$SMOLLM2" $(models tl q4_0 q4_k q6_k q8_0 bf16 f16) \
    $(models l32 q4_0) $(models l7b q4_0 q4_k q6_k q8_0) --threads 2
engines long $native $openvino $(models tl q4_0 q4_k q6_k q8_0) $(models l7b q4_0) --threads 2 \
    --prompt 2048 --gen 0
engines 1-thread $native $openvino --model "$SMOLLM2" $(models tl q4_0 q4_k q6_k q8_0 bf16 f16) --threads 1
engines avx2 $avx2 --isa avx2 --model "$SMOLLM2" $(models tl q4_0 q4_k q6_k q8_0 bf16) --threads 2
engines behind $native $(models tl q4_0) --threads 2 --prompt 0 --depth 2048
own depth -n 48 -d 0,2048,8192
own batch -n 32 -b 1,4,8
first_token first-token-llama "$LLAMA_CPP/llama-simple -m {model} -n 1 {prompt}"
first_token first-token-ik "$IK_LLAMA_CPP/llama-cli -m {model} -n 1 -t 2 --no-warmup -p {prompt}"
for more in "--requests 60 --period-ms 100 --deadline-ms 95 --rounds 5" \
    "--requests 40 --period-ms 200 --deadline-ms 195 --rounds 3 --compete"; do
    echo "\$ latency $(basename "$SMOLLM2") $more --peer latency_llama"
    "$LATENCY" "$SMOLLM2" $more --peer "$LATENCY_PEER" || failed="$failed latency"
done > "$out-latency.txt"
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
