"""What a benchmark is: a class with data and a few methods. One runner, one scorer and one report serve all of them.

A new benchmark is one file with a class that has ``@register``, and its module's name in
:mod:`mobillama_v.eval.benchmarks.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from mobillama_v.errors import ConfigError, DataError
from mobillama_v.eval.benchmarks.dataset_files import check_unique
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
class Summary:
    """Metrics and categories of a :class:`Score`; ``headline`` is the key of the main metric, ``name`` its name."""

    metrics: dict[str, float]
    categories: dict[str, dict[str, float]] = field(default_factory=dict)
    headline: str = "accuracy"
    name: str = ""


@dataclass(frozen=True)
class Chart:
    """Bars in the report: what a full bar is worth (``top``), and by label the lengths of a bar's parts, end to end.

    ``group`` is the group of questions that the labels are values of, so that questions can be counted; ``legend``
    names the parts of a bar.
    """

    title: str
    top: float
    bars: Mapping[str, tuple[float, ...]]
    group: str = ""
    legend: tuple[str, ...] = ()


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


@dataclass(frozen=True)
class Benchmark(ABC):
    """A benchmark.

    Its options (split, OCR mode, …) are dataclass fields, and the command line sets them by their names. ``questions``
    is one of LLaVA's files of questions, to take the prompts from. ``limit`` asks only so many questions. What is the
    same for every option is a class attribute, so that it can be asked of a finished run, too.
    """

    split: str = ""
    questions: Path | None = None
    limit: int | None = None

    name: ClassVar[str] = ""
    """As it is called on the command line."""
    title: ClassVar[str] = ""
    """As people call it."""
    hub_id: ClassVar[str] = ""
    """The Hugging Face dataset that holds it, if any."""
    splits: ClassVar[Mapping[str, int]] = {}
    """The splits that can be asked, with the number of questions that their owners published."""
    max_new_tokens: ClassVar[int] = 64
    """The longest answer in tokens, where the user names no other."""
    paper_score: ClassVar[float | None] = None
    """The headline of MobiLlama-V 0.8B as its authors print it (arXiv 2402.16840, table 8)."""
    in_all: ClassVar[bool] = True
    """Whether ``eval run all`` runs it."""
    options_in_all: ClassVar[frozenset[str]] = frozenset()
    """The options that mean this benchmark where ``eval run all`` gets them."""
    template: ClassVar[str] = "{question}" + SHORT_ANSWER
    """The form of its prompts."""
    request: ClassVar[str] = SHORT_ANSWER
    """What its prompts end with, and tables of questions leave out."""
    judged_by: ClassVar[str] = ""
    """How answers are judged, in words."""
    digits: ClassVar[int] = 2
    """Decimals that its figures are printed with."""
    category: ClassVar[str] = "category"
    """The group by which the report files its questions."""
    group_titles: ClassVar[Mapping[str, str]] = {}
    """Titles of groups in the report, where the name of a group is not enough."""
    points_by: ClassVar[str] = ""
    """A group in each value of which there are 100 points for right answers and 100 for images wholly right (MME)."""
    headline_group: ClassVar[tuple[str, str] | None] = None
    """A group and its value, where the headline is about these questions only."""

    def __post_init__(self) -> None:
        if self.split not in (self.splits or ("",)):
            there = f"the splits {', '.join(self.splits)}" if self.splits else "no splits"
            raise ConfigError(f"{self.title}: there are {there}, not {self.split!r}.")

    @property
    def official_count(self) -> int:
        """How many questions the owners' set of this split has; 0 where that is unknown."""
        return self.splits.get(self.split, 0)

    def sources(self) -> list[Source]:
        """What to download, for ``mobillama-v eval prepare``."""
        return []

    def hub_files(self) -> str:
        """The pattern of the files of :attr:`hub_id` that hold this split; empty where none do."""
        return ""

    @property
    def hub_size(self) -> str:
        """How much these files are, where that is known."""
        return ""

    def settings(self) -> dict[str, str]:
        """Split, prompt template, OCR mode, …: what must be printed beside a score to make it comparable."""
        prompt = self.questions.name if self.questions else self.template
        limit = {"limit": f"the first {self.limit:,} questions"} if self.limit else {}
        return {"split": self.split, "prompt": prompt, "judged by": self.judged_by} | limit

    @abstractmethod
    def read(self, data: Path) -> list[Example]:
        """All questions in the owners' order; :meth:`load` checks them.

        Raises:
            DataError: the folder is not there, is another one, or holds files that are not what they should be.
        """

    @abstractmethod
    def judge(self, example: Example, answer: str) -> float:
        """How right an answer is: 0 to 1."""

    def load(self, data: Path) -> list[Example]:
        """All questions, in the owners' order, with the prompts that are to be asked.

        Raises:
            DataError: as :meth:`read`; or there is no question, or two have one id.
        """
        examples = self.read(data)
        if not examples:
            split = f" of the split {self.split}" if self.split else ""
            raise DataError(f"{str(data)!r} holds no questions{split}; check the files of {self.title}.")
        check_unique((example.id for example in examples), data)
        return (self.with_prompts(examples, self.questions) if self.questions else examples)[: self.limit]

    def with_prompts(self, examples: list[Example], questions: Path) -> list[Example]:
        """The examples with the prompts of a file of questions; errors as of the function with this name."""
        from mobillama_v.eval.predictions import with_prompts

        return with_prompts(self, examples, questions)

    def for_scoring(self, data: Path) -> Benchmark:
        """The benchmark without files that nothing but asking needs, where these are missing."""
        return self

    def read_predictions(self, path: Path) -> list[Record]:
        """Read a file of predictions; errors as :func:`mobillama_v.eval.predictions.read_records`."""
        from mobillama_v.eval.predictions import read_records

        return read_records(path)

    def keys(self, example: Example) -> list[Any]:
        """By what a record that does not carry the example's own id can be told to be about it.

        LLaVA's files name questions of TextVQA and MME by their image, so that only the prompt tells them apart.
        """
        return []

    def record_keys(self, record: Record) -> list[Any]:
        """The keys under which a record may be found, the surest first."""
        return []

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str]) -> Score:
        """Judge answers by id of example; an example without one is wrong and is named in ``missing``."""
        correct = {
            each.id: float(self.judge(each, predictions[each.id])) if each.id in predictions else 0.0
            for each in examples
        }
        found = self.summarize(examples, predictions, correct)
        return Score(
            headline=found.metrics[found.headline],
            headline_name=found.name or found.headline,
            metrics=found.metrics,
            categories=found.categories,
            correct=correct,
            missing=tuple(example.id for example in examples if example.id not in predictions),
        )

    def summarize(
        self, examples: Sequence[Example], predictions: Mapping[str, str], correct: Mapping[str, float]
    ) -> Summary:
        """Metrics of answers that are right to these degrees; by default their mean, and that of each category."""
        categories = by_group(examples, correct, self.category)
        return Summary({"accuracy": percent(correct.values())}, {self.category: categories} if categories else {})

    @classmethod
    def top(cls, score: Score) -> float:
        """The best headline there could be."""
        return 100.0

    @classmethod
    def charts(cls, score: Score) -> list[Chart]:
        """The bars of the report: by default one chart a category of the score."""
        return [
            Chart(
                title=f"By {cls.group_titles.get(name, name)}, % right",
                top=100,
                bars={label: (value,) for label, value in values.items()},
                group=name,
            )
            for name, values in score.categories.items()
            if values
        ]


REGISTERED: dict[str, type[Benchmark]] = {}
"""Benchmarks whose modules were imported, by name; :mod:`mobillama_v.eval.benchmarks.registry` has all."""
_Kind = TypeVar("_Kind", bound=type[Benchmark])


def register(made: _Kind) -> _Kind:
    """Make a class of benchmarks known under its ``name``."""
    REGISTERED[made.name] = made
    return made


def percent(values: Iterable[float]) -> float:
    """The mean of scores from 0 to 1, in percent; 0 of none."""
    values = list(values)
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
