"""The words that the built-in model's material is made of, and draws that are the same everywhere."""

import random

BOYS = ["Tom", "Ben", "Sam", "Max", "Tim", "Jack", "Leo", "Dan", "Bob", "Finn"]
GIRLS = ["Ann", "Mia", "Lily", "Sue", "Lucy", "Emma", "Rose", "Kate", "Zoe", "Amy"]
NAMES = BOYS + GIRLS
COLORS = ["red", "blue", "green", "yellow", "black", "white", "brown", "pink"]
THINGS = [
    "ball", "kite", "hat", "book", "cup", "doll", "box", "boat", "bag", "bell",
    "drum", "car", "cake", "coat", "lamp", "key", "shell", "stone", "spoon", "flower",
]
PLACES = [
    "park", "garden", "house", "school", "kitchen", "forest", "barn", "shop", "street", "field",
]
ANIMALS = ["cat", "dog", "bird", "duck", "fox", "bear", "rabbit", "mouse", "frog", "pig"]
FEELINGS = ["happy", "sad", "tired", "hungry", "scared", "proud", "angry", "cold", "shy", "glad"]


class Draws:
    """Seeded draws; only `random.random` is used, whose numbers are the same in every Python."""

    def __init__(self, seed):
        self.source = random.Random(seed)

    def below(self, n):
        return int(self.source.random() * n)

    def one(self, items):
        return items[self.below(len(items))]

    def some(self, items, n):
        """`n` different ones, in random order."""
        rest = list(items)
        return [rest.pop(self.below(len(rest))) for _ in range(n)]

    def chance(self, share):
        return self.source.random() < share


def a(word):
    """The word with its article."""
    return ("an " if word[0] in "aeiou" else "a ") + word


def pronouns(name):
    """He/She, his/her, him/her."""
    return ("He", "his", "him") if name in BOYS else ("She", "her", "her")
