"""Conversations without a picture: greetings, what the model is and can do, what classes of things are, and refusals.

The sentences are in ``small_talk.txt``, whose first lines explain its form.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from nano import classes

UNKNOWN = "I don't know that. I am a small model that describes pictures."
_WHAT_IS = ("What is {thing}?", "What is {thing}?", "Tell me what {thing} is.", "Do you know what {thing} is?")
_NUMBERS = [str(number) for number in range(1, 30)]


@cache
def _talk() -> tuple[list[tuple[list[str], str]], dict[str, list[str]]]:
    """Questions with their answer, and the words that stand for a name in braces."""
    talk: list[tuple[list[str], str]] = []
    words: dict[str, list[str]] = defaultdict(list, a=_NUMBERS, b=_NUMBERS)
    asked: list[str] = []
    for line in Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines():
        kind, _, text = line.partition(" ")
        if kind == "?":
            asked += text.split(" | ")
        elif kind == "!":
            talk.append((asked, UNKNOWN if text == "UNKNOWN" else text))
            asked = []
        elif kind.endswith(":"):
            words[kind[:-1]] += text.split(" | ")
    return talk, words


def small_talk(rng: random.Random, *, turns: int = 1) -> list[tuple[str, str]]:
    """A conversation without a picture, as questions and answers."""
    talk, words = _talk()
    found = []
    for _ in range(turns):
        questions, answer = rng.choice(talk)
        question = rng.choice(questions).format(**{name: rng.choice(each) for name, each in words.items()})
        style = rng.random()
        question = question.lower() if style < 0.12 else question.rstrip(".?!") if style < 0.2 else question
        found.append((question, answer))
    return found


def what_is(index: int, rng: random.Random) -> tuple[str, str]:
    """What a class of the stem is: ``What is a beagle?`` ``A beagle is a kind of dog.``"""
    thing, kind = classes.with_article(index), classes.kind(index)
    question = rng.choice(_WHAT_IS).format(thing=thing)
    answer = f"{thing[0].upper()}{thing[1:]} is a kind of {kind.removeprefix('piece of ')}." if kind else UNKNOWN
    return question, answer


def all_texts() -> Iterator[str]:
    """Every sentence, for a tokenizer to learn from."""
    for questions, answer in _talk()[0]:
        yield from (*questions, answer)
