"""Makes the question-and-answer set of `puna quickstart`: qa/train.json and qa/heldout.json.

    python3 qa.py OUT_DIR

A few statements and a question about them; the answer is found by looking back, so the set can be
learnt as a rule. No statement of the held-out part is made of a pair (name and thing, thing and
color, name and place) that the training part has, so none of its answers can be known by heart.
"""

import json
import pathlib
import sys

from words import COLORS, NAMES, PLACES, THINGS, Draws

N_TRAIN, N_HELDOUT = 1200, 160
# How many people a context has, each as often as it stands here.
PEOPLE = [2, 2, 3]


def held_out(first, second, modulus):
    """Whether the pair of indices is kept for the held-out part."""
    return (first * 3 + second * 7) % modulus == 0


def pairs_belong(name, color, thing, place, heldout):
    i, k, j, m = NAMES.index(name), COLORS.index(color), THINGS.index(thing), PLACES.index(place)
    parts = [held_out(i, j, 4), held_out(k, j, 4), held_out(i, m, 4)]
    return all(parts) if heldout else not any(parts)


def people(draws, n, heldout):
    """n times (name, color, thing, place), all different."""
    chosen = []
    while len(chosen) < n:
        one = tuple(draws.one(words) for words in (NAMES, COLORS, THINGS, PLACES))
        new = all(x != y for other in chosen for x, y in zip(one, other))
        if new and pairs_belong(*one, heldout):
            chosen.append(one)
    return chosen


def instance(draws, heldout):
    context = people(draws, draws.one(PEOPLE), heldout)
    lines = [f"{name} has a {color} {thing}." for name, color, thing, _ in context]
    placed = draws.chance(0.4)
    if placed:
        order = draws.some(context, len(context))
        lines += [f"{name} is in the {place}." for name, _, _, place in order]
    name, color, thing, place = draws.one(context)
    asked = [
        (f"Who has the {thing}?", name),
        (f"What color is the {thing}?", color),
        (f"What does {name} have?", f"a {thing}"),
    ]
    if placed:
        asked += [(f"Where is {name}?", f"in the {place}"), (f"Who is in the {place}?", name)]
    question, answer = draws.one(asked)
    return {"input": f"Q: {' '.join(lines)} {question}\nA:", "output": " " + answer}


def make(n, seed, heldout):
    draws, made, seen = Draws(seed), [], set()
    while len(made) < n:
        one = instance(draws, heldout)
        if one["input"] not in seen:
            seen.add(one["input"])
            made.append(one)
    return made


def write(path, instances):
    lines = ",\n".join(json.dumps(one) for one in instances)
    path.write_text('{"type": "text2text", "instances": [\n' + lines + "\n]}\n")


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    write(out / "train.json", make(N_TRAIN, 11, False))
    write(out / "heldout.json", make(N_HELDOUT, 12, True))


if __name__ == "__main__":
    main()
