#!/usr/bin/env python3
"""Training speed and memory of Puna beside PyTorch + transformers + PEFT, in alternating runs.

    python3 benches/peers/torch_peft.py --puna target/release/puna --model DIR \
        --case full,1x512,f32 --case lora-qv,4x512,bf16 --out benches/results/NAME.md

DIR is a Hugging Face directory that both read (`puna convert` makes one of a GGUF file). A case is
METHOD,BATCHxLENGTH,DTYPE with `,checkpointing` behind it where wanted; METHOD is full, lora-qv or
lora-all. A round is one process of the peer and then one of ours. Each runs --steps optimiser steps
(AdamW, clipping at 1) on the same random tokens, the first of which is not counted. Speed is
BATCH * LENGTH tokens over the median time of a step; memory is the peak of the process.

bf16: the peer keeps full tuning's weights in f32 and computes under autocast, and loads frozen
weights as bf16; Puna stores activations and frozen weights as bf16 and trained values as f32.

Exit status: 0 done, 1 a run failed, 2 wrong usage or no peer installed.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import common

HINT = "pip install torch transformers peft (a CPU build of torch is enough)."
HEADINGS = [
    "case", "Puna, tokens/s", "peer, tokens/s", "Puna / peer", "Puna, MB", "peer, MB", "memory"
]
NOTES = [
    "Median of the rounds, least and greatest in brackets; ratios are taken within each round. "
    "Tokens are all tokens of the batch. MB are 10^6 bytes, peak resident memory of the process.",
]
RANK, ALPHA = 8, 16
TARGETS = {
    "lora-qv": ["q_proj", "v_proj"],
    "lora-all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def case_of(text):
    match = re.fullmatch(
        r"(full|lora-qv|lora-all),(\d+)x(\d+),(f32|bf16)(,checkpointing)?", text
    )
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted such as lora-qv,1x512,bf16")
    method, batch, length, dtype, checkpointing = match.groups()
    return {
        "name": text,
        "method": method,
        "batch": int(batch),
        "length": int(length),
        "dtype": dtype,
        "checkpointing": bool(checkpointing),
    }


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--puna", required=True, metavar="PATH")
    parser.add_argument("--model", required=True, metavar="DIR")
    parser.add_argument("--case", type=case_of, action="append", metavar="CASE")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=4, help="of which the first is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for one process")
    parser.add_argument("--out", metavar="FILE", help="both .json and .md are made")
    parser.add_argument("--peer-run", metavar="JSON", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.peer_run and not (args.case and args.out):
        parser.error("--case and --out are needed")
    if args.steps < 2 or args.rounds < 1:
        parser.error("--steps from 2 on, --rounds from 1 on")
    return args


def tokens(case, steps, vocabulary):
    source = random.Random(1)
    count = case["batch"] * steps
    return [[source.randrange(vocabulary) for _ in range(case["length"])] for _ in range(count)]


def peer_run(case, args):
    """One process of the peer: prints a JSON object with step times and peak memory."""
    import resource
    import time

    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    low, full = case["dtype"] == "bf16", case["method"] == "full"
    dtype = torch.bfloat16 if low and not full else torch.float32
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
    if not full:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(
            model,
            LoraConfig(
                r=RANK,
                lora_alpha=ALPHA,
                lora_dropout=0.0,
                target_modules=TARGETS[case["method"]],
                task_type="CAUSAL_LM",
            ),
        )
    if case["checkpointing"]:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
        model.config.use_cache = False
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-4)
    rows = tokens(case, args.steps, model.config.vocab_size)
    times = []
    for step in range(args.steps):
        ids = torch.tensor(rows[step * case["batch"] : (step + 1) * case["batch"]])
        start = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        loss = loss.item()
        times.append(time.perf_counter() - start)
    import peft
    import transformers

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    build = f"{versions}, peft {peft.__version__}, {args.threads} threads, OMP_PROC_BIND=true"
    print(json.dumps({"times": times, "peak_bytes": peak, "build": build, "loss": loss}))


def theirs(case, args):
    command = [
        sys.executable, str(Path(__file__).resolve()), "--puna", args.puna, "--model", args.model,
        "--threads", str(args.threads), "--steps", str(args.steps), "--peer-run", json.dumps(case),
    ]
    variables = {
        "OMP_PROC_BIND": "true", "OMP_NUM_THREADS": str(args.threads),
        "HF_HUB_OFFLINE": "1",
    }
    result = json.loads(common.run(command, args.timeout, variables).strip().splitlines()[-1])
    return statistics.median(result["times"][1:]), result["peak_bytes"], result


def ours(case, args, vocabulary):
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        lines = (json.dumps({"input_ids": ids}) for ids in tokens(case, args.steps, vocabulary))
        rows.write_text("\n".join(lines) + "\n")
        out = Path(folder) / "out"
        command = [
            args.puna, "train", args.model, "--dataset", str(rows), "--output", str(out),
            "--method", "full" if case["method"] == "full" else "lora",
            "--dtype", case["dtype"], "--threads", str(args.threads),
            "--batch-size", str(case["batch"]), "--max-steps", str(args.steps), "--no-shuffle",
            "--learning-rate", "1e-4", "--lr-scheduler-type", "constant", "--max-grad-norm", "1",
            "--save-steps", "0", "--quiet",
        ]
        if case["method"] != "full":
            command += [
                "--lora-r", str(RANK), "--lora-alpha", str(ALPHA), "--lora-dropout", "0",
                "--lora-target-modules", ",".join(TARGETS[case["method"]]),
            ]
        if case["checkpointing"]:
            command.append("--gradient-checkpointing")
        common.run(command, args.timeout)
        steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        steps = [step for step in steps if "tok_per_s" in step]
    times = [case["batch"] * case["length"] / step["tok_per_s"] for step in steps]
    return statistics.median(times[1:]), max(step["peak_bytes"] for step in steps), command


def vocabulary_of(model):
    try:
        return int(json.loads((Path(model) / "config.json").read_text())["vocab_size"])
    except (OSError, ValueError, KeyError) as error:
        common.fail(f"{model}: no vocab_size in config.json: {error}", 2)


def table(cases):
    return [
        [
            case["name"],
            common.cell(case["puna"]),
            common.cell(case["peer"]),
            common.ratio_cell(case["ratio"]),
            f"{case['puna_bytes'] / 1e6:.0f}",
            f"{case['peer_bytes'] / 1e6:.0f}",
            f"{case['puna_bytes'] / case['peer_bytes']:.2f}x",
        ]
        for case in cases
    ]


def measure(args, data, case, vocabulary):
    count = case["batch"] * case["length"]
    speeds, peaks = {"puna": [], "peer": []}, {"puna": [], "peer": []}
    for index in range(args.rounds):
        seconds, peak, result = theirs(case, args)
        data["peer_build"] = result["build"]
        speeds["peer"].append(count / seconds)
        peaks["peer"].append(peak)
        seconds, peak, command = ours(case, args, vocabulary)
        speeds["puna"].append(count / seconds)
        peaks["puna"].append(peak)
        common.say(
            f"{case['name']} round {index + 1}/{args.rounds}: "
            f"peer {common.number(speeds['peer'][-1])} tokens/s at {peaks['peer'][-1] / 1e6:.0f} MB, "
            f"Puna {common.number(speeds['puna'][-1])} at {peaks['puna'][-1] / 1e6:.0f} MB, "
            f"{speeds['puna'][-1] / speeds['peer'][-1]:.2f}x"
        )
    data["commands"].append(common.shown(command))
    data["cases"].append(
        {
            "name": case["name"],
            "puna": common.spread(speeds["puna"]),
            "peer": common.spread(speeds["peer"]),
            "ratio": common.spread([a / b for a, b in zip(speeds["puna"], speeds["peer"])]),
            "puna_bytes": max(peaks["puna"]),
            "peer_bytes": statistics.median(peaks["peer"]),
        }
    )


def main():
    args = arguments()
    if args.peer_run:
        peer_run(json.loads(args.peer_run), args)
        return 0
    puna = args.puna = common.require_program(args.puna, "puna", "Build it: cargo build --release.")
    probe = [sys.executable, "-c", "import torch, transformers, peft"]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        common.fail(f"torch, transformers and peft are not installed; nothing was measured. {HINT}", 2)
    args.model = str(Path(args.model).resolve())
    vocabulary = vocabulary_of(args.model)
    common.output_paths(args.out)
    title = f"Training beside PyTorch + PEFT: {Path(args.model).name}"
    data = common.report(title, args.rounds, puna, "not run yet")
    status = 0
    try:
        for case in args.case:
            measure(args, data, case, vocabulary)
            common.write(args.out, data, HEADINGS, table(data["cases"]), NOTES)
    except common.Failure as failure:
        common.say(f"error: {failure}")
        status = 1
    except KeyboardInterrupt:
        common.say("interrupted")
        status = 130
    if data["cases"]:
        _, md_path = common.write(args.out, data, HEADINGS, table(data["cases"]), NOTES)
        common.say(f"wrote {md_path} and the .json beside it")
    return status


if __name__ == "__main__":
    sys.exit(main())
