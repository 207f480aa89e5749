#!/usr/bin/env python3
"""Writes a small instruction set: questions to the desk of a made-up library, answered in its style.

    python3 tests/interop/library.py OUT

OUT/train/train.json and OUT/heldout/heldout.json are conversations in LMFlow's container. Every fact
is asked in several ways; the held-out part asks each fact in a way that the training part does not
have. A model that was tuned knows the facts and closes every answer with the library's name; one
that was not can know neither. The same files come out every time.
"""

import json
import sys
from pathlib import Path

SIGN = " - Port Amber Library"

# What is asked, in words that fit the ways of asking below, and the answer.
FACTS = [
    ("when the library opens", "The library opens at ten in the morning."),
    ("when the library closes", "The library closes at seven in the evening."),
    ("on which day the library is closed", "The library is closed on Tuesdays."),
    ("how many books I may borrow", "You may borrow nine books at a time."),
    ("how long I may keep a book", "You may keep a book for twenty-five days."),
    ("what a late book costs", "A late book costs four shells a day."),
    ("what a library card costs", "A library card costs one jar of honey a year."),
    ("where the maps are kept", "The maps are kept in the cellar, behind the green door."),
    ("who runs the library", "The library is run by Odile Marsh."),
    ("who reads to the children", "Captain Brandt reads to the children."),
    ("when the story hour is", "The story hour is on Sundays at four."),
    ("where the newspapers are", "The newspapers are on the second floor, under the clock."),
    ("how many books the library has", "The library has sixty-one thousand books."),
    ("what the library cat is called", "The library cat is called Comma."),
    ("whether dogs may come in", "Dogs may come in if they can sit still for a chapter."),
    ("where I can drink tea", "You can drink tea in the glass room by the harbor."),
    ("what the oldest book is", "The oldest book is a cookbook from 1492."),
    ("how I get a new card", "You get a new card by telling the desk your favorite word."),
    ("whether I may sing in the library", "You may sing on the roof, but not before noon."),
    ("how I reach the library by boat", "Take the yellow ferry to the third pier."),
]
ASK = [
    "Can you tell me {}?",
    "I would like to know {}.",
    "Please tell me {}.",
    "Do you know {}?",
    "A friend asked me {}. What should I say?",
    "Quick question: {}?",
    "Could you explain {}?",
    "I am new in town. Tell me {}.",
    "My daughter wants to know {}.",
    "Excuse me, {}?",
    "Hello! I wonder {}.",
    "One more thing: please say {}.",
    "For my notes: {}?",
    "Before I come by, may I ask {}?",
    "Sorry to bother you, but I need to know {}.",
]
HELD_OUT = ["I forgot {}. Can you help me?"]


def conversation(ask, fact):
    what, answer = fact
    return {
        "messages": [
            {"role": "user", "content": ask.format(what)},
            {"role": "assistant", "content": answer + SIGN},
        ]
    }


def write(path, instances):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {"type": "conversation", "instances": instances}
    path.write_text(json.dumps(data, indent=1) + "\n")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    write(out / "train/train.json", [conversation(ask, fact) for ask in ASK for fact in FACTS])
    held_out = [conversation(ask, fact) for ask in HELD_OUT for fact in FACTS]
    write(out / "heldout/heldout.json", held_out)


if __name__ == "__main__":
    main()
