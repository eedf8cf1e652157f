"""What the embedded model learns photographs from, sample by sample, and what keeps it from forgetting drawings.

Each kind of sample is a picture of one set with questions and answers about it: photographs with human captions
(Flickr8k), rooms with human questions (DAQUAR), photographs of ImageNet classes, drawings, easy-VQA; and text alone.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nano import caption_phrases, caption_qa, classes, nouns, photos, reading, small_talk
from nano.branches import Branch, BranchEncoder, Turn
from nano.captions import article
from nano.human_data import Asked, Captioned
from nano.phrases import DESCRIBE_PROMPTS, SINGLE_WORD_SUFFIX
from nano.stemcache import StemCache

VISUAL_TOKENS = 84
_BUDGET = 118
"""Tokens of the questions and answers about one picture."""
_DRAWN = {"scenes": 0.25, "scenes-dense": 0.27, "scenes-retrieval": 0.22, "signs-dense": 0.13, "signs-retrieval": 0.08}
_DRAWN |= {"scenes-captions": 0.05}
"""How often each file of drawings' records is taken."""


@dataclass(frozen=True)
class Sample:
    """A picture and what is asked about it.

    ``picture`` is a name in the stem's cache ``stem`` (or ``None`` for text alone); ``probabilities`` [1000] stand in
    place of what the stem's classifier says of it; ``key`` names a captioned photograph.
    """

    stem: str
    picture: str | None
    branches: list[Branch]
    drawn: bool = False
    probabilities: np.ndarray | None = None
    key: str | None = None


_ALONE = classes.ANIMALS - {"fish", "dog"}  # kinds that are mostly photographed without people
_PEOPLE = ("person", "person", "man", "woman", "boy", "girl", "child")


