"""Composes small scenes that say who has what, and say it again: practice in looking back.

    python3 compose.py OUT.txt [N_SCENES]

One scene a line. Every scene is told in statements, with names, things, colors and places drawn
anew; its later sentences can be foretold from its first ones. There is no question in it.
"""

import sys

from words import COLORS, FEELINGS, NAMES, PLACES, THINGS, Draws, a, pronouns

# Present and past of every verb that a scene uses.
PAST = {
    "has": "had", "is": "was", "are": "were", "likes": "liked", "plays": "played",
    "holds": "held", "takes": "took", "puts": "put", "sits": "sat", "sees": "saw",
    "gets": "got", "brings": "brought", "belongs": "belonged", "says": "said",
    "looks": "looked", "stays": "stayed", "wants": "wanted", "goes": "went", "play": "played",
    "keeps": "kept", "finds": "found", "smile": "smiled", "laugh": "laughed", "shows": "showed",
}  # fmt: skip


class Person:
    def __init__(self, name, color, thing, place):
        self.name, self.color, self.thing, self.place = name, color, thing, place
        self.he, self.his, self.him = pronouns(name)


def first_mentions(draws, p):
    """Sentences that introduce a thing and its owner."""
    red_ball = f"{a(p.color)} {p.thing}"
    return draws.one([
        f"{p.name} [has] {red_ball}.",
        f"{p.name} [has] {red_ball}.",
        f"{p.name} [has] {a(p.thing)}. It [is] {p.color}.",
        f"{p.name} [gets] {red_ball}.",
        f"{p.name} [brings] {red_ball}.",
        f"{p.name} [finds] {red_ball}.",
        f"Mom [has] {red_ball} for {p.name}.",
    ])  # fmt: skip


def where(draws, p):
    return draws.one([
        f"{p.name} [is] in the {p.place}.",
        f"{p.name} [is] in the {p.place}.",
        f"{p.name} [goes] to the {p.place}.",
        f"{p.name} [sits] in the {p.place}.",
    ])  # fmt: skip


def again(draws, p, other, placed):
    """Sentences that can be foretold by looking back."""
    forms = [
        f"{p.name} [has] {a(p.color)} {p.thing}.",
        f"{p.name} [has] {a(p.color)} {p.thing}.",
        f"{p.name} [has] {a(p.color)} {p.thing}.",
        f"The {p.thing} [is] {p.color}.",
        f"The {p.thing} [is] {p.color}.",
        f"{p.name}'s {p.thing} [is] {p.color}.",
        f"The {p.thing} [belongs] to {p.name}.",
        f"The {p.thing} [belongs] to {p.name}.",
        f"The {p.color} {p.thing} [belongs] to {p.name}.",
        f"The {p.thing} [is] with {p.name}.",
        f"The friend with the {p.thing} [is] {p.name}.",
        f"{p.name} [has] the {p.thing}.",
        f"{p.name} [holds] the {p.thing}.",
        f"{p.name} [plays] with the {p.color} {p.thing}.",
        f"{p.name} [likes] {p.his} {p.color} {p.thing}.",
        f"{p.name} [keeps] the {p.thing}.",
        f"{p.name} [shows] the {p.thing} to {other.name}.",
        f'{p.name} [says], "My {p.thing} is {p.color}."',
        f'{other.name} [says], "{p.name} has the {p.thing}."',
        f"{other.name} [sees] the {p.color} {p.thing}. It [belongs] to {p.name}.",
        f"{other.name} [looks] at {p.name} and the {p.thing}.",
    ]
    if placed:
        forms += [
            f"{p.name} [stays] in the {p.place}.",
            f"{p.name} [plays] in the {p.place}.",
            f"The {p.thing} [is] in the {p.place} with {p.name}.",
            f"The friend in the {p.place} [is] {p.name}.",
            f"{p.name} and the {p.thing} [are] in the {p.place}.",
        ]
    return draws.one(forms)


def filler(draws, p):
    return draws.one([
        "They [are] good friends.", "It [is] a sunny day.", "They [play] all day.",
        "They [smile].", "They [laugh].", f"{p.name} [is] {draws.one(FEELINGS)}.",
        f"{p.name} [wants] to play.", "The sun [is] warm.", f"{p.he} [likes] it very much.",
    ])  # fmt: skip


def scene(draws):
    n = draws.one([2, 2, 2, 3, 3, 4])
    names, things = draws.some(NAMES, n), draws.some(THINGS, n)
    colors, places = draws.some(COLORS, n), draws.some(PLACES, n)
    people = [Person(*parts) for parts in zip(names, colors, things, places)]
    placed = draws.chance(0.4)
    lines = [first_mentions(draws, p) for p in people]
    if placed:
        lines += [where(draws, p) for p in draws.some(people, n)]
    if draws.chance(0.3):
        lines.append(filler(draws, draws.one(people)))
    for p in draws.some(people, n) + draws.some(people, draws.below(3)):
        lines.append(again(draws, p, draws.one([q for q in people if q is not p]), placed))
        if draws.chance(0.15):
            lines.append(filler(draws, p))
    text, past = " ".join(lines), draws.chance(0.4)
    for now, then in PAST.items():
        text = text.replace(f"[{now}]", then if past else now)
    return text


def main():
    out = sys.argv[1]
    n_scenes = int(sys.argv[2]) if len(sys.argv) > 2 else 16000
    draws = Draws(1)
    with open(out, "w", encoding="ascii") as opened:
        opened.writelines(scene(draws) + "\n" for _ in range(n_scenes))


if __name__ == "__main__":
    main()
