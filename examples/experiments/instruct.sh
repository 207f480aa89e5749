#!/bin/sh
# Instruction tuning: multiple choice before and after. The paper's table 4, at a small scale.
#
#   WORDNET=words/usr/share/wordnet sh examples/experiments/instruct.sh
#   ARC=arc.jsonl MMLU=mmlu.jsonl INSTRUCT=alpaca_data.json WORDNET=... sh examples/experiments/instruct.sh
#   SMALL=1 ... sh examples/experiments/instruct.sh
#
# A LoRA is tuned on instructions with answers, in the model's own chat template; base and tuned
# model are asked as lm-evaluation-harness asks, without a template.
#
#   ARC, HELLASWAG, MMLU, TRUTHFULQA   JSON lines with the public data sets' own fields. What is
#             not named is made: small sets of the same form, from WordNet and the text.
#   ARC_EXAMPLES, HELLASWAG_EXAMPLES, MMLU_EXAMPLES   questions that stand before each question:
#             25, 10 and 5, or ARC_SHOTS, HELLASWAG_SHOTS, MMLU_SHOTS. A public set that is named
#             without them is asked without examples. TRUTHFULQA_PREFIX: a file with its six.
#   INSTRUCT  instructions: JSON or JSON lines with the fields of Alpaca (instruction, input, output)
#             or Dolly (instruction, context, response). Else they are made as well.
#   WORDNET, TEXT   as in domain.sh
#
# Numbers: ROWS conversations, TEST questions of a made set, LIMIT questions of any set, EPOCHS, RATE,
# RANK, DTYPE, SEED. The same command again goes on where it stopped.

experiment=instruct
. "$(dirname -- "$0")/common.sh"

OUT=${OUT:-$root/target/experiments/instruct$(pick '' -small)}
WORDNET=${WORDNET:-/usr/share/wordnet}
TEXT=${TEXT:-$(rust_books)}
INSTRUCT=${INSTRUCT:-}
ARC=${ARC:-}
ARC_EXAMPLES=${ARC_EXAMPLES:-}
HELLASWAG=${HELLASWAG:-}
HELLASWAG_EXAMPLES=${HELLASWAG_EXAMPLES:-}
MMLU=${MMLU:-}
MMLU_EXAMPLES=${MMLU_EXAMPLES:-}
TRUTHFULQA=${TRUTHFULQA:-}
TRUTHFULQA_PREFIX=${TRUTHFULQA_PREFIX:-}
ARC_SHOTS=${ARC_SHOTS:-$(pick 25 2)}
HELLASWAG_SHOTS=${HELLASWAG_SHOTS:-$(pick 10 1)}
MMLU_SHOTS=${MMLU_SHOTS:-$(pick 5 2)}
ROWS=${ROWS:-$(pick 1500 40)}
TEST=${TEST:-$(pick 200 25)}
LIMIT=${LIMIT:-$(pick 200 12)}
EPOCHS=${EPOCHS:-$(pick 2 1)}
RATE=${RATE:-2e-4}
RANK=${RANK:-16}
DTYPE=${DTYPE:-bf16}
SEED=${SEED:-1}

need WORDNET "see the head of domain.sh"
need TEXT "see the head of domain.sh"
begin ROWS TEST LIMIT ARC_SHOTS HELLASWAG_SHOTS MMLU_SHOTS EPOCHS RATE RANK DTYPE SEED

stage data "$TOOL" instruct --wordnet "$WORDNET" --text "$TEXT" --out "$OUT/data" \
    --instructions "$INSTRUCT" --rows "$ROWS" --test "$TEST" --seed "$SEED"

stage train "$PUNA" train "$MODEL" --dataset "$OUT/data/train.json" --output "$OUT/tuned" \
    --method lora --lora-target-modules all-linear --lora-r "$RANK" --lora-alpha "$((2 * RANK))" \
    --lora-dropout 0 --dtype "$DTYPE" --learning-rate "$RATE" --warmup-ratio 0.05 \
    --num-train-epochs "$EPOCHS" --batch-size 2 --block-size 512 --skip-bad-instances \
    --seed "$SEED" --save-steps 50 --save-total-limit 2 --resume --json

# asked NAME TASK FLAGS...: the base, then the tuned model beside it.
asked() {
    asked_name=$1
    shift
    stage "choice-$asked_name-base" "$PUNA" eval choice "$MODEL" --task "$@" --limit "$LIMIT" \
        --seed "$SEED" --json
    stage "choice-$asked_name-tuned" "$PUNA" eval choice "$MODEL" --adapter "$OUT/tuned" \
        --against "$MODEL" --task "$@" --limit "$LIMIT" --seed "$SEED" \
        --per-instance "$OUT/choice-$asked_name.jsonl" --json
}

# shots NAME TASK PUBLIC EXAMPLES N: a set that was named, else the one that was made, with its
# examples where there are any.
shots() {
    set_name=$1 task=$2 questions=$3 examples=$4 n=$5
    if [ -z "$questions" ]; then
        questions=$OUT/data/$set_name.jsonl
        examples=$OUT/data/$set_name-examples.jsonl
    fi
    if [ -n "$examples" ] && [ "$n" -gt 0 ]; then
        asked "$set_name" "$task" --dataset "$questions" --num-fewshot "$n" \
            --fewshot-dataset "$examples"
    else
        asked "$set_name" "$task" --dataset "$questions"
    fi
}

shots arc arc_challenge "$ARC" "$ARC_EXAMPLES" "$ARC_SHOTS"
shots hellaswag hellaswag "$HELLASWAG" "$HELLASWAG_EXAMPLES" "$HELLASWAG_SHOTS"
shots mmlu mmlu "$MMLU" "$MMLU_EXAMPLES" "$MMLU_SHOTS"
truth=${TRUTHFULQA:-$OUT/data/truthfulqa.jsonl}
for kind in mc1 mc2; do
    if [ -n "$TRUTHFULQA_PREFIX" ]; then
        asked "truthfulqa-$kind" "truthfulqa_$kind" --dataset "$truth" --prefix "$TRUTHFULQA_PREFIX"
    else
        asked "truthfulqa-$kind" "truthfulqa_$kind" --dataset "$truth"
    fi
done
report