class Mixture:
    """Makes samples of every kind.

    Args:
        encoder: of questions and answers.
        stems: the stem's caches by name: ``flickr8k``, ``flickr8k-mirrored``, ``daquar``, ``crops``, ``drawings``.
        captioned: photographs with captions, to train on.
        asked: people's questions, to train on.
        data: folder of the drawings' records, as :mod:`nano.build` writes it.
    """

    def __init__(
        self,
        encoder: BranchEncoder,
        stems: dict[str, StemCache],
        captioned: Sequence[Captioned],
        asked: Sequence[Asked],
        data: Path,
    ) -> None:
        self.encoder, self._stems = encoder, stems
        self._captioned = list(captioned)
        self._facts = {each.image: caption_qa.read(each.captions) for each in captioned}
        self._asker = caption_qa.Asker(list(self._facts.values()))
        self._rooms: dict[str, list[Asked]] = {}
        for each in asked:
            self._rooms.setdefault(each.image, []).append(each)
        sure = stems["crops"].probabilities[:].max(-1) >= photos.SURE
        self._sure = np.flatnonzero(sure).tolist() or list(range(len(sure)))
        self._rows = {name: _read(data / f"{name}.json") for name in (*_DRAWN, "easyvqa-train")}
        self.own: dict[str, dict[str, str]] = {}
        """What the model itself says of photographs, by the stem's cache and the picture: it has to stand by it."""
        self.kinds: dict[str, Callable[[random.Random], Sample]] = {
            "captions": self.captioned,
            "own": self.agreeing,
            "rooms": self.room,
            "classes": self.classed,
            "drawings": self.drawing,
            "easy-vqa": self.easy_vqa,
            "reading": self.reading,
            "text": self.text,
        }

    def captioned(self, rng: random.Random) -> Sample:
        """A photograph with all its captions and questions that follow from them."""
        each = rng.choice(self._captioned)
        facts = self._facts[each.image]
        mirrored = not each.sided and rng.random() < 0.5
        stem = "flickr8k-mirrored" if mirrored else "flickr8k"
        branches = [self.encoder.branch(describe(rng), each.captions)]
        turns = [(_vary(question, rng), answer) for _, question, answer in self._asker.turns(facts, rng)]
        if rng.random() < 0.4:
            turns += self._absent_class(each.image, facts, rng)
        if rng.random() < 0.1:
            turns.append((rng.choice(photos.MEDIUM), "photo"))
        return Sample(stem, each.image, self._fill(branches, turns, rng), key=each.image)

    def agreeing(self, rng: random.Random) -> Sample:
        """A photograph that the model has described: yes to what it named, no to as many things that nobody names."""
        stem = rng.choice(list(self.own))
        image = rng.choice(list(self.own[stem]))
        own, facts = self.own[stem][image], self._facts[image]
        both, turns = caption_qa.read([*facts.captions, own]), list[Turn]()
        for noun in sorted(caption_qa.read([own]).named):
            absent = self._asker.absent(both, rng)
            turns.append((caption_qa.ask_for(noun, rng), "yes"))
            turns += [(caption_qa.ask_for(absent, rng), "no")] if absent else []
        turns += [(question, answer) for question, answer in self._asker.exists(both, rng)]
        return Sample(stem, image, self._fill([], [(_vary(q, rng), a) for q, a in turns], rng), key=image)

    def _absent_class(self, image: str, facts: caption_qa.Facts, rng: random.Random) -> list[Turn]:
        """A class of the stem that is not there, and a thing that is."""
        cache = self._stems["flickr8k"]
        likely = set(np.argsort(-cache.probabilities[cache.row[image]])[:10].tolist())
        index = rng.randrange(1000)
        name, kind = classes.name(index), classes.kind(index)
        there = sorted({noun for named in facts.named for noun in nouns.also(named)})
        open_ = {noun for named in facts.named for noun in nouns.perhaps(named)}
        words = name.lower().split()
        if not there or index in likely or set(words) & (facts.words | open_):
            return []
        if kind in ("dog", "person") and (kind in there or "person" in there):
            return []
        absent = rng.choice(photos.IS_THERE).format(a=article(name.lower()), kind=name)
        return [(absent, "no"), (caption_qa.ask_for(rng.choice(there), rng), "yes")]

    def room(self, rng: random.Random) -> Sample:
        """A photograph of a room with people's questions."""
        image = rng.choice(list(self._rooms))
        turns = [(_vary(each.question, rng, short=0.2), each.answer) for each in self._rooms[image]]
        return Sample("daquar", image, self._fill([], turns, rng, chained=0.1))

    def classed(self, rng: random.Random) -> Sample:
        """A photograph of which the stem names the class; twice in three times another class than the real one."""
        cache, kind = self._stems["crops"], rng.random()
        row = rng.choice(self._sure) if rng.random() < 0.8 else rng.randrange(len(cache.names))
        shares = cache.probabilities[row].astype(np.float32)
        if kind < 0.35:
            shares = photos.permuted(shares, np.random.default_rng(rng.getrandbits(32)))
        elif kind < 0.65:
            shares = photos.likely(rng.randrange(1000), rng)
        turns = [(_vary(question, rng), answer) for question, answer in photos.class_turns(shares, rng)]
        if rng.random() < 0.5:
            turns.append((rng.choice(photos.MEDIUM), "photo"))
        if classes.kind(int(shares.argmax())) in _ALONE and shares.max() >= photos.SURE and rng.random() < 0.5:
            turns.append((rng.choice(photos.IS_THERE).format(a="a", kind=rng.choice(_PEOPLE)), "no"))
        if rng.random() < 0.15:
            turns.append((rng.choice(caption_phrases.SILENT_QUESTIONS).format(who="owner"), caption_qa.CANNOT_TELL))
        # Of what the stem does not know, people's captions teach how to speak.
        sure = shares.max() >= photos.SURE
        branches = [self.encoder.branch(describe(rng), [photos.description(shares)])] if sure else []
        return Sample("crops", cache.names[row], self._fill(branches, turns, rng), probabilities=shares)

    def drawing(self, rng: random.Random) -> Sample:
        """A drawing of the generator."""
        name = rng.choices(list(_DRAWN), list(_DRAWN.values()))[0]
        record = rng.choice(self._rows[name])
        turns = record.turns
        if name == "scenes-captions":
            turns = [(describe(rng), turns[0][1])]
        return Sample("drawings", record.image, self._fill([], turns, rng), drawn=True)

    def easy_vqa(self, rng: random.Random) -> Sample:
        """A picture of easy-VQA's training split."""
        record = rng.choice(self._rows["easyvqa-train"])
        return Sample("drawings", record.image, self._fill([], record.turns, rng), drawn=True)

    def reading(self, rng: random.Random) -> Sample:
        """A photograph with lines of made-up OCR tokens, and questions about them."""
        each, branches = rng.choice(self._captioned), list[Branch]()
        left = _BUDGET
        while left > 0:
            turns = reading.turns(rng)
            if rng.random() < 0.12:
                line, answer = reading.described(rng.choice(each.captions), rng)
                turns = [(describe(rng) + line, answer)]
            elif rng.random() < 0.06:
                turns = [reading.unread(rng)]
            question, answer = rng.choice(turns)
            if rng.random() < 0.25:
                question += SINGLE_WORD_SUFFIX
            branches.append(self.encoder.branch(question, [answer]))
            left -= len(branches[-1])
        return Sample("flickr8k", each.image, branches, key=each.image)

    def text(self, rng: random.Random) -> Sample:
        """Conversations without a picture."""
        branches: list[Branch] = []
        while sum(map(len, branches)) < _BUDGET + VISUAL_TOKENS - 30:
            if rng.random() < 0.3:
                turns = [small_talk.what_is(rng.randrange(1000), rng)]
            else:
                turns = small_talk.small_talk(rng, turns=1 if rng.random() < 0.7 else 2)
            branches.append(self.encoder.conversation(turns, picture=False))
        return Sample("", None, branches)

    def _fill(
        self, branches: list[Branch], turns: Sequence[Turn], rng: random.Random, *, chained: float = 0.2
    ) -> list[Branch]:
        """Add as many turns as there is room for, in random order; now and then several as one conversation."""
        left, room = list(turns), _BUDGET - sum(map(len, branches))
        rng.shuffle(left)
        added: list[Branch] = []
        if len(left) > 1 and rng.random() < chained:
            count = rng.randint(2, min(4, len(left)))
            conversation = self.encoder.conversation(left[:count])
            if len(conversation) <= room:
                added, left = [conversation], left[count:]
        for question, answer in left:
            branch = self.encoder.branch(question, [answer])
            if sum(map(len, added)) + len(branch) <= room:
                added.append(branch)
        return [*branches, *added]


@dataclass(frozen=True)
class _Record:
    image: str
    turns: list[Turn]


def _read(path: Path) -> list[_Record]:
    records = []
    for record in json.loads(path.read_text(encoding="utf-8")):
        texts = [turn["value"] for turn in record["conversations"]]
        texts[0] = texts[0].removeprefix("<image>").lstrip("\n")
        image = record["image"].split("#")[0]
        records.append(_Record(image, list(zip(texts[::2], texts[1::2], strict=True))))
    return records


def describe(rng: random.Random) -> str:
    """A request for a description; the commonest one most often."""
    return DESCRIBE_PROMPTS[0] if rng.random() < 0.55 else rng.choice(DESCRIBE_PROMPTS)


def _vary(question: str, rng: random.Random, *, short: float = 0.12) -> str:
    if rng.random() < 0.08:
        question = question.lower()
    return question + SINGLE_WORD_SUFFIX if rng.random() < short else question
