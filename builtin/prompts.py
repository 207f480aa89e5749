"""Prompts for SmolLM2: the beginnings of stories for small children, in shards of text_only.

    python3 prompts.py OUT_DIR [N_SHARDS] [PROMPTS_A_SHARD]

Shard s goes to OUT_DIR/prompts-SS/data.json. Each prompt is a chat in SmolLM2's own format whose
answer has begun, so that beginning and words are ours and the rest is the model's.
"""

import json
import pathlib
import sys

from words import ANIMALS, BOYS, COLORS, FEELINGS, NAMES, PLACES, THINGS, Draws, a, pronouns

CHAT = "<|im_start|>user\n{ask} Use simple words and short sentences.<|im_end|>\n<|im_start|>assistant\n{begin}"


def free(draws):
    """A story that goes on from a first sentence or two."""
    name, friend = draws.some(NAMES, 2)
    he, his, him = pronouns(name)
    boy = "boy" if name in BOYS else "girl"
    color, feeling = draws.one(COLORS), draws.one(FEELINGS)
    thing, other = draws.some(THINGS, 2)
    place, animal = draws.one(PLACES), draws.one(ANIMALS)
    begin = draws.one([
        f"{name} had {a(color)} {thing}. {he} took the {thing} to the {place}.",
        f"One day, {name} and {friend} went to the {place}. {name} saw {a(animal)}.",
        f"{name} was a little {boy}. {he} had a pet {animal}. The {animal} was {feeling}.",
        f"The little {animal} was {feeling}. It sat in the {place}.",
        f"{name} was {feeling}. {he} could not find {his} {color} {thing}.",
        f"There was a small {animal}. It lived near the {place}. One day it found {a(thing)}.",
        f"{friend} gave {name} {a(color)} {thing}. {name} was very {feeling}.",
        f"It was a sunny day. {name} played with {a(thing)} in the {place}.",
        f"{name} and {friend} are friends. They like to play in the {place}.",
        f"The {animal} looked at the {color} {thing}. It wanted to play with it.",
        f"It was night. {name} was in bed. {he} heard {a(animal)}.",
        f"{name} wanted to make {a(thing)} for {friend}.",
        f"In the morning, {name} ran to the {place}. {he} was {feeling}.",
        f"{name} lost {his} {thing} in the {place}. {friend} came to help {him}.",
        f"{a(animal).capitalize()} and {a(draws.one(ANIMALS))} met in the {place}.",
        f"Mom gave {name} {a(color)} {thing}. {name} said, \"Thank you, Mom!\"",
        f"{name} saw {a(color)} {thing} and {a(other)} in the shop. {he} could only pick one.",
        f"The rain fell on the {place}. {name} and the {animal} stayed inside.",
        f"{name} asked {friend}, \"Can I play with your {thing}?\"",
        f"Grandma told {name} about {a(color)} {animal}.",
    ])  # fmt: skip
    return "Write a very short and simple story for a small child.", begin


def plotted(draws):
    """A story of which the request tells what happens."""
    name, friend = draws.some(NAMES, 2)
    he, his, him = pronouns(name)
    color, thing = draws.one(COLORS), draws.one(THINGS)
    place, animal, feeling = draws.one(PLACES), draws.one(ANIMALS), draws.one(FEELINGS)
    plot, begin = draws.one([
        (f"{name} loses {a(color)} {thing} in the {place} and {friend} helps {him} to find it", f"{name} had {a(color)} {thing}."),
        (f"{name} and {friend} meet {a(animal)} in the {place}", f"{name} and {friend} walked to the {place}."),
        (f"{name} is {feeling} and {friend} gives {him} {a(thing)}", f"{name} was {feeling}."),
        (f"{a(animal)} named {name} makes a new friend in the {place}", f"{name} was a little {animal}."),
        (f"{name} makes {a(color)} {thing} with {his} mom", f"{name} sat in the kitchen with {his} mom."),
        (f"{a(animal)} named {name} finds {a(color)} {thing}", f"{name} was {a(animal)}."),
        (f"{name} goes to the {place} with {his} dad", f"{name} and {his} dad went to the {place}."),
        (f"{name} shares {his} {thing} with {friend}", f"{name} had a new {thing}."),
    ])  # fmt: skip
    return f"Write a very short story for a small child: {plot}.", begin


def told(draws):
    """What something is."""
    thing = draws.one(ANIMALS + PLACES + THINGS)
    return f"Tell a small child about {a(thing)}.", f"{a(thing).capitalize()} is"


def prompt(draws):
    ask, begin = draws.one([free] * 6 + [plotted] * 3 + [told])(draws)
    return CHAT.format(ask=ask, begin=begin)


def main():
    out = pathlib.Path(sys.argv[1])
    n_shards = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    n_prompts = int(sys.argv[3]) if len(sys.argv) > 3 else 250
    for shard in range(n_shards):
        draws = Draws(1000 + shard)
        texts = [prompt(draws) for _ in range(n_prompts)]
        folder = out / f"prompts-{shard:02}"
        folder.mkdir(parents=True, exist_ok=True)
        instances = [{"text": text} for text in texts]
        content = json.dumps({"type": "text_only", "instances": instances}, indent=0)
        (folder / "data.json").write_text(content + "\n")


if __name__ == "__main__":
    main()
