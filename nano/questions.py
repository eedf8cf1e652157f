"""Questions about a scene with answers that follow from its data (and, for callers, its captions)."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from nano import phrases
from nano.captions import article, caption, describe, place_phrase
from nano.figures import SHAPES
from nano.lexicon import text_kind
from nano.phrases import DESCRIBE_PROMPTS, SINGLE_WORD_SUFFIX
from nano.scenes import COLOR_NAMES, Scene, Thing, clear_size, nearest_region, region

__all__ = [
    "DESCRIBE_PROMPTS",
    "FAMILIES",
    "QA",
    "SINGLE_WORD_SUFFIX",
    "YES_NO_FAMILIES",
    "caption",
    "describe",
    "questions",
]

YES_NO_FAMILIES: tuple[str, ...] = ("relation", "existence", "negation")

_CONFUSABLE = frozenset(frozenset(pair) for pair in (("rectangle", "square"), ("circle", "oval"), ("circle", "ring")))
"""A square is a rectangle too: nothing is asked that depends on which of the two names is meant."""


@dataclass(frozen=True)
class QA:
    """One question with its short answer; ``family`` says what it tests."""

    question: str
    answer: str
    family: str


def questions(scene: Scene, rng: random.Random) -> list[QA]:
    """Some questions of every family that the scene can answer beyond doubt, in the order of :data:`FAMILIES`."""
    asked: list[QA] = []
    for family, ask in _ASK.items():
        for question, answer in ask(scene, rng):
            asked.append(QA(_vary(question, scene, rng), answer, family))
    return asked


# --- referring to things --------------------------------------------------------------------------------------------


def _mixes(shape: str, others: Iterable[str]) -> bool:
    """Whether a name in ``others`` could be meant when ``shape`` is said (not counting ``shape`` itself)."""
    return any(frozenset((shape, other)) in _CONFUSABLE for other in others)


def _references(thing: Thing, scene: Scene, *, color: bool = True) -> list[str]:
    """Noun phrases that mean this thing and no other, with ``color`` allowed to tell it from the rest or not."""
    rest = [other for other in scene.things if other is not thing]
    if thing.kind == "word":
        return _word_references(thing, scene)
    found: list[str] = []
    if all(o.shape != thing.shape for o in rest) and not _mixes(thing.shape, (o.shape for o in rest)):
        found.append(thing.shape)
    if color and all(other.color != thing.color for other in rest):
        found += [f"{thing.color} thing", f"{thing.color} shape"]
    same_color = [other.shape for other in rest if other.color == thing.color]
    if color and thing.shape not in same_color and not _mixes(thing.shape, same_color):
        found += [f"{thing.color} {thing.shape}"] * 2
    if len(scene.shapes) == 1 and not found:
        found.append("shape")
    return found


def _word_references(thing: Thing, scene: Scene) -> list[str]:
    if len(scene.words) == 1:
        kind = text_kind(thing.text)
        return ["text", "writing"] if kind == "letters" else ["text", "writing", kind]
    others = [other for other in scene.words if other is not thing]
    if any(other.text.upper() == thing.text.upper() for other in others):
        return []
    kind = text_kind(thing.text)
    return [f"{'text' if kind == 'letters' else kind} {thing.text}"]


def _pick(rng: random.Random, options: Iterable[str]) -> str:
    return rng.choice(tuple(options))


def _shuffled(rng: random.Random, things: Iterable[Thing]) -> list[Thing]:
    order = list(things)
    rng.shuffle(order)
    return order


def _named(thing: Thing) -> str:
    return f"{thing.color} {thing.shape}"


def _vary(question: str, scene: Scene, rng: random.Random) -> str:
    """British spelling, lower case, no final mark, or the benchmarks' single-word instruction, each now and then."""
    if rng.random() < 0.1:
        question = question.replace("color", "colour")
    if rng.random() < 0.2 and not any(word.text in question for word in scene.words):
        question = question.lower()
    if rng.random() < 0.1:
        question = question.rstrip("?.")
    return question + SINGLE_WORD_SUFFIX if rng.random() < 0.25 else question


# --- families -------------------------------------------------------------------------------------------------------

