"""Keeps what is clean of the stories that SmolLM2 wrote.

    python3 filter.py OUT.txt ANSWERS.json...

One story a line. A story is its given beginning and the answer, cut after the last whole sentence.
Dropped: letters and signs that no children's book has, lists and talk about the task, loops,
rare words, stories too short, and those that tell what another one told.
"""

import collections
import json
import re
import sys

MIN_CHARS, MAX_CHARS = 150, 1000
# A word that fewer stories than this use is rare; a story may have a few of them.
MIN_STORIES, MAX_RARE = 4, 2
# Share of runs of five words that an earlier story may have had already.
MAX_SEEN = 0.35

PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " "})
ALLOWED = re.compile(r"[A-Za-z ,.!?'\"-]+")
TASK = re.compile(
    r"\b(stor(y|ies)|sentences?|words?|reader|moral|lesson|assistant|AI|chapter|title|remember that)\b", re.I
)
WORD = re.compile(r"[a-z']+")


def story(prompt, answer):
    """The whole text, its dashes and line breaks made plain, cut after its last sentence."""
    begin = prompt.rsplit("assistant\n", 1)[-1]
    text = (begin + answer).translate(PLAIN)
    text = " ".join(text.split())
    end = max(text.rfind(mark) for mark in ".!?")
    if text[end + 1 : end + 2] == '"':
        end += 1
    return begin, text[: end + 1]


def fault(begin, text):
    """Why a text is not kept, or None."""
    if not MIN_CHARS <= len(text) <= MAX_CHARS or len(text) < len(begin) + 60:
        return "length"
    if not ALLOWED.fullmatch(text):
        return "characters"
    if TASK.search(text):
        return "task"
    if text.count('"') % 2 or re.search(r"'(?![a-z])", text):
        return "quotes"
    sentences = [s for s in re.split(r"(?<=[.!?])\"? ", text) if s]
    if len(set(sentences)) < len(sentences):
        return "loop"
    if max(len(s.split()) for s in sentences) > 28:
        return "long sentence"
    words = WORD.findall(text.lower())
    runs = collections.Counter(zip(words, words[1:], words[2:], words[3:]))
    if runs and max(runs.values()) > 2:
        return "loop"
    return None


def shingles(text):
    words = WORD.findall(text.lower())
    return set(zip(words, words[1:], words[2:], words[3:], words[4:]))


def main():
    out, files = sys.argv[1], sys.argv[2:]
    dropped, kept = collections.Counter(), []
    for file in files:
        with open(file, encoding="utf-8") as opened:
            instances = json.load(opened)["instances"]
        for instance in instances:
            for answer in instance["output"]:
                begin, text = story(instance["input"], answer)
                why = fault(begin, text)
                dropped[why] += 1
                if why is None:
                    kept.append(text)
    counts = collections.Counter(w for text in kept for w in set(WORD.findall(text.lower())))
    seen, written = set(), []
    for text in kept:
        rare = {word for word in WORD.findall(text.lower()) if counts[word] < MIN_STORIES}
        if len(rare) > MAX_RARE:
            dropped["rare words"] += 1
            continue
        runs = shingles(text)
        if len(runs & seen) > MAX_SEEN * len(runs):
            dropped["told before"] += 1
            continue
        seen |= runs
        written.append(text)
    with open(out, "w", encoding="ascii") as opened:
        opened.writelines(text + "\n" for text in written)
    del dropped[None]
    n_chars = sum(map(len, written))
    print(f"{len(written)} stories, {n_chars} characters; dropped: {dict(dropped.most_common())}")


if __name__ == "__main__":
    main()
