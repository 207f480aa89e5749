#!/bin/sh
# Tuning on a domain: does a model answer more of the domain's questions, on words that it was not
# tuned on, and what does that cost it elsewhere? The paper's tables 2 and 3, at a small scale.
#
#   WORDNET=words/usr/share/wordnet sh examples/experiments/domain.sh
#   SMALL=1 ... sh examples/experiments/domain.sh
#
# A LoRA is tuned on questions about medical words of WordNet: what kind of thing, which word has
# this meaning, is it such a thing. The same is asked of words held out, of the base and of the
# tuned model. Perplexity is measured on the definitions of those words and on a text of another
# domain.
#
#   WORDNET   the folder with data.noun and index.noun. On Debian and its like:
#                 apt-get download wordnet-base && dpkg -x wordnet-base_*.deb words
#   TEXT      English prose, files or folders with a comma between: .html, .txt, .md. Unless told
#             otherwise three books that come with Rust (`rustup component add rust-docs`, or
#             apt-get download rust-doc). Books of Project Gutenberg as plain text do as well.
#   PUBMEDQA  perhaps PubMedQA's ori_pqal.json, and PUBMEDQA_TEST its test_ground_truth.json: tuned
#             on and asked as well
#
# Numbers: TRAIN_WORDS and TEST_WORDS of each of six kinds, PARAGRAPHS, PUBMEDQA_ROWS, EPOCHS, RATE,
# RANK, DTYPE, SEED. The same command again goes on where it stopped.

experiment=domain
. "$(dirname -- "$0")/common.sh"

OUT=${OUT:-$root/target/experiments/domain$(pick '' -small)}
WORDNET=${WORDNET:-/usr/share/wordnet}
TEXT=${TEXT:-$(rust_books)}
PUBMEDQA=${PUBMEDQA:-}
PUBMEDQA_TEST=${PUBMEDQA_TEST:-}
PUBMEDQA_ROWS=${PUBMEDQA_ROWS:-$(pick 200 8)}
TRAIN_WORDS=${TRAIN_WORDS:-$(pick 120 6)}
TEST_WORDS=${TEST_WORDS:-$(pick 40 4)}
PARAGRAPHS=${PARAGRAPHS:-$(pick 120 10)}
EPOCHS=${EPOCHS:-$(pick 2 1)}
RATE=${RATE:-3e-4}
RANK=${RANK:-16}
DTYPE=${DTYPE:-bf16}
SEED=${SEED:-1}

need WORDNET "see the head of domain.sh"
need TEXT "see the head of domain.sh"
begin TRAIN_WORDS TEST_WORDS PARAGRAPHS PUBMEDQA_ROWS EPOCHS RATE RANK DTYPE SEED

stage data "$TOOL" domain --wordnet "$WORDNET" --text "$TEXT" --out "$OUT/data" \
    --train-words "$TRAIN_WORDS" --test-words "$TEST_WORDS" --paragraphs "$PARAGRAPHS" \
    --pubmedqa "$PUBMEDQA" --pubmedqa-test "$PUBMEDQA_TEST" --pubmedqa-rows "$PUBMEDQA_ROWS" \
    --seed "$SEED"

stage train "$PUNA" train "$MODEL" --dataset "$OUT/data/train.json" --output "$OUT/tuned" \
    --method lora --lora-target-modules all-linear --lora-r "$RANK" --lora-alpha "$((2 * RANK))" \
    --lora-dropout 0 --dtype "$DTYPE" --learning-rate "$RATE" --warmup-ratio 0.05 \
    --num-train-epochs "$EPOCHS" --batch-size 2 --block-size 512 --skip-bad-instances \
    --seed "$SEED" --save-steps 50 --save-total-limit 2 --resume --json

# chosen SET TASK: the likeliest answer.
chosen() {
    stage "choice-$1" "$PUNA" eval choice "$MODEL" --adapter "$OUT/tuned" --against "$MODEL" \
        --task "$2" --dataset "$OUT/data/$1.jsonl" --per-instance "$OUT/choice-$1.jsonl" \
        --seed "$SEED" --json
}

# written SET TYPE: the model's own words.
written() {
    stage "accuracy-$1" "$PUNA" eval accuracy "$MODEL" --adapter "$OUT/tuned" --against "$MODEL" \
        --answer-type "$2" --dataset "$OUT/data/$1.json" --max-new-tokens 12 \
        --per-instance "$OUT/accuracy-$1.jsonl" --resume --seed "$SEED" --json
}

# perplexity SET: of its texts.
perplexity() {
    stage "ppl-$1" "$PUNA" eval ppl "$MODEL" --adapter "$OUT/tuned" --against "$MODEL" \
        --dataset "$OUT/data/$1.json" --seed "$SEED" --json
}

chosen kind arc_easy
chosen word arc_easy
chosen abstract pubmedqa
chosen other arc_easy
written kind text
written abstract pubmedqa
if [ -n "$PUBMEDQA" ]; then
    chosen pubmedqa pubmedqa
    written pubmedqa pubmedqa
fi
perplexity definitions
perplexity out
report
