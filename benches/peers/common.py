"""What the comparison scripts share: facts about the machine and the builds, and the report.

Standard library only. Paths are shortened to names in everything that is written down, so that a
report can be read, and kept in the repository, without the layout of the disk it was made on.
"""

import datetime
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


class Failure(Exception):
    """A run that did not give what was wanted; its text is all that the user needs."""


def fail(message, status=1):
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def say(message):
    print(message, file=sys.stderr, flush=True)


def require_program(path, what, hint):
    """Exits with 2 where `path` is no program: there is nothing to compare with."""
    found = Path(path)
    if not found.is_file():
        fail(f"no {what} at {path}; nothing was measured. {hint}", 2)
    if not os.access(found, os.X_OK):
        fail(f"{path} is not executable; nothing was measured. {hint}", 2)
    return str(found.resolve())


def require_file(path):
    if not Path(path).is_file():
        fail(f"no file at {path}", 2)
    return str(Path(path).resolve())


def shown(command):
    """A command line with every path cut down to its name."""
    # A word may itself be a command line, or NAME=PATH.
    return shlex.join(re.sub(r"[^\s=]*/([^\s/]+)", r"\1", word) for word in command)


def invocation():
    """How this script was called."""
    script = Path(sys.argv[0]).name
    return f"python3 benches/peers/{script} {shown(sys.argv[1:])}"


def complaint(command, returncode, stderr):
    """The failure of a process: its status and the end of what it said."""
    last = "".join("\n  " + line for line in stderr.strip().splitlines()[-5:])
    return Failure(f"{shown(command)}: exit status {returncode}{last}")


def run(command, timeout, variables=None):
    """Standard output of a process that must succeed; `variables` on top of this environment."""
    environment = {**os.environ, **(variables or {})}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, env=environment
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{shown(command)}: not done after {timeout} s") from None
    except OSError as error:
        raise Failure(f"{shown(command)}: {error}") from None
    if done.returncode != 0:
        raise complaint(command, done.returncode, done.stderr)
    return done.stdout


def output_of(command, timeout=60):
    """Standard output of a command, stripped, or an empty string if it cannot be had."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=True, cwd=REPOSITORY
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def version_of(program):
    """The first line that `--version` prints, on whichever of the two streams."""
    try:
        done = subprocess.run(
            [program, "--version"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return "version not given"
    return (done.stdout.strip().splitlines() or ["version not given"])[0]


def puna_commit():
    """Short commit of this checkout, marked where files differ from it."""
    commit = output_of(["git", "rev-parse", "--short=12", "HEAD"])
    if not commit:
        return "unknown"
    changed = output_of(["git", "status", "--porcelain", "--untracked-files=no"])
    return commit + (" with changes" if changed else "")


def machine():
    """The facts that a number means nothing without."""
    model, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    except OSError:
        pass
    memory = 0
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        pass
    wanted = ["avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8"]
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "instructions": [flag for flag in wanted if flag in flags],
        "memory_gib": round(memory / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def report(title, rounds, puna, peer_build):
    """The head of a report; the caller fills `cases` and `commands`."""
    return {
        "title": title,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "puna_commit": puna_commit(),
        "puna_version": version_of(puna),
        "peer_build": peer_build,
        "rounds": rounds,
        "invocation": invocation(),
        "commands": [],
        "cases": [],
    }


def spread(samples):
    """Median, least and greatest."""
    return {
        "median": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
        "samples": samples,
    }


def number(value):
    """Three significant digits, more where the number is long."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cell(stats):
    return f"{number(stats['median'])} ({number(stats['min'])}-{number(stats['max'])})"


def ratio_cell(stats):
    return f"**{stats['median']:.2f}x** ({stats['min']:.2f}-{stats['max']:.2f})"


def output_paths(out):
    """The .json and .md beside each other, whichever of the two was named."""
    base = Path(out)
    if base.suffix in (".json", ".md"):
        base = base.with_suffix("")
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"cannot make the folder {base.parent}: {error}")
    return base.with_name(base.name + ".json"), base.with_name(base.name + ".md")


def write(out, data, headings, rows, notes):
    """Writes both files; called after every case, so that an interrupted run leaves its part."""
    json_path, md_path = output_paths(out)
    host = data["machine"]
    lines = [
        f"# {data['title']}",
        "",
        f"- Date: {data['date']}",
        f"- Machine: {host['cpu']}, {host['cores']} cores, {host['memory_gib']} GiB, "
        f"{host['kernel']}; {', '.join(host['instructions']) or 'no vector extensions listed'}; "
        f"load before the run {host['load_average_before']}",
        f"- Puna: {data['puna_version']}, commit {data['puna_commit']}",
        f"- Peer: {data['peer_build']}",
        f"- Rounds: {data['rounds']}, peer and Puna alternating",
        f"- Made by: `{data['invocation']}`",
        "",
        "| " + " | ".join(headings) + " |",
        "|" + "---|" * len(headings),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *(f"{note}\n" for note in notes),
        "Commands, one of each a round:",
        "",
        "```",
        *data["commands"],
        "```",
        "",
    ]
    try:
        json_path.write_text(json.dumps(data, indent=1) + "\n")
        md_path.write_text("\n".join(lines))
    except OSError as error:
        fail(f"cannot write the results: {error}")
    return json_path, md_path
