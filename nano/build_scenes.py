"""Write drawn scenes to disk as LLaVA records, captions, cell labels and held-out questions."""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from nano.captions import article
from nano.classes import kinds
from nano.grid import cell_labels
from nano.lexicon import HELD_OUT_WORDS, TRAIN_WORDS
from nano.photos import IS_THERE, MEDIUM
from nano.questions import FAMILIES, QA, YES_NO_FAMILIES, caption, describe, questions
from nano.scenes import STYLES, Scene, draw, sample_scene

DEFAULT_STYLES: dict[str, float] = {"single": 0.2, "few": 0.25, "count": 0.2, "word": 0.22, "two_words": 0.13}
DESCRIPTION_SHARE = 0.4
UNSEEN_READING = "reading-unseen"
"""Family of held-out questions about words that no training split shows."""


class DenseQuestions(NamedTuple):
    """Many questions about each picture, most about what has to be found in it first."""

    wanted: dict[str, int]
    """How many questions of each family."""
    things: int = 1
    """How many things a picture must show at least."""
    alone: bool = False
    """Show only those pictures that are shown by their structured tokens alone."""


_EACH = {"reading": 4, "position": 3, "relation": 3, "size": 3, "count": 3}
_EACH |= {"shape": 2, "color": 2, "existence": 2, "negation": 2}
DENSE = {
    "dense": DenseQuestions(_EACH),
    "places": DenseQuestions({"position": 8}, things=2, alone=True),
    "retrieval": DenseQuestions(
        {"position": 5, "relation": 4, "reading": 4, "shape": 2, "size": 2, "color": 1}, things=2
    ),
}
"""By the end of their files' names. Of the last two the answers are to be had from the right one of several things."""
_DENSE_TURNS = 14
TOKENS_ALONE = "#tokens"
"""Ends the name of a picture of which only the tower's structured tokens are shown, and no patches."""

_STYLES_FOR = {
    "reading": ("word", "two_words"),
    UNSEEN_READING: ("word",),
    "count": ("few", "count", "count", "word"),
    "position": ("single", "few", "count"),
    "relation": ("few", "count"),
}
_CHUNK = 64
_T = TypeVar("_T")


def write_split(
    out_dir: Path,
    *,
    name: str,
    count: int,
    seed: int,
    styles: dict[str, float] | None = None,
    workers: int = 1,
) -> None:
    """Write ``count`` training pictures and their records; the result depends on ``name`` and ``seed`` alone.

    Files: ``images/<name>/<i>.png``, ``<name>.json`` (LLaVA conversations of 6 to 8 turns, with a parallel list
    ``families``), ``<name>-captions.json`` (one caption each) and ``<name>-cells.npy`` (:func:`grid.cell_labels`).

    Args:
        styles: relative weight of each style of :data:`scenes.STYLES`; :data:`DEFAULT_STYLES` if not given.
        workers: processes to use.
    """
    (out_dir / "images" / name).mkdir(parents=True, exist_ok=True)
    job = partial(_training_picture, out_dir, name, seed, styles or DEFAULT_STYLES)
    records, captions, cells = [], [], []
    for record, text, labels in _spread(job, count, workers):
        records.append(record)
        captions.append(_record(record["id"], record["image"], [("<image>", text)]))
        cells.append(labels)
    _write_json(out_dir / f"{name}.json", records)
    _write_json(out_dir / f"{name}-captions.json", captions)
    np.save(out_dir / f"{name}-cells.npy", np.stack(cells))


