"""What a benchmark is: it gives examples and judges answers. One runner and one report serve all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mobillama_v.prompt import SHORT_ANSWER as SHORT_ANSWER  # the benchmarks' prompts end with it


@dataclass(frozen=True)
class Example:
    """One question.

    ``id`` is unique in its benchmark; ``images`` are files, which need not exist where nothing but scoring is done;
    ``prompt`` is the exact text put to the model, without image markers; ``answers`` are the right ones as the owners
    wrote them; ``group`` holds what scores are broken down by (category, subject, structural type, …).
    """

    id: str
    images: tuple[Path, ...]
    prompt: str
    answers: tuple[str, ...]
    group: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """What predictions are worth.

    ``headline`` (named ``headline_name``) and ``metrics`` are percentages, or points of MME; ``categories`` breaks the
    score down, as in ``{"structural": {"query": 41.2}}``; ``correct`` has 0 to 1 for every example; ``missing`` are the
    ids of examples that have no answer, which count as wrong.
    """

    headline: float
    headline_name: str
    metrics: dict[str, float]
    categories: dict[str, dict[str, float]]
    correct: dict[str, float]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """One line of a file of predictions, or of LLaVA's files of questions (``text`` is then the question).

    ``where`` names file and line for messages; ``prompt`` is empty where the file has none.
    """

    where: str
    id: str
    text: str
    prompt: str = ""


@dataclass(frozen=True)
class Source:
    """A file or folder of a benchmark: where it is below the data folder, and where its owners publish it."""

    path: str
    url: str
    optional: bool = False


class Benchmark(Protocol):
    """A benchmark; its options (split, OCR mode, …) are fields, so that two objects can be compared and printed."""

    @property
    def name(self) -> str:
        """As it is called on the command line."""
        ...

    @property
    def title(self) -> str:
        """As people call it."""
        ...

    @property
    def official_count(self) -> int:
        """How many questions the owners' set of this split has; 0 where that is unknown."""
        ...

    def sources(self) -> list[Source]:
        """What to download, for ``mobillama-v eval prepare``."""
        ...

    def settings(self) -> dict[str, str]:
        """Split, prompt template, OCR mode, …: what must be printed beside a score to make it comparable."""
        ...

    def examples(self, data: Path) -> list[Example]:
        """All questions, in the owners' order.

        Raises:
            DataError: the folder is not there, is another one, or holds files that are not what they should be.
        """
        ...

    def keys(self, example: Example) -> list[Any]:
        """By what a record that does not carry the example's own id can be told to be about it.

        LLaVA's files name questions of TextVQA and MME by their image, so that only the prompt tells them apart.
        """
        ...

    def record_keys(self, record: Record) -> list[Any]:
        """The keys under which a record may be found, the surest first."""
        ...

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str]) -> Score:
        """Judge answers by id of example; an example without one is wrong and is named in ``missing``."""
        ...


def percent(values: Sequence[float]) -> float:
    """The mean of scores from 0 to 1, in percent; 0 of none."""
    return 100.0 * sum(values) / len(values) if values else 0.0


def by_group(examples: Sequence[Example], correct: Mapping[str, float], name: str) -> dict[str, float]:
    """Percent right in each value of one group, in the order of the values' names, numbers by their size."""
    found: dict[str, list[float]] = {}
    for example in examples:
        if name in example.group:
            found.setdefault(example.group[name], []).append(correct[example.id])
    return {
        value: percent(found[value])
        for value in sorted(found, key=lambda value: (int(value) if value.isdigit() else 0, value))
    }


def missing_from(examples: Sequence[Example], predictions: Mapping[str, str]) -> tuple[str, ...]:
    """Ids of the examples that have no answer."""
    return tuple(example.id for example in examples if example.id not in predictions)
