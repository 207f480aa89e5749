#!/bin/sh
# SFT, then a reward model, then RAFT and PPO from the same SFT model, over several seeds: reward,
# perplexity, diversity and length in the layout of the paper's table 5.
#
#   sh examples/experiments/raft.sh
#   SMALL=1 sh examples/experiments/raft.sh
#
# Each passage of a real text is cut into a prompt and what follows it.
#   SFT      learns what follows, on some passages
#   reward   prefers what really follows to the SFT model's own answer, on others
#   RAFT, PPO   learn from answers to further prompts, by that reward, once with each seed
# All models answer prompts held out; the reward model scores the answers, and perplexity is that
# of the held-out passages themselves. Draws have the same temperature everywhere.
#
#   TEXT      English prose, files or folders with a comma between: .html, .txt, .md. Unless told
#             otherwise three books that come with Rust (`rustup component add rust-docs`, or
#             apt-get download rust-doc). Books of Project Gutenberg as plain text do as well. With
#             MODEL=builtin the stories in builtin/stories.txt.xz fit: `xz -dc` makes them a .txt.
#
# Numbers: SEEDS; passages: SFT_ROWS, PAIRS, PAIRS_HELD_OUT (of PAIRS), PROMPTS, TEST; learning:
# SFT_EPOCHS, SFT_RATE, REWARD_EPOCHS, REWARD_RATE, RANK, DTYPE; answers: MAX_NEW_TOKENS, TEMPERATURE;
# RAFT_ITERATIONS, RAFT_BATCH (answers learnt in an iteration), RAFT_SHARE (of those drawn),
# RAFT_EPOCHS, RAFT_RATE, RAFT_KL; PPO_ITERATIONS, PPO_BATCH, PPO_EPOCHS, PPO_RATE, PPO_KL. The same
# command again goes on where it stopped, inside a run too.

experiment=raft
. "$(dirname -- "$0")/common.sh"

OUT=${OUT:-$root/target/experiments/raft$(pick '' -small)}
TEXT=${TEXT:-$(rust_books)}
SEEDS=${SEEDS:-$(pick '1 2 3' '1 2')}
DATA_SEED=${DATA_SEED:-1}
SFT_ROWS=${SFT_ROWS:-$(pick 800 32)}
PAIRS=${PAIRS:-$(pick 480 24)}
PAIRS_HELD_OUT=${PAIRS_HELD_OUT:-$(pick 80 6)}
PROMPTS=${PROMPTS:-$(pick 320 8)}
TEST=${TEST:-$(pick 128 12)}
SFT_EPOCHS=${SFT_EPOCHS:-$(pick 2 1)}
SFT_RATE=${SFT_RATE:-2e-4}
REWARD_EPOCHS=${REWARD_EPOCHS:-$(pick 2 1)}
REWARD_RATE=${REWARD_RATE:-2e-4}
RANK=${RANK:-16}
DTYPE=${DTYPE:-bf16}
MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-$(pick 96 24)}
TEMPERATURE=${TEMPERATURE:-1}
RAFT_ITERATIONS=${RAFT_ITERATIONS:-$(pick 8 2)}
RAFT_BATCH=${RAFT_BATCH:-$(pick 32 2)}
RAFT_SHARE=${RAFT_SHARE:-$(pick 0.125 0.25)}
RAFT_EPOCHS=${RAFT_EPOCHS:-2}
RAFT_RATE=${RAFT_RATE:-2e-4}
RAFT_KL=${RAFT_KL:-0}
PPO_ITERATIONS=${PPO_ITERATIONS:-$(pick 8 2)}
PPO_BATCH=${PPO_BATCH:-$(pick 64 4)}
PPO_EPOCHS=${PPO_EPOCHS:-2}
PPO_RATE=${PPO_RATE:-1e-4}
PPO_KL=${PPO_KL:-0.05}

need TEXT "see the head of raft.sh"
begin SEEDS DATA_SEED SFT_ROWS PAIRS PAIRS_HELD_OUT PROMPTS TEST SFT_EPOCHS SFT_RATE REWARD_EPOCHS \
    REWARD_RATE RANK DTYPE MAX_NEW_TOKENS TEMPERATURE RAFT_ITERATIONS RAFT_BATCH RAFT_SHARE RAFT_EPOCHS \
    RAFT_RATE RAFT_KL PPO_ITERATIONS PPO_BATCH PPO_EPOCHS PPO_RATE PPO_KL

data=$OUT/data
mkdir -p "$OUT/answers"

# lora STAGE COMMAND...: with the flags of a new adapter.
lora() {
    lora_stage=$1
    shift
    stage "$lora_stage" "$@" --method lora --lora-target-modules all-linear --lora-r "$RANK" \
        --lora-alpha "$((2 * RANK))" --lora-dropout 0 --dtype "$DTYPE" --warmup-ratio 0.05 \
        --seed "$DATA_SEED" --save-steps 50 --save-total-limit 2 --resume --json
}

