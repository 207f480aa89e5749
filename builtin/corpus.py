"""Puts the corpus together: stories and scenes, mixed, as data sets to train and to score on.

    python3 corpus.py OUT_DIR STORIES.txt[.xz] N_SCENES

OUT_DIR/train/data.jsonl is text_only; every 50th story and scene goes to OUT_DIR/valid.txt and
OUT_DIR/valid/data.jsonl instead.
"""

import json
import lzma
import pathlib
import sys

from compose import scene
from words import Draws


def read_lines(path):
    opener = lzma.open if path.endswith(".xz") else open
    with opener(path, "rt", encoding="ascii") as opened:
        return opened.read().splitlines()


def write_set(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="ascii") as opened:
        opened.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def main():
    out, stories, n_scenes = pathlib.Path(sys.argv[1]), read_lines(sys.argv[2]), int(sys.argv[3])
    draws = Draws(1)
    scenes = [scene(draws) for _ in range(n_scenes)]
    parts = (stories, scenes)
    valid = [text for part in parts for text in part[::50]]
    train = [text for part in parts for i, text in enumerate(part) if i % 50]
    train = draws.some(train, len(train))
    write_set(out / "train" / "data.jsonl", train)
    write_set(out / "valid" / "data.jsonl", valid)
    (out / "valid.txt").write_text("\n".join(valid) + "\n", encoding="ascii")
    n_chars = sum(map(len, train))
    print(f"{len(stories)} stories, {n_scenes} scenes; {len(train)} texts to train on, {n_chars} characters")


if __name__ == "__main__":
    main()
