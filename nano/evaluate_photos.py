"""How well a model describes photographs, and whether its answers agree with people and with itself.

Everything is asked through :class:`~mobillama_v.assistant.Assistant`, greedily, about photographs that were kept out.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mobillama_v.assistant import Assistant
from mobillama_v.generate import Sampling
from mobillama_v.reply import EncodedImage
from nano import caption_qa
from nano.caption_metrics import CiderD, bleu, garbled
from nano.evaluate import normalized
from nano.human_data import Asked, Captioned

DESCRIBE = "Describe the image."
_LONG, _SHORT = Sampling(max_new_tokens=32), Sampling(max_new_tokens=16)
_BATCH = 32
_SEED = 5


@dataclass
class Score:
    """How many answers were right, and what was answered."""

    name: str
    right: int = 0
    answers: list[str] = field(default_factory=list)

    def add(self, answer: str, right: bool) -> None:
        """Count an answer."""
        self.right += right
        self.answers.append(normalized(answer))

    @property
    def share(self) -> float:
        """Of right answers, from 0 to 1."""
        return self.right / max(1, len(self.answers))

    def __str__(self) -> str:
        common = Counter(self.answers).most_common(1)
        most = f"; most often {common[0][0]!r}, {100 * common[0][1] / len(self.answers):.0f} %" if common else ""
        return f"{self.name:28} {100 * self.share:5.1f} % of {len(self.answers)}{most}"


class Interviewer:
    """Asks a model about photographs of a folder, each of which is encoded once."""

    def __init__(self, assistant: Assistant, folder: Path) -> None:
        self.assistant, self._folder = assistant, folder
        self._encoded: dict[str, EncodedImage] = {}

    def ask(self, questions: Sequence[tuple[str, str]], sampling: Sampling = _SHORT) -> list[str]:
        """Answers to (image, question)."""
        found: list[str] = []
        for first in range(0, len(questions), _BATCH):
            rows = [([self._encode(image)], text) for image, text in questions[first : first + _BATCH]]
            found += [reply.text for reply in self.assistant.ask_batch(rows, sampling)]
        return found

    def _encode(self, image: str) -> EncodedImage:
        if image not in self._encoded:
            self._encoded[image] = self.assistant.encode_image(self._folder / "images" / image)
        return self._encoded[image]

    def score(self, name: str, asked: Iterable[tuple[str, str, str]]) -> Score:
        """Exact answers to (image, question, answer)."""
        asked, score = list(asked), Score(name)
        for answer, (_, _, wanted) in zip(self.ask([each[:2] for each in asked]), asked, strict=True):
            score.add(answer, normalized(answer) == normalized(wanted))
        return score


@dataclass(frozen=True)
class Descriptions:
    """Descriptions of photographs, and their figures."""

    texts: dict[str, str]
    bleu4: float
    cider_d: float
    garbled: int

    def __str__(self) -> str:
        distinct = len(set(self.texts.values()))
        return (
            f"descriptions: {len(self.texts)} photographs, BLEU-4 {100 * self.bleu4:.1f}, CIDEr-D {self.cider_d:.3f}, "
            f"{self.garbled} garbled, {distinct} different"
        )


def describe(interviewer: Interviewer, captioned: Sequence[Captioned]) -> Descriptions:
    """Describe photographs and compare with all human captions of each."""
    answers = interviewer.ask([(each.image, DESCRIBE) for each in captioned], _LONG)
    texts = {each.image: text for each, text in zip(captioned, answers, strict=True)}
    references = {each.image: each.captions for each in captioned}
    broken = sum(garbled(text) for text in answers)
    return Descriptions(texts, bleu(texts, references), CiderD(references).mean(texts), broken)


def from_captions(interviewer: Interviewer, captioned: Sequence[Captioned]) -> list[Score]:
    """Yes/no questions as POPE asks them (arXiv 2305.10355), colors, counts, and what captions cannot tell."""
    facts = {each.image: caption_qa.read(each.captions) for each in captioned}
    asker, rng = caption_qa.Asker(list(facts.values())), random.Random(_SEED)
    asked: dict[str, list[tuple[str, str, str]]] = {}
    for image, known in facts.items():
        for family, question, answer in asker.turns(known, rng):
            asked.setdefault(family, []).append((image, question, answer))
    wanted = {"exists": "yes or no", "color": "color", "count": "count", "what": "animal", "silent": "cannot tell"}
    return [interviewer.score(title, asked.get(family, [])) for family, title in wanted.items()]


def consistency(interviewer: Interviewer, descriptions: Descriptions, captioned: Sequence[Captioned]) -> list[Score]:
    """Whether the model confirms what its description names, and denies what neither it nor any caption does."""
    facts = {each.image: caption_qa.read(each.captions) for each in captioned}
    asker, rng = caption_qa.Asker(list(facts.values())), random.Random(_SEED)
    named, absent = [], []
    for each in captioned:
        text = descriptions.texts[each.image]
        for noun in sorted(caption_qa.read([text]).named):
            named.append((each.image, f"Is there {caption_qa.article(noun)} in the image?", "yes"))
        both = caption_qa.read([*each.captions, text])
        missing = asker.absent(both, rng)
        if missing is not None:
            absent.append((each.image, f"Is there {caption_qa.article(missing)} in the image?", "no"))
    return [interviewer.score("confirms what it names", named), interviewer.score("denies what is absent", absent)]


def rooms(interviewer: Interviewer, asked: Sequence[Asked]) -> list[Score]:
    """DAQUAR's questions, exact answers; counts and colors apart."""
    kinds: dict[str, Callable[[str], bool]] = {
        "DAQUAR": lambda question: True,
        "DAQUAR, how many": lambda question: "how many" in question.lower(),
        "DAQUAR, which color": lambda question: "color" in question.lower() or "colour" in question.lower(),
    }
    return [
        interviewer.score(name, [(each.image, each.question, each.answer) for each in asked if fits(each.question)])
        for name, fits in kinds.items()
    ]
