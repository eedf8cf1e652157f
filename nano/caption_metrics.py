"""BLEU and CIDEr-D of captions against several references each, and a check for sentences that are not English.

BLEU-4 (Papineni et al. 2002) over a corpus, and CIDEr-D (Vedantam et al., arXiv 1411.5726), by the formulas of the COCO
caption evaluation, on lower-case words without punctuation.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise

_LONGEST = 4
_SIGMA = 6.0  # of the penalty for another length, in words
Gram = tuple[str, ...]
Vector = tuple[list[dict[Gram, float]], list[float], int]

_OPEN = frozenset(
    """
    a an the of in on at to with and while is are his her their its by for as from into over through near wearing that
    who
    """.split()
)


def words(text: str) -> list[str]:
    """Lower-case words of a text."""
    return re.findall(r"[a-z0-9']+", text.lower())


def _grams(tokens: Sequence[str], longest: int = _LONGEST) -> Counter[Gram]:
    return Counter(tuple(tokens[i : i + n]) for n in range(1, longest + 1) for i in range(len(tokens) - n + 1))


def bleu(answers: Mapping[str, str], references: Mapping[str, Sequence[str]], longest: int = _LONGEST) -> float:
    """Corpus BLEU of one answer a picture, from 0 to 1.

    Args:
        answers: a text for each picture.
        references: several texts for each picture.
        longest: length of the longest n-grams, in words.
    """
    right, total = [0] * longest, [0] * longest
    length = closest = 0
    for key, text in answers.items():
        answer, others = words(text), [words(each) for each in references[key]]
        length += len(answer)
        closest += min((abs(len(each) - len(answer)), len(each)) for each in others)[1]
        allowed: Counter[Gram] = Counter()
        for each in others:
            allowed |= _grams(each, longest)
        for gram, count in _grams(answer, longest).items():
            right[len(gram) - 1] += min(count, allowed[gram])
        for n in range(longest):
            total[n] += max(0, len(answer) - n)
    if not length or 0 in right:
        return 0.0
    brevity = min(1.0, math.exp(1 - closest / length))
    return brevity * math.exp(sum(math.log(r / t) for r, t in zip(right, total, strict=True)) / longest)


class CiderD:
    """CIDEr-D of captions; how rare an n-gram is comes from all references.

    Args:
        references: several texts for each picture.
    """

    def __init__(self, references: Mapping[str, Sequence[str]]) -> None:
        self._references = {key: [words(text) for text in texts] for key, texts in references.items()}
        self._pictures = Counter(
            gram for texts in self._references.values() for gram in {gram for text in texts for gram in _grams(text)}
        )
        self._log_size = math.log(len(references))
        self._vectors: dict[str, list[Vector]] = {}

    def _vector(self, tokens: list[str]) -> Vector:
        parts: list[dict[Gram, float]] = [{} for _ in range(_LONGEST)]
        for gram, count in _grams(tokens).items():
            parts[len(gram) - 1][gram] = count * (self._log_size - math.log(max(1, self._pictures[gram])))
        return parts, [math.sqrt(sum(x * x for x in part.values())) for part in parts], len(tokens)

    def score(self, key: str, text: str) -> float:
        """CIDEr-D of one text about picture ``key``; 0.8 is about what one person reaches against others."""
        if key not in self._vectors:
            self._vectors[key] = [self._vector(each) for each in self._references[key]]
        mine, lengths, size = self._vector(words(text))
        total = 0.0
        for theirs, other_lengths, other_size in self._vectors[key]:
            penalty = math.exp(-((size - other_size) ** 2) / (2 * _SIGMA**2))
            for a, a_length, b, b_length in zip(mine, lengths, theirs, other_lengths, strict=True):
                if a_length and b_length:
                    shared = sum(min(value, b[gram]) * b[gram] for gram, value in a.items() if gram in b)
                    total += shared / (a_length * b_length) * penalty
        return 10 * total / (_LONGEST * len(self._references[key]))

    def mean(self, answers: Mapping[str, str]) -> float:
        """Mean over answers."""
        return sum(self.score(key, text) for key, text in answers.items()) / len(answers)


def garbled(text: str) -> bool:
    """Whether a text is surely no English sentence: breaks off, repeats itself, or holds a stray character."""
    found = words(text)
    if len(found) < 3 or not text.rstrip().endswith((".", "!", "?")) or found[-1] in _OPEN:
        return True
    if re.search(r"[^\x20-\x7e]|[a-z][A-Z]|\s[.,]", text):
        return True
    triples = list(zip(found, found[1:], found[2:], strict=False))
    return any(a == b for a, b in pairwise(found)) or len(set(triples)) < len(triples)
