#!/usr/bin/env python3
"""Speed of Puna beside other engines, on the same files with the same threads, in alternating runs.

    python3 benches/peers/engines.py --puna target/release/puna --peer llama.cpp=LLAMA_BENCH \
        [--peer ik_llama.cpp=ITS_LLAMA_BENCH] [--openvino PYTHON --openvino-model A.gguf=DIR] \
        --model A.gguf --model B.gguf --threads 1,2 --out benches/results/NAME.md

Each test (prompts, single tokens, single tokens behind a filled context) runs for --rounds rounds;
a round is one process of each peer and then one of ours, seconds apart, so that a machine whose
speed drifts treats all alike. A ratio is taken within each round, and its median is the result. Ours
also measures the machine's read bandwidth and arithmetic peak in that process, and is given as a
share of them. Any build of llama-bench will do, those of forks too. OpenVINO GenAI takes part
in prompts, and in tokens at depth 0, for models that --openvino-model gives a directory of `optimum-cli
export openvino` for. None of them is part of Puna.

Exit status: 0 done, 1 a run failed, 2 wrong usage or no peer at the path given.
"""

import argparse
import json
import re
import shlex
import statistics
import sys
from pathlib import Path

import common

HINT = (
    "Build llama.cpp from its public source (cmake -B build && cmake --build build --target "
    "llama-bench) and give the path of llama-bench."
)
NOTES = [
    "Tokens per second: median of the rounds, least and greatest in brackets. The ratio is taken within "
    "each round (the peers, then Puna) and its median, least and greatest are given. Share: of the "
    "read bandwidth (single tokens) or of the arithmetic peak (prompts) that Puna's processes "
    "measured beside their runs with as many threads."
]


def named_path(text):
    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted NAME=PATH")
    return name, path


def whole_numbers(text):
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted numbers such as 1,2") from None
    if not numbers or min(numbers) < 0:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted numbers from 0 on")
    return numbers


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--peer", type=named_path, action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--openvino", metavar="PYTHON", help="a Python with openvino_genai")
    parser.add_argument(
        "--openvino-model", type=named_path, action="append", default=[], metavar="FILE.gguf=DIR"
    )
    parser.add_argument("--puna", required=True, metavar="PATH")
    parser.add_argument("--model", required=True, action="append", metavar="FILE.gguf")
    parser.add_argument("--threads", type=whole_numbers, default=[1, 2], metavar="N,N")
    parser.add_argument("--prompt", type=whole_numbers, default=[512], help="0: no prompt test")
    parser.add_argument("--gen", type=int, default=64, help="tokens; 0: no token tests")
    parser.add_argument("--depth", type=whole_numbers, default=[0], help="filled contexts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--isa", help="PUNA_ISA of our processes: avx2, beside peers built for it")
    parser.add_argument("--peer-args", default="", help='more flags for llama-bench, as "-fa 1"')
    parser.add_argument("--puna-args", default="", help="more flags for puna bench")
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for one process")
    parser.add_argument("--out", required=True, metavar="FILE", help="both .json and .md are made")
    args = parser.parse_args()
    if args.rounds < 1 or args.gen < 0 or min(args.threads) < 1:
        parser.error("--rounds and --threads from 1 on; --gen from 0 on")
    if not args.peer and not args.openvino:
        parser.error("no peer is given; nothing was measured")
    if bool(args.openvino) != bool(args.openvino_model):
        parser.error("--openvino and --openvino-model go together")
    return args


def tests_of(args):
    """(name, prompt tokens, generated tokens, depth) of every test."""
    tests = [(f"pp{n}", n, 0, 0) for n in args.prompt if n]
    if args.gen:
        for depth in args.depth:
            behind = f"@d{depth}" if depth else ""
            tests.append((f"tg{args.gen}{behind}", 0, args.gen, depth))
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


def speed_of(row, command):
    samples = row.get("samples_ts") or [row.get("avg_ts")]
    if not all(isinstance(s, (int, float)) and s > 0 for s in samples):
        raise common.Failure(f"{common.shown(command)}: speeds {samples}, wanted numbers above 0")
    return statistics.median(samples)


def run_bench(command, wanted, timeout, isa=None):
    """Tokens per second of the one wanted test, and the row it stands in."""
    rows = rows_of(common.run(command, timeout, {"PUNA_ISA": isa} if isa else {}), command)
    rows = [row for row in rows if key_of(row) == wanted]
    if len(rows) != 1:
        raise common.Failure(
            f"{common.shown(command)}: {len(rows)} results for (prompt, generated, depth, "
            f"threads) = {wanted}, wanted 1"
        )
    return speed_of(rows[0], command), rows[0]


class LlamaBench:
    """llama.cpp, or a fork, through its own benchmark."""

    def __init__(self, name, path, args):
        self.name, self.args, self.build = name, args, "not run yet"
        self.path = common.require_program(path, f"llama-bench of {name}", HINT)
        # Older forks measure tokens behind a prompt instead of behind a depth; the same test.
        self.has_depth = "--n-depth" in common.run([self.path, "--help"], args.timeout)

    def command(self, model, wanted):
        prompt, gen, depth, threads = wanted
        more = shlex.split(self.args.peer_args)
        if self.has_depth:
            return [self.path, "-m", model, *flags(*wanted), *more]
        if depth:
            prompt, gen, more = 0, 0, ["-gp", f"{depth},{gen}", *more]
        sizes = ["-p", str(prompt), "-n", str(gen), "-t", str(threads), "-r", "1", "-o", "json"]
        return [self.path, "-m", model, *sizes, *more]

    def speed(self, command, wanted):
        prompt, gen, depth, threads = wanted
        if depth and not self.has_depth:
            wanted = (depth, gen, 0, threads)
        speed, row = run_bench(command, wanted, self.args.timeout)
        self.build = f"{row.get('build_commit')} (build {row.get('build_number')})"
        return speed