# drawn NAME PROMPTS SEED FLAGS...: answers to the prompts, in $OUT/answers/NAME.json.
drawn() {
    drawn_name=$1 drawn_prompts=$2 drawn_seed=$3
    shift 3
    stage "answers-$drawn_name" "$PUNA" generate "$MODEL" "$@" --dataset "$drawn_prompts" \
        --output "$OUT/answers/$drawn_name.json" --max-new-tokens "$MAX_NEW_TOKENS" \
        --temperature "$TEMPERATURE" --top-k 0 --top-p 1 --repetition-penalty 1 \
        --seed "$drawn_seed"
}

# measured NAME SEED FLAGS...: reward and diversity of a model's answers.
measured() {
    measured_name=$1-$2
    measured_seed=$2
    shift 2
    drawn "$measured_name" "$data/test-prompts.json" "$measured_seed" "$@"
    stage "reward-$measured_name" "$PUNA" eval reward "$MODEL" --adapter "$OUT/reward" \
        --dataset "$OUT/answers/$measured_name.json" \
        --output "$OUT/answers/$measured_name-scored.json" --json
    stage "diversity-$measured_name" "$PUNA" eval diversity \
        --dataset "$OUT/answers/$measured_name.json" --json
}

# perplexity NAME FLAGS...: of the passages held out.
perplexity() {
    perplexity_name=$1
    shift
    stage "ppl-$perplexity_name" "$PUNA" eval ppl "$MODEL" "$@" --dataset "$data/test-text.json" --json
}

stage data "$TOOL" text --text "$TEXT" --out "$data" --sft "$SFT_ROWS" --reward "$PAIRS" \
    --prompts "$PROMPTS" --test "$TEST" --seed "$DATA_SEED"

# What follows, learnt from real text.
lora sft "$PUNA" train "$MODEL" --dataset "$data/sft.json" --output "$OUT/sft" \
    --learning-rate "$SFT_RATE" --num-train-epochs "$SFT_EPOCHS" --batch-size 4 --block-size 256

# What really follows is preferred to the SFT model's answer.
drawn pairs "$data/reward-prompts.json" "$DATA_SEED" --adapter "$OUT/sft"
stage pairs "$TOOL" pairs --dataset "$data/reward.json" --answers "$OUT/answers/pairs.json" \
    --out "$data" --held-out "$PAIRS_HELD_OUT"
lora reward "$PUNA" reward "$MODEL" --dataset "$data/pairs.json" --output "$OUT/reward" \
    --learning-rate "$REWARD_RATE" --num-train-epochs "$REWARD_EPOCHS" --batch-size 4 \
    --center-rewards-coefficient 0.01
stage reward-accuracy "$PUNA" eval reward "$MODEL" --adapter "$OUT/reward" \
    --dataset "$data/pairs-held-out.json" --per-instance "$OUT/reward-accuracy.jsonl" --json
stage reward-real "$PUNA" eval reward "$MODEL" --adapter "$OUT/reward" --dataset "$data/test.json" \
    --json
stage diversity-real "$PUNA" eval diversity --dataset "$data/test.json" --json

# Both from the SFT model's adapter, with the same reward.
# online COMMAND SEED FLAGS...
online() {
    online_name=$1 online_seed=$2
    shift 2
    stage "$online_name-$online_seed" "$PUNA" "$online_name" "$MODEL" --dataset "$data/prompts.json" \
        --eval-dataset "$data/watched.json" --output "$OUT/$online_name-$online_seed" \
        --reward-model "$MODEL" --reward-adapter "$OUT/reward" --method lora --adapter "$OUT/sft" \
        --dtype "$DTYPE" --max-new-tokens "$MAX_NEW_TOKENS" --temperature "$TEMPERATURE" \
        --inference-batch-size 32 --batch-size 8 --seed "$online_seed" --resume --json "$@"
}

for seed in $SEEDS; do
    online raft "$seed" --num-raft-iteration "$RAFT_ITERATIONS" --raft-batch-size "$RAFT_BATCH" \
        --top-reward-percentage "$RAFT_SHARE" --num-train-epochs "$RAFT_EPOCHS" \
        --learning-rate "$RAFT_RATE" --kl-coef "$RAFT_KL"
    online ppo "$seed" --iterations "$PPO_ITERATIONS" --num-prompts "$PPO_BATCH" \
        --num-train-epochs "$PPO_EPOCHS" --learning-rate "$PPO_RATE" --kl-coef "$PPO_KL"
done

perplexity base
perplexity sft --adapter "$OUT/sft"
for seed in $SEEDS; do
    measured base "$seed"
    measured sft "$seed" --adapter "$OUT/sft"
    for method in ppo raft; do
        measured "$method" "$seed" --adapter "$OUT/$method-$seed"
        perplexity "$method-$seed" --adapter "$OUT/$method-$seed"
    done
done

# Sampling's tokens a second beside those of the same adapter in a benchmark, at the depth of the
# middle of an answer.
stage bench "$PUNA" bench "$MODEL" --adapter "$OUT/sft" -p 0 -n "$(pick 64 16)" -d 64 -b 1,8,32 \
    -r "$(pick 3 1)" --no-limits -o jsonl
report