def write_dense_questions(
    out_dir: Path, *, name: str, count: int, seed: int, styles: dict[str, float] | None = None
) -> None:
    """Write ``<name>-dense.json`` and so on: the pictures of a split again, with up to 15 questions each
    (:data:`DENSE`).

    A picture is most of what a question costs to learn, and is gone through once for all of them. Every second one is
    shown by its structured tokens alone (:data:`TOKENS_ALONE`), which a decoder that finds most answers in the patches
    hardly learns to read.

    Args:
        styles: as :func:`write_split`, whose pictures these are.
    """
    scenes = [training_scene(name, seed, styles or DEFAULT_STYLES, index)[0] for index in range(count)]
    for kind, asked in DENSE.items():
        shown = range(1, count, 2) if asked.alone else range(count)
        records = [
            _dense_record(kind, scenes[i], name, seed, i) for i in shown if len(scenes[i].things) >= asked.things
        ]
        _write_json(out_dir / f"{name}-{kind}.json", [record for record in records if record])


def write_questions(out_dir: Path, *, name: str, count: int, seed: int, workers: int = 1) -> None:
    """Write ``count`` held-out questions, each on a picture of its own, to ``<name>-questions.jsonl``.

    Families take turns, :data:`UNSEEN_READING` among them, and within yes/no families the two answers do.
    """
    (out_dir / "images" / name).mkdir(parents=True, exist_ok=True)
    lines = _spread(partial(_held_out_question, out_dir, name, seed), count, workers)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (out_dir / f"{name}-questions.jsonl").write_text(text, encoding="utf-8")


# --- one picture ----------------------------------------------------------------------------------------------------


def training_scene(name: str, seed: int, styles: dict[str, float], index: int) -> tuple[Scene, random.Random]:
    """Scene number ``index`` of a split, and the generator as it is after sampling it."""
    rng = random.Random(f"{name}:{seed}:{index}")
    return sample_scene(rng, rng.choices(tuple(styles), tuple(styles.values()))[0]), rng


def _training_picture(
    out_dir: Path, name: str, seed: int, styles: dict[str, float], index: int
) -> tuple[dict[str, Any], str, np.ndarray]:
    scene, rng = training_scene(name, seed, styles, index)
    image = _save(scene, out_dir, name, index)
    turns = [*_conversation(scene, rng), *_not_a_photo(index)]
    record = _talk(f"{name}-{index:06d}", image, turns)
    record["families"] = [turn.family for turn in turns]
    return record, caption(scene), cell_labels(scene)


def _conversation(scene: Scene, rng: random.Random) -> list[QA]:
    total = rng.randint(6, 8)
    turns: list[QA] = []
    if rng.random() < DESCRIPTION_SHARE:
        turns.append(QA(*describe(scene, rng), "description"))
    turns += _choose(questions(scene, rng), total - len(turns), rng)
    rng.shuffle(turns)
    return _reading_first(turns, scene)


def _reading_first(turns: Iterable[QA], scene: Scene) -> list[QA]:
    """In their order, but for questions that quote a drawn word, which would give later reading away."""
    return sorted(turns, key=lambda turn: turn.family not in ("reading", "description") and _quotes(turn, scene))


def _dense_record(kind: str, scene: Scene, name: str, seed: int, index: int) -> dict[str, Any] | None:
    kind, wanted = kind.removesuffix("s"), DENSE[kind].wanted
    rng = random.Random(f"{name}-{kind}:{seed}:{index}")
    asked = [turn for _ in range(max(wanted.values())) for turn in questions(scene, rng)]
    unique = list({_plain(turn.question): turn for turn in asked}.values())
    rng.shuffle(unique)
    turns = [turn for family, most in wanted.items() for turn in [t for t in unique if t.family == family][:most]]
    rng.shuffle(turns)
    turns = _reading_first(turns[:_DENSE_TURNS], scene)
    if rng.random() < DESCRIPTION_SHARE:
        turns.append(QA(*describe(scene, rng), "description"))  # last, as it gives all others away
    if not turns:
        return None
    image = f"images/{name}/{index:06d}.png{TOKENS_ALONE if index % 2 else ''}"
    return _talk(f"{name}-{kind}-{index:06d}", image, turns)


