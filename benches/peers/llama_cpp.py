#!/usr/bin/env python3
"""Speed of Puna beside llama.cpp, on the same files with the same threads, in alternating runs.

    python3 benches/peers/llama_cpp.py --llama-bench PATH --puna target/release/puna \
        --model A.gguf --model B.gguf --threads 1,2 --out benches/results/NAME.md

Each test (a prompt, single tokens, single tokens behind a filled context) runs for --rounds
rounds; a round is one process of the peer and then one of ours, seconds apart, so that a machine
whose speed drifts treats both alike. The result is the median, over the rounds, of the ratio
within a round. Any build of llama-bench will do, those of forks too; none is part of Puna.

Exit status: 0 done, 1 a run failed, 2 wrong usage or no peer at the path given.
"""

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import common

HINT = (
    "Build llama.cpp from its public source (cmake -B build && cmake --build build --target "
    "llama-bench) and give the path of llama-bench."
)
HEADINGS = ["model", "test", "threads", "Puna, tokens/s", "peer, tokens/s", "Puna / peer"]
NOTES = [
    "Median of the rounds, least and greatest in brackets. The ratio is taken within each round "
    "(peer, then Puna) and its median, least and greatest are given."
]


def whole_numbers(text):
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted numbers such as 1,2") from None
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted numbers from 1 on")
    return numbers


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--llama-bench", required=True, metavar="PATH")
    parser.add_argument("--puna", required=True, metavar="PATH")
    parser.add_argument("--model", required=True, action="append", metavar="FILE.gguf")
    parser.add_argument("--threads", type=whole_numbers, default=[1, 2], metavar="N,N")
    parser.add_argument("--prompt", type=int, default=512, help="tokens; 0: no prompt test")
    parser.add_argument("--gen", type=int, default=64, help="tokens; 0: no token tests")
    parser.add_argument("--depth", type=int, default=2048, help="filled context; 0: not tested")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer-args", default="", help='more flags for the peer, as "-fa 1"')
    parser.add_argument("--puna-args", default="", help="more flags for puna bench")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for one process")
    parser.add_argument("--out", required=True, metavar="FILE", help="both .json and .md are made")
    args = parser.parse_args()
    if args.rounds < 1 or min(args.prompt, args.gen, args.depth) < 0:
        parser.error("--rounds from 1 on; --prompt, --gen and --depth from 0 on")
    if args.prompt == 0 and args.gen == 0:
        parser.error("--prompt 0 and --gen 0 leave nothing to measure")
    return args


def tests_of(args):
    """(name, prompt tokens, generated tokens, depth) of every test."""
    tests = []
    if args.prompt:
        tests.append((f"pp{args.prompt}", args.prompt, 0, 0))
    if args.gen:
        tests.append((f"tg{args.gen}", 0, args.gen, 0))
        if args.depth:
            tests.append((f"tg{args.gen}@d{args.depth}", 0, args.gen, args.depth))
    return tests


def flags(prompt, gen, depth, threads):
    pairs = {"-p": prompt, "-n": gen, "-d": depth, "-t": threads, "-r": 1}
    return [word for flag, value in pairs.items() for word in (flag, str(value))] + ["-o", "json"]


def rows_of(text, command):
    """The result rows of either program: an array, or an object holding one as `results`."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise common.Failure(f"{common.shown(command)}: no JSON on stdout: {error}") from None
    rows = data.get("results") if isinstance(data, dict) else data
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise common.Failure(f"{common.shown(command)}: wanted an array of results")
    return rows


def key_of(row):
    """(prompt, generated, depth, threads) of a row, by its fields or else by its test's name."""
    match = re.fullmatch(r"(pp|tg)(\d+)(?:\s*@\s*d(\d+))?", str(row.get("test", "")))
    named = {}
    if match:
        named["n_prompt" if match[1] == "pp" else "n_gen"] = int(match[2])
        named["n_depth"] = int(match[3] or 0)
    prompt, gen, depth = (row.get(k, named.get(k, 0)) for k in ("n_prompt", "n_gen", "n_depth"))
    return prompt, gen, depth, row.get("n_threads", row.get("threads"))


def run(command, wanted, timeout):
    """Tokens per second of the one wanted test, and the row it stands in."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise common.Failure(f"{common.shown(command)}: not done after {timeout} s") from None
    except OSError as error:
        raise common.Failure(f"{common.shown(command)}: {error}") from None
    if done.returncode != 0:
        raise common.complaint(command, done.returncode, done.stderr)
    rows = [row for row in rows_of(done.stdout, command) if key_of(row) == wanted]
    if len(rows) != 1:
        raise common.Failure(
            f"{common.shown(command)}: {len(rows)} results for (prompt, generated, depth, "
            f"threads) = {wanted}, wanted 1"
        )
    samples = rows[0].get("samples_ts") or [rows[0].get("avg_ts")]
    if not all(isinstance(s, (int, float)) and s > 0 for s in samples):
        raise common.Failure(f"{common.shown(command)}: speeds {samples}, wanted numbers above 0")
    return statistics.median(samples), rows[0]


def peer_build(row):
    commit, build = row.get("build_commit"), row.get("build_number")
    return f"llama-bench {commit} (build {build}, {row.get('backends', 'backend not given')})"


def table(cases):
    return [
        [
            case["model"],
            case["test"],
            str(case["threads"]),
            common.cell(case["puna"]),
            common.cell(case["peer"]),
            common.ratio_cell(case["ratio"]),
        ]
        for case in cases
    ]


def measure(args, data, peer, puna, model, threads, test):
    name, prompt, gen, depth = test
    wanted = (prompt, gen, depth, threads)
    theirs_command = [peer, "-m", model, *flags(*wanted), *shlex.split(args.peer_args)]
    ours_command = [puna, "bench", model, "--no-limits", *flags(*wanted)]
    ours_command += shlex.split(args.puna_args)
    theirs, ours = [], []
    for index in range(args.rounds):
        speed, row = run(theirs_command, wanted, args.timeout)
        theirs.append(speed)
        data["peer_build"] = peer_build(row)
        ours.append(run(ours_command, wanted, args.timeout)[0])
        common.say(
            f"{Path(model).name} {name} threads {threads} round {index + 1}/{args.rounds}: "
            f"peer {common.number(theirs[-1])}, Puna {common.number(ours[-1])}, "
            f"{ours[-1] / theirs[-1]:.2f}x"
        )
    data["commands"] += [common.shown(theirs_command), common.shown(ours_command)]
    data["cases"].append(
        {
            "model": Path(model).name,
            "test": name,
            "threads": threads,
            "puna": common.spread(ours),
            "peer": common.spread(theirs),
            "ratio": common.spread([a / b for a, b in zip(ours, theirs)]),
        }
    )


def main():
    args = arguments()
    peer = common.require_program(args.llama_bench, "llama-bench", HINT)
    puna = common.require_program(args.puna, "puna", "Build it: cargo build --release.")
    models = [common.require_file(model) for model in args.model]
    common.output_paths(args.out)
    data = common.report("Puna beside llama.cpp", args.rounds, puna, "not run yet")
    status = 0
    try:
        for model in models:
            for threads in args.threads:
                for test in tests_of(args):
                    measure(args, data, peer, puna, model, threads, test)
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