class OpenVino:
    """OpenVINO GenAI, which reads directories of its own."""

    name = "OpenVINO"

    def __init__(self, args):
        self.args, self.build = args, "not run yet"
        hint = "python3 -m venv ov && ov/bin/pip install openvino-genai optimum-intel"
        common.require_program(args.openvino, "Python", hint)
        # As it is given: a virtual environment is found by its own, unresolved path.
        self.python = args.openvino
        self.models = {Path(file).name: folder for file, folder in args.openvino_model}

    def command(self, model, wanted):
        prompt, gen, depth, threads = wanted
        folder = self.models.get(Path(model).name)
        if folder is None or depth:
            return None
        script = str(Path(__file__).with_name("openvino_run.py"))
        numbers = {"--prompt": prompt, "--gen": gen, "--threads": threads}
        pairs = [word for flag, value in numbers.items() for word in (flag, str(value))]
        return [self.python, script, folder, *pairs]

    def speed(self, command, _wanted):
        out = common.run(command, self.args.timeout)
        try:
            row = json.loads(out[out.index("{"):])
        except ValueError as error:
            raise common.Failure(f"{common.shown(command)}: no JSON on stdout: {error}") from None
        self.build = str(row.get("version"))
        return speed_of(row, command)


def peers_of(args):
    peers = [LlamaBench(name, path, args) for name, path in args.peer]
    return peers + ([OpenVino(args)] if args.openvino else [])


def headings(peers):
    names = [name for peer in peers for name in (f"{peer.name}, tokens/s", f"Puna / {peer.name}")]
    return ["model", "test", "threads", "Puna, tokens/s", "share", *names]


def table(cases, peers):
    rows = []
    for case in cases:
        share = case["share_percent"]
        row = [
            case["model"],
            case["test"],
            str(case["threads"]),
            common.cell(case["puna"]),
            "" if share is None else f"{share['median']:.0f} % {case['share_of']}",
        ]
        for peer in peers:
            theirs = case["peers"].get(peer.name)
            row += [common.cell(theirs["speed"]), common.ratio_cell(theirs["ratio"])] if theirs \
                else ["", ""]
        rows.append(row)
    return rows


def measure(args, data, peers, puna, model, threads, test):
    name, prompt, gen, depth = test
    wanted = (prompt, gen, depth, threads)
    commands = {peer.name: peer.command(model, wanted) for peer in peers}
    here = [peer for peer in peers if commands[peer.name]]
    ours_command = [puna, "bench", model, *flags(*wanted), *shlex.split(args.puna_args)]
    key, share_of = ("peak_percent", "of peak") if prompt else ("read_percent", "of bandwidth")
    theirs, ours, shares = {peer.name: [] for peer in here}, [], []
    for index in range(args.rounds):
        for peer in here:
            theirs[peer.name].append(peer.speed(commands[peer.name], wanted))
        speed, row = run_bench(ours_command, wanted, args.timeout, args.isa)
        ours.append(speed)
        if isinstance(row.get(key), (int, float)):
            shares.append(row[key])
        said = ", ".join(f"{peer} {common.number(all_[-1])}" for peer, all_ in theirs.items())
        common.say(
            f"{Path(model).name} {name} threads {threads} round {index + 1}/{args.rounds}: "
            f"{said}, Puna {common.number(speed)}"
        )
    data["commands"] += [common.shown(commands[peer.name]) for peer in here]
    prefix = f"PUNA_ISA={args.isa} " if args.isa else ""
    data["commands"].append(prefix + common.shown(ours_command))
    data["peer_build"] = "; ".join(f"{peer.name} {peer.build}" for peer in peers)
    data["cases"].append(
        {
            "model": Path(model).name,
            "test": name,
            "threads": threads,
            "puna": common.spread(ours),
            "share_percent": common.spread(shares) if shares else None,
            "share_of": share_of,
            "peers": {
                peer: {
                    "speed": common.spread(speeds),
                    "ratio": common.spread([a / b for a, b in zip(ours, speeds)]),
                }
                for peer, speeds in theirs.items()
            },
        }
    )


def main():
    args = arguments()
    peers = peers_of(args)
    puna = common.require_program(args.puna, "puna", "Build it: cargo build --release.")
    models = [common.require_file(model) for model in args.model]
    common.output_paths(args.out)
    title = "Puna beside " + ", ".join(peer.name for peer in peers)
    data = common.report(title, args.rounds, puna, "not run yet")
    status = 0

    def write():
        return common.write(args.out, data, headings(peers), table(data["cases"], peers), NOTES)

    try:
        for model in models:
            for threads in args.threads:
                for test in tests_of(args):
                    measure(args, data, peers, puna, model, threads, test)
                    write()
    except common.Failure as failure:
        common.say(f"error: {failure}")
        status = 1
    except KeyboardInterrupt:
        common.say("interrupted")
        status = 130
    if data["cases"]:
        _, md_path = write()
        common.say(f"wrote {md_path} and the .json beside it")
    return status


if __name__ == "__main__":
    sys.exit(main())