def _not_a_photo(index: int) -> list[QA]:
    """Now and then a question that photographs are asked, for a model that is to tell the two apart."""
    if index % 10 == 0:
        return [QA(MEDIUM[index // 10 % len(MEDIUM)], "drawing", "medium")]
    if index % 10 == 5:
        kind = kinds()[index // 10 % len(kinds())]
        return [QA(IS_THERE[index // 10 % len(IS_THERE)].format(a=article(kind), kind=kind), "no", "medium")]
    return []


def _quotes(turn: QA, scene: Scene) -> bool:
    return any(word.text in turn.question for word in scene.words)


def _choose(asked: Sequence[QA], total: int, rng: random.Random) -> list[QA]:
    """Up to ``total`` different questions, taking one of each family before any second one."""
    order = list(asked)
    rng.shuffle(order)
    # Reading is the hardest skill and has the fewest pictures: wherever there is text, ask about it first.
    order.sort(key=lambda turn: turn.family != "reading")
    seen: dict[str, int] = {}
    ranked = []
    for position, turn in enumerate(order):
        seen[turn.family] = seen.get(turn.family, 0) + 1
        ranked.append((seen[turn.family], position, turn))
    unique = {_plain(turn.question): turn for _, _, turn in reversed(sorted(ranked, key=lambda item: item[:2]))}
    return list(reversed(unique.values()))[:total]


def _plain(question: str) -> str:
    return question.split("\n")[0].lower().rstrip("?.")


def _held_out_question(out_dir: Path, name: str, seed: int, index: int) -> dict[str, Any]:
    rng = random.Random(f"{name}:{seed}:{index}")
    families = (*FAMILIES, UNSEEN_READING)
    family = families[index % len(families)]
    wanted = ("yes", "no")[index // len(families) % 2] if family in YES_NO_FAMILIES else None
    scene, chosen = _scene_with(family, wanted, rng)
    return {
        "question_id": f"{name}-{index:06d}",
        "image": _save(scene, out_dir, name, index),
        "text": chosen.question,
        "answer": chosen.answer,
        "family": family,
    }


def _scene_with(family: str, wanted: str | None, rng: random.Random) -> tuple[Scene, QA]:
    words = HELD_OUT_WORDS if family == UNSEEN_READING else TRAIN_WORDS
    asked_as = "reading" if family == UNSEEN_READING else family
    while True:
        scene = sample_scene(rng, rng.choice(_STYLES_FOR.get(family, STYLES)), words=words)
        fitting = [turn for turn in questions(scene, rng) if turn.family == asked_as]
        if wanted and family == "relation":  # the family's open questions count as neither answer
            fitting = [turn for turn in fitting if turn.answer not in ("yes", "no") or turn.answer == wanted]
        elif wanted:
            fitting = [turn for turn in fitting if turn.answer == wanted]
        if fitting:
            return scene, rng.choice(fitting)


def _save(scene: Scene, out_dir: Path, name: str, index: int) -> str:
    path = f"images/{name}/{index:06d}.png"
    draw(scene).save(out_dir / path, compress_level=1)
    return path


# --- records and processes ------------------------------------------------------------------------------------------


def _talk(identity: str, image: str, turns: Sequence[QA]) -> dict[str, Any]:
    asked = [(turn.question, turn.answer) for turn in turns]
    asked[0] = (f"<image>\n{asked[0][0]}", asked[0][1])
    return _record(identity, image, asked)


def _record(identity: str, image: str, turns: Iterable[tuple[str, str]]) -> dict[str, Any]:
    conversation = []
    for question, answer in turns:
        conversation.append({"from": "human", "value": question})
        conversation.append({"from": "gpt", "value": answer})
    return {"id": identity, "image": image, "conversations": conversation}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def _spread(job: Callable[[int], _T], count: int, workers: int) -> list[_T]:
    if workers <= 1:
        return [job(index) for index in range(count)]
    # An executor, unlike a Pool, gives up when a worker cannot start instead of starting it for ever.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(job, range(count), chunksize=_CHUNK))
