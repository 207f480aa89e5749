#!/usr/bin/env python3
"""From process start to the end of a one-token answer, and peak memory, beside llama.cpp.

    python3 benches/peers/first_token.py --llama-simple PATH --puna target/release/puna \
        --model A.gguf --out benches/results/NAME.md

A whole process is timed: start, load, a prompt, one token, exit. The page cache is warm: one run
of each goes before those that count. Peak memory is the kernel's count of resident pages, mapped
pages of the model file included. Ours gets the ids of --tokens; the peer gets the text of
--prompt, and the number of tokens it made of it is read back and compared.

llama-simple has no flag for threads; another program of the peer's can be named with
--peer-command, in which {model} and {prompt} are filled in.

Exit status: 0 done, 1 a run failed, 2 wrong usage or no peer at the path given.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common

HINT = (
    "Build llama.cpp from its public source (cmake -B build && cmake --build build --target "
    "llama-simple) and give the path of llama-simple."
)
HEADINGS = ["model", "measure", "Puna", "peer", "peer / Puna"]
NOTES = [
    "Median of the rounds, least and greatest in brackets; the ratio is taken within each round "
    "and is above 1 where Puna needs less. Page cache warm."
]
# Sixteen tokens to SmolLM2; other tokenizers may count differently, which the run then says.
PROMPT = "The three largest cities of France by population are Paris, Marseille and also"
TOKENS = ",".join(str(token) for token in range(100, 116))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    peer = parser.add_mutually_exclusive_group(required=True)
    peer.add_argument("--llama-simple", metavar="PATH")
    peer.add_argument("--peer-command", metavar="LINE", help='"PROGRAM -m {model} -p {prompt} .."')
    parser.add_argument("--puna", required=True, metavar="PATH")
    parser.add_argument("--model", required=True, action="append", metavar="FILE.gguf")
    parser.add_argument("--tokens", default=TOKENS, help="ids for Puna (default: sixteen)")
    parser.add_argument("--prompt", default=PROMPT, help="text for the peer")
    parser.add_argument("--same-text", action="store_true", help="give Puna --prompt as well")
    parser.add_argument("--puna-args", default="", help='more flags for puna, as "--threads 2"')
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", required=True, metavar="FILE", help="both .json and .md are made")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds from 1 on")
    return args


def run(command):
    """Seconds, peak resident bytes and what the process wrote to stderr."""
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        try:
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        except OSError as error:
            raise common.Failure(f"{common.shown(command)}: {error}") from None
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        text = log.read().decode(errors="replace")
    if child.returncode != 0:
        raise common.complaint(command, child.returncode, text)
    # Linux counts KiB, macOS bytes. A child's count starts from what this script itself holds
    # (about 15 MiB) until it has grown beyond that.
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit, text


def prompt_tokens(log):
    """How many tokens the peer says its prompt had, if it says so."""
    found = re.search(r"prompt eval time\s*=\s*[\d.]+ ms\s*/\s*(\d+) tokens", log)
    return int(found[1]) if found else None


def table(cases):
    rows = []
    for case in cases:
        for key, name in (("ms", "start to exit, ms"), ("mib", "peak memory, MiB")):
            stats = case[key]
            rows.append(
                [
                    case["model"],
                    name,
                    common.cell(stats["puna"]),
                    common.cell(stats["peer"]),
                    common.ratio_cell(stats["ratio"]),
                ]
            )
    return rows


def compare(ours, theirs):
    return {
        "puna": common.spread(ours),
        "peer": common.spread(theirs),
        "ratio": common.spread([b / a for a, b in zip(ours, theirs)]),
    }


def measure(args, data, peer, puna, model):
    fill = {"{model}": model, "{prompt}": args.prompt}
    theirs_command = [fill.get(word, word) for word in peer]
    given = ["-p", args.prompt] if args.same_text else ["--tokens", args.tokens]
    ours_command = [puna, "generate", model, *given, "--max-new-tokens", "1", "--ignore-eos"]
    ours_command += ["--quiet", *shlex.split(args.puna_args)]
    counted = prompt_tokens(run(theirs_command)[2])
    run(ours_command)
    n_tokens = len(args.tokens.split(","))
    if not args.same_text and counted is not None and counted != n_tokens:
        common.say(f"note: the peer's prompt has {counted} tokens, ours {n_tokens}")
    ours, theirs = [], []
    for index in range(args.rounds):
        theirs.append(run(theirs_command)[:2])
        ours.append(run(ours_command)[:2])
        common.say(
            f"{Path(model).name} round {index + 1}/{args.rounds}: "
            f"peer {theirs[-1][0] * 1e3:.0f} ms {theirs[-1][1] / 2**20:.0f} MiB, "
            f"Puna {ours[-1][0] * 1e3:.0f} ms {ours[-1][1] / 2**20:.0f} MiB"
        )
    data["commands"] += [common.shown(theirs_command), common.shown(ours_command)]
    data["cases"].append(
        {
            "model": Path(model).name,
            "puna_prompt_tokens": None if args.same_text else n_tokens,
            "peer_prompt_tokens": counted,
            "ms": compare([s * 1e3 for s, _ in ours], [s * 1e3 for s, _ in theirs]),
            "mib": compare([b / 2**20 for _, b in ours], [b / 2**20 for _, b in theirs]),
        }
    )


def notes_of(data):
    notes = list(NOTES)
    for case in data["cases"]:
        ours, theirs = case["puna_prompt_tokens"], case["peer_prompt_tokens"]
        if ours and theirs and ours != theirs:
            notes.append(f"{case['model']}: prompt of {ours} tokens here, {theirs} at the peer.")
    return notes


def build_of(program):
    """Name and version of the peer; llama-simple knows none, a llama-bench beside it does."""
    name = Path(program).name
    asked = program if name != "llama-simple" else str(Path(program).with_name("llama-bench"))
    return f"{name} ({common.version_of(asked)})"


def main():
    args = arguments()
    if args.llama_simple:
        peer = [args.llama_simple, "-m", "{model}", "-n", "1", "{prompt}"]
    else:
        peer = shlex.split(args.peer_command)
        if "{model}" not in peer:
            common.fail("--peer-command needs {model} as a word of its own", 2)
    peer[0] = common.require_program(peer[0], "program of the peer", HINT)
    puna = common.require_program(args.puna, "puna", "Build it: cargo build --release.")
    models = [common.require_file(model) for model in args.model]
    common.output_paths(args.out)
    title = "Start to first token, beside llama.cpp"
    data = common.report(title, args.rounds, puna, build_of(peer[0]))
    status = 0
    try:
        for model in models:
            measure(args, data, peer, puna, model)
            common.write(args.out, data, HEADINGS, table(data["cases"]), notes_of(data))
    except common.Failure as failure:
        common.say(f"error: {failure}")
        status = 1
    except KeyboardInterrupt:
        common.say("interrupted")
        status = 130
    if data["cases"]:
        _, md_path = common.write(args.out, data, HEADINGS, table(data["cases"]), notes_of(data))
        common.say(f"wrote {md_path} and the .json beside it")
    return status


if __name__ == "__main__":
    sys.exit(main())
