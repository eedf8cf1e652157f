"""Pictures told in words, for learning to read what a question is about before there are any pictures.

An account lists what is where in the bare words that the hybrid tower's features are made of: a decoder that has
learnt to answer from the account of a scene finds the same words in a picture of one.
"""

from __future__ import annotations

import numpy as np

from mobillama_v.train.nano import classes
from mobillama_v.train.nano.captions import reading_order
from mobillama_v.train.nano.scenes import Scene, Thing, clear_size, nearest_region

_NAMED = 3


def of_scene(scene: Scene) -> str:
    """Background and things in reading order: ``white background. large red heart left. N O 5 black text bottom.``"""
    told = [f"{scene.background} background", *(_thing(thing) for thing in sorted(scene.things, key=reading_order))]
    return "".join(f"{each}. " for each in told).rstrip()


def _thing(thing: Thing) -> str:
    place = nearest_region(thing)
    if thing.kind == "word":
        return f"{' '.join(thing.text)} {thing.colour} text {place}"
    return " ".join(word for word in (clear_size(thing), thing.colour, thing.shape, place) if word)


def of_photo(probabilities: np.ndarray, colour: str, *, sure: float, unsure: float) -> str:
    """The likeliest classes of [1000], how sure the first is, and the main colour: ``photo. sure tench. ... red.``"""
    first, *others = (int(i) for i in np.argsort(-probabilities, kind="stable")[:_NAMED])
    share = probabilities[first]
    how = "sure" if share >= sure else "perhaps" if share >= unsure else "hardly"
    names = ". ".join(classes.name(index) for index in others)
    return f"photo. {how} {classes.name(first)}. {names}. {colour}."
