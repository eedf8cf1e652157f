"""Ways to judge the answers of one's own question file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

Verdict = Literal["yes", "no"]


def plain(answer: str) -> str:
    """As GQA compares answers: lower case, no final full stop; the blanks around are not part of an answer either."""
    return answer.strip().rstrip(".").lower()


def exact(answer: str, answers: Sequence[str]) -> float:
    """1 where the answer is one of the right ones, after :func:`plain`."""
    return float(plain(answer) in {plain(each) for each in answers})


def anls(answer: str, answers: Sequence[str]) -> float:
    """Normalized Levenshtein similarity to the nearest right answer, 0 where it is under one half.

    As in ST-VQA and DocVQA (Biten et al., arXiv 1905.13648): lower case, runs of blanks as one.
    """
    given = " ".join(answer.lower().split())
    return max((_similarity(given, " ".join(each.lower().split())) for each in answers), default=0.0)


def _similarity(a: str, b: str) -> float:
    longest = max(len(a), len(b))
    value = 1.0 if longest == 0 else 1.0 - distance(a, b) / longest
    return value if value >= 0.5 else 0.0


def distance(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions of one character."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def yes_or_no(answer: str) -> Verdict:
    """POPE's reading (LLaVA's ``eval_pope.py``): of the first sentence, "no" where it has the word No, no or not."""
    words = answer.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def yes_no_metrics(right: Mapping[str, Verdict], given: Mapping[str, str]) -> dict[str, float]:
    """Precision, recall and F1 of "yes", and how often it was said, in percent.

    A question without an answer is a miss: it lowers recall where "yes" was right, and it says neither.
    """
    said = {name: yes_or_no(text) for name, text in given.items()}
    hits = sum(said.get(name) == "yes" == verdict for name, verdict in right.items())
    yeses = sum(said.get(name) == "yes" for name in right)
    wanted = sum(verdict == "yes" for verdict in right.values())
    precision, recall = _ratio(hits, yeses), _ratio(hits, wanted)
    return {
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1": 100 * _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": 100 * _ratio(yeses, len(right)),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