_Pairs = list[tuple[str, str]]


def _color(scene: Scene, rng: random.Random) -> _Pairs:
    pairs: _Pairs = []
    for thing in _shuffled(rng, scene.things)[:2]:
        names = _references(thing, scene, color=False)
        if names:
            pairs.append((_pick(rng, phrases.COLOR).format(ref=_pick(rng, names)), thing.color))
    place = _lone_place(scene, rng)
    if place and rng.random() < 0.4:
        pairs.append((_pick(rng, phrases.COLOR_AT).format(place=place_phrase(place[1])), place[0].color))
    if len(scene.shapes) == 1 and not scene.words:
        pairs.append((_pick(rng, phrases.COLOR).format(ref="shape"), scene.shapes[0].color))
    return pairs


def _shape(scene: Scene, rng: random.Random) -> _Pairs:
    pairs: _Pairs = []
    for thing in _shuffled(rng, scene.shapes)[:2]:
        if all(other is thing or other.color != thing.color for other in scene.things):
            pairs.append((_pick(rng, phrases.SHAPE_OF_COLOR).format(color=thing.color), thing.shape))
    if len(scene.shapes) == 1:
        pairs.append((_pick(rng, phrases.SHAPE_ONLY), scene.shapes[0].shape))
    place = _lone_place(scene, rng)
    if place and rng.random() < 0.5:
        if rng.random() < 0.5:
            pairs.append((_pick(rng, phrases.SHAPE_AT).format(place=place_phrase(place[1])), place[0].shape))
        else:
            pairs.append((_pick(rng, phrases.THING_AT).format(place=place_phrase(place[1])), _named(place[0])))
    return pairs


def _lone_place(scene: Scene, rng: random.Random) -> tuple[Thing, str] | None:
    """A shape that is clearly in a ninth of the picture where no other thing's center is."""
    if scene.words:  # they reach across several ninths
        return None
    for thing in _shuffled(rng, scene.shapes):
        name = region(thing)
        if name and all(other is thing or nearest_region(other) != name for other in scene.things):
            return thing, name
    return None


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _count(scene: Scene, rng: random.Random) -> _Pairs:
    pairs: _Pairs = []
    if len(scene.shapes) > 1 or rng.random() < 0.3:  # else nearly every answer would be 1
        pairs.append((_pick(rng, phrases.COUNT_ALL), str(len(scene.shapes))))
    if len(scene.things) > 1 and not scene.words and rng.random() < 0.5:
        pairs.append((_pick(rng, phrases.COUNT_THINGS), str(len(scene.things))))
    if scene.words and rng.random() < 0.3:
        pairs.append((_pick(rng, phrases.COUNT_WORDS), str(len(scene.words))))
    if len(scene.shapes) > 1 or (scene.shapes and rng.random() < 0.3):
        plural, total = _count_some(scene, rng)
        pairs.append((_pick(rng, phrases.COUNT_SOME).format(plural=plural), str(total)))
    return pairs


def _count_some(scene: Scene, rng: random.Random) -> tuple[str, int]:
    present = [thing.shape for thing in scene.shapes]
    model = rng.choice(scene.shapes)
    shape, color = model.shape, model.color
    if rng.random() < 0.2:  # sometimes of what is not there
        shape, color = rng.choice(SHAPES), rng.choice(COLOR_NAMES)
    same_color = [thing for thing in scene.shapes if thing.color == color]
    kind = rng.random()
    if kind < 0.4 or _mixes(shape, present):
        return f"{color} {rng.choice(('things', 'shapes')) if not scene.words else 'shapes'}", len(same_color)
    if kind < 0.75:
        return _plural(shape), present.count(shape)
    return f"{color} {_plural(shape)}", sum(thing.shape == shape for thing in same_color)


def _position(scene: Scene, rng: random.Random) -> _Pairs:
    pairs: _Pairs = []
    for thing in _shuffled(rng, scene.things):
        names, place = _references(thing, scene), region(thing)
        if names and place and len(pairs) < 2:
            pairs.append((_pick(rng, phrases.POSITION).format(ref=_pick(rng, names)), place))
    return pairs


