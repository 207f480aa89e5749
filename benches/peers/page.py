#!/usr/bin/env python3
"""Tables and plots of the newest results, into the results' page and README.md.

    python3 benches/peers/page.py benches/results/A.json [B.json ...]

The files are those that `engines.py` wrote. Between the marks `<!-- engines -->` and
`<!-- /engines -->` of benches/results/README.md one table a file is put, and before it a plot:
`NAME.svg`, each engine's speed as a share of the bound that was measured beside the run (read
bandwidth for single tokens, the arithmetic peak for prompts).
"""

import argparse
import json
import sys
from html import escape
from pathlib import Path

import common

COLOURS = ["#d9480f", "#1971c2", "#2f9e44", "#9c36b5", "#868e96"]
ROW, BAR, LEFT, WIDTH, RIGHT = 16, 13, 190, 520, 150
PAGE = common.REPOSITORY / "benches" / "results" / "README.md"
MARKS = ("<!-- engines -->", "<!-- /engines -->")


def engines(cases):
    names = []
    for case in cases:
        names += [name for name in case["peers"] if name not in names]
    return names


def label(case):
    model = case["model"].removesuffix(".gguf")
    threads = f"{case['threads']} thread" + ("s" if case["threads"] > 1 else "")
    return f"{model} {case['test']}, {threads}"


def speeds(case, names):
    """Each engine that took part, with its tokens per second."""
    all_ = [("Puna", case["puna"]["median"])]
    return all_ + [(n, case["peers"][n]["speed"]["median"]) for n in names if n in case["peers"]]


def plot(data):
    """An SVG: for each test a group of bars, one for each engine."""
    cases = [case for case in data["cases"] if case["share_percent"]]
    names = engines(cases)
    colour = dict(zip(["Puna", *names], COLOURS))
    body, y = [], 46
    for case in cases:
        bound = case["puna"]["median"] / case["share_percent"]["median"] * 100
        group = speeds(case, names)
        middle = y + ROW * len(group) / 2 + 2
        body.append(f'<text x="{LEFT - 8}" y="{middle:.0f}" text-anchor="end">{escape(case["model"].removesuffix(".gguf"))}</text>')
        below = escape(f"{case['test']} x{case['threads']}")
        body.append(f'<text x="{LEFT - 8}" y="{middle + 13:.0f}" text-anchor="end" class="dim">{below}</text>')
        for name, speed in group:
            width = min(speed / bound, 1.0) * WIDTH
            body.append(f'<rect x="{LEFT}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{colour[name]}"/>')
            text = f"{common.number(speed)} ({100 * speed / bound:.0f} %)"
            body.append(f'<text x="{LEFT + width + 5:.1f}" y="{y + BAR - 2}">{text}</text>')
            y += ROW
        y += 12
    height = y + 10
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + RIGHT} {height}" '
        f'width="{LEFT + WIDTH + RIGHT}" font-family="sans-serif" font-size="12">',
        "<style>text{fill:#222}.dim{fill:#777}.grid{stroke:#ccc}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}.dim{fill:#999}.grid{stroke:#444}}</style>",
        f"<title>{escape(data['title'])}, tokens per second as a share of the bound</title>",
    ]
    x = LEFT
    for name in ["Puna", *names]:
        head.append(f'<rect x="{x}" y="8" width="11" height="11" fill="{colour[name]}"/>')
        head.append(f'<text x="{x + 15}" y="18">{escape(name)}</text>')
        x += 30 + 8 * len(name)
    for percent in range(0, 101, 20):
        at = LEFT + WIDTH * percent / 100
        head.append(f'<line class="grid" x1="{at}" x2="{at}" y1="40" y2="{height - 8}"/>')
        head.append(f'<text class="dim" x="{at}" y="36" text-anchor="middle">{percent} %</text>')
    return "\n".join([*head, *body, "</svg>", ""])


def table(data):
    cases = data["cases"]
    names = engines(cases)
    head = ["", "Puna, tokens/s", "share of the bound", *names]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for case in cases:
        share = case["share_percent"]
        row = [label(case), common.cell(case["puna"])]
        row.append(f"{share['median']:.0f} %" if share else "")
        for name in names:
            theirs = case["peers"].get(name)
            row.append(
                f"{common.number(theirs['speed']['median'])}, {common.ratio_cell(theirs['ratio'])}"
                if theirs else ""
            )
        lines.append("| " + " | ".join(row) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", metavar="FILE.json")
    args = parser.parse_args()
    text = PAGE.read_text()
    if not all(mark in text for mark in MARKS):
        common.fail(f"{PAGE}: wanted the marks {MARKS[0]} and {MARKS[1]}")
    parts = []
    for name in args.results:
        path = Path(name)
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            common.fail(f"{path}: {error}")
        if any("peers" not in case for case in data.get("cases", [{}])):
            common.fail(f"{path}: wanted the .json of engines.py")
        svg = path.with_suffix(".svg")
        svg.write_text(plot(data))
        parts += [
            f"### {data['title']}, {data['date']}",
            "",
            f"{data['rounds']} rounds, commit {data['puna_commit']}; {data['peer_build']}. Commands and "
            f"samples: [{path.stem}.md]({path.stem}.md), [{path.name}]({path.name}).",
            "",
            f"![shares of the bound]({svg.name})",
            "",
            *table(data),
            "",
        ]
    before, rest = text.split(MARKS[0], 1)
    _, after = rest.split(MARKS[1], 1)
    PAGE.write_text(before + MARKS[0] + "\n\n" + "\n".join(parts) + "\n" + MARKS[1] + after)


if __name__ == "__main__":
    sys.exit(main())