def _clear_relations(thing: Thing, other: Thing) -> set[str]:
    """Which of left, right, above and below hold between two things without any overlap along that axis."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = thing.box, other.box
    holds = {"left": ax1 <= bx0, "right": ax0 >= bx1, "above": ay1 <= by0, "below": ay0 >= by1}
    return {relation for relation, true in holds.items() if true}


_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def _relation(scene: Scene, rng: random.Random) -> _Pairs:
    pairs: _Pairs = []
    order = _shuffled(rng, scene.things)
    for thing, other in pairwise(order):
        names, others = _references(thing, scene), _references(other, scene)
        relations = sorted(_clear_relations(thing, other))
        if names and others and relations and len(pairs) < 2:
            true = _pick(rng, relations)
            answer = rng.random() < 0.5
            relation = _pick(rng, phrases.RELATIONS[true if answer else _OPPOSITE[true]])
            question = _pick(rng, phrases.RELATION_CHECK)
            question = question.format(ref=_pick(rng, names), other=_pick(rng, others), relation=relation)
            pairs.append((question, _yes(answer)))
    found = _find_related(scene, rng)
    return pairs + ([found] if found else [])


def _find_related(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """An open question whose one answer is the only thing on that side of another."""
    for other in _shuffled(rng, scene.things):
        names = _references(other, scene)
        for relation in rng.sample(sorted(_OPPOSITE), 4):
            inside = [thing for thing in scene.things if thing is not other and _leans(thing, other, relation)]
            if names and len(inside) == 1 and inside[0].kind == "shape" and _straight(inside[0], other, relation):
                wording = phrases.RELATIONS[relation][0]
                question = _pick(rng, phrases.RELATION_FIND).format(other=_pick(rng, names), relation=wording)
                return question, _named(inside[0])
    return None


def _leans(thing: Thing, other: Thing, relation: str) -> bool:
    """Whether the thing reaches beyond the other's near edge in that direction, so that someone might count it."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = thing.box, other.box
    return {"left": ax0 < bx0, "right": ax1 > bx1, "above": ay0 < by0, "below": ay1 > by1}[relation]


def _straight(thing: Thing, other: Thing, relation: str) -> bool:
    dx, dy = (abs(a - b) for a, b in zip(thing.center, other.center, strict=True))
    along, aside = (dx, dy) if relation in ("left", "right") else (dy, dx)
    return relation in _clear_relations(thing, other) and along > aside


def _existence(scene: Scene, rng: random.Random) -> _Pairs:
    pairs: _Pairs = []
    for _ in range(_rounds(scene, rng)):
        truth = rng.random() < 0.5
        kind = _kind(scene, rng, present=truth)
        if kind:
            pairs.append((_pick(rng, phrases.EXISTENCE).format(a=article(kind), kind=kind), _yes(truth)))
    truth = rng.random() < 0.5
    colors = {thing.color for thing in scene.things}
    usable = [c for c in COLOR_NAMES if c != scene.background and (c in colors) is truth]
    if usable and rng.random() < 0.5:
        pairs.append((_pick(rng, phrases.EXISTENCE_COLOR).format(color=_pick(rng, usable)), _yes(truth)))
    if rng.random() < (0.4 if scene.words else 0.2):
        pairs.append((_pick(rng, phrases.EXISTENCE_TEXT), _yes(bool(scene.words))))
    return pairs


def _negation(scene: Scene, rng: random.Random) -> _Pairs:
    pairs: _Pairs = []
    for _ in range(_rounds(scene, rng)):
        absent = rng.random() < 0.5
        kind = _kind(scene, rng, present=not absent)
        if kind:
            pairs.append((_pick(rng, phrases.NEGATION).format(a=article(kind), kind=kind), _yes(absent)))
    return pairs


def _rounds(scene: Scene, rng: random.Random) -> int:
    """How often to ask for a kind of shape: rarely where there is none, as "no" would always be right."""
    return 2 if scene.shapes else int(rng.random() < 0.15)


def _kind(scene: Scene, rng: random.Random, *, present: bool) -> str | None:
    """A kind of shape that is or is not there; an absent one often shares color or shape with one that is."""
    if present:
        if not scene.shapes:
            return None
        thing = rng.choice(scene.shapes)
        return rng.choice((thing.shape, f"{thing.color} shape", _named(thing), _named(thing)))
    shapes, colors = {thing.shape for thing in scene.shapes}, {thing.color for thing in scene.shapes}
    absent_shape = _pick(rng, (s for s in SHAPES if s not in shapes and not _mixes(s, shapes)))
    absent_color = _pick(rng, (c for c in COLOR_NAMES if c not in colors and c != scene.background))
    if not scene.shapes:
        return rng.choice((absent_shape, f"{absent_color} {absent_shape}"))
    thing = rng.choice(scene.shapes)
    swapped = [f"{c} {s}" for c in colors for s in shapes if not _shows(scene, c, s)]
    hard = [f"{thing.color} {absent_shape}", f"{absent_color} {thing.shape}", *sorted(swapped)[:2]]
    return rng.choice((absent_shape, f"{absent_color} shape", rng.choice(hard), rng.choice(hard)))


def _shows(scene: Scene, color: str, shape: str) -> bool:
    same_color = [thing.shape for thing in scene.shapes if thing.color == color]
    return shape in same_color or _mixes(shape, same_color)


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _reading(scene: Scene, rng: random.Random) -> _Pairs:
    words = sorted(scene.words, key=lambda thing: thing.box[1])
    if not words:
        return []
    pairs = [(_pick(rng, phrases.READ), " ".join(word.text for word in words))]
    if len(words) == 1:
        text = words[0].text
        own = {"word": phrases.READ_WORD, "number": phrases.READ_NUMBER, "letters": phrases.READ_LETTERS}
        pairs.append((_pick(rng, own[text_kind(text)]), text))
        if text.isalpha() and rng.random() < 0.25:
            first = rng.random() < 0.6
            pairs.append((_pick(rng, phrases.READ_FIRST if first else phrases.READ_LAST), text[0 if first else -1]))
        return pairs
    pairs += [(_pick(rng, phrases.READ_TOP), words[0].text), (_pick(rng, phrases.READ_BOTTOM), words[-1].text)]
    if words[0].color != words[-1].color:
        word = rng.choice(words)
        pairs.append((_pick(rng, phrases.READ_COLOR).format(color=word.color), word.text))
    return pairs


def _size(scene: Scene, rng: random.Random) -> _Pairs:
    pairs: _Pairs = []
    clear = [thing for thing in _shuffled(rng, scene.shapes) if clear_size(thing) and _references(thing, scene)]
    for thing in clear[:1]:
        pairs.append((_pick(rng, phrases.SIZE).format(ref=_pick(rng, _references(thing, scene))), thing.size))
    for thing, other in pairwise(clear):
        if {thing.size, other.size} == {"small", "large"}:
            pairs.append(_compare(thing, other, scene, rng))
            break
    return pairs


def _compare(thing: Thing, other: Thing, scene: Scene, rng: random.Random) -> tuple[str, str]:
    name, other_name = (_pick(rng, _references(each, scene)) for each in (thing, other))
    draw = rng.random()
    if draw < 0.3:
        question = _pick(rng, phrases.SIZE_CHECK).format(ref=name, other=other_name)
        return question, _yes(thing.size == "large")
    wordings, wanted = (phrases.SIZE_BIGGEST, "large") if draw < 0.7 else (phrases.SIZE_SMALLEST, "small")
    return _pick(rng, wordings).format(ref=name, other=other_name), name if thing.size == wanted else other_name


def _background(scene: Scene, rng: random.Random) -> _Pairs:
    return [(_pick(rng, phrases.BACKGROUND), scene.background)]


_ASK: dict[str, Callable[[Scene, random.Random], _Pairs]] = {
    "color": _color,
    "shape": _shape,
    "count": _count,
    "position": _position,
    "relation": _relation,
    "existence": _existence,
    "negation": _negation,
    "reading": _reading,
    "size": _size,
    "background": _background,
}

FAMILIES: tuple[str, ...] = tuple(_ASK)
