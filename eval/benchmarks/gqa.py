"""GQA (Hudson and Manning, arXiv 1902.09506): questions about scenes, made from scene graphs; exact match.

An answer is stripped of final full stops and lower-cased, as LLaVA's ``convert_gqa_for_eval.py`` does, and compared as
the ``eval.py`` of GQA's ``eval.zip`` does; the other metrics are that script's, and are given where their files are:

| metric | needs |
| --- | --- |
| binary, open, by type, length and steps, distribution | the question file |
| validity, plausibility | ``<tier>_choices.json`` or a folder ``<tier>_choices/`` |
| consistency | ``consistency=True`` and answers to all of ``<tier>_all_questions.json`` |

Its grounding metric needs attention maps, which a decoder does not give, and is the only one that reads scene graphs.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from mobillama_v.errors import ConfigError, DataError
from mobillama_v.eval.benchmarks.base import (
    SHORT_ANSWER,
    Benchmark,
    Example,
    Source,
    Summary,
    by_group,
    percent,
    register,
)
from mobillama_v.eval.benchmarks.dataset_files import field, find, need, read_json_or_chunks, texts

_ALL = {"testdev": 172_174, "val": 2_011_853}  # questions of a tier, balanced or not
_COMMON = frozenset(("color", "material", "shape"))
_FREE_STEPS = ("exist", "query: name", "choose name")  # the last step of a program adds no reasoning
_FILES = "https://downloads.cs.stanford.edu/nlp/data/gqa"


@dataclass(frozen=True)
class Question(Example):
    """A question of GQA: what follows from its answer, and what could be an answer to it at all (None: not known)."""

    entailed: tuple[str, ...] = ()
    valid: frozenset[str] | None = None
    plausible: frozenset[str] | None = None
    balanced: bool = True


@register
@dataclass(frozen=True)
class GQA(Benchmark):
    """GQA; ``split`` is ``testdev_balanced`` (the one that is reported) or ``val_balanced``.

    With ``consistency`` all questions of the tier are asked, fourteen times as many, and consistency is scored, too.
    ``questions`` takes the prompts from LLaVA's ``llava_gqa_testdev_balanced.jsonl``.
    """

    split: str = "testdev_balanced"
    consistency: bool = False

    name = "gqa"
    title = "GQA"
    hub_id = "lmms-lab/GQA"
    splits: ClassVar = {"testdev_balanced": 12_578, "val_balanced": 132_062}
    max_new_tokens = 24
    paper_score = 58.5
    options_in_all = frozenset({"consistency"})
    judged_by = "exact match after lower-casing and removing final full stops"
    category = "structural"
    group_titles: ClassVar = {
        "structural": "structural type",
        "semantic": "semantic type",
        "steps": "steps of reasoning",
        "words": "words in the question",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.consistency and self.limit:
            raise ConfigError("consistency needs all questions; leave out --limit or --consistency.")

    @property
    def _tier(self) -> str:
        return self.split.split("_")[0]

    @property
    def _asked(self) -> str:
        return f"{self._tier}_all" if self.consistency else self.split

    @property
    def official_count(self) -> int:
        """Questions in the published file."""
        return _ALL[self._tier] if self.consistency else super().official_count

    def sources(self) -> list[Source]:
        """Question file and images; choices are published for the validation tier."""
        found = [
            Source(f"{self._asked}_questions.json", f"{_FILES}/questions1.2.zip"),
            Source("images/", f"{_FILES}/images.zip"),
        ]
        if self._tier == "val":
            found.append(Source("val_choices.json", f"{_FILES}/eval.zip", optional=True))
        return found

    def hub_files(self) -> str:
        """Questions and pictures of the split; all questions of a tier are not published there."""
        return "" if self.consistency else f"{self.split}_*"

    @property
    def hub_size(self) -> str:
        """As the dataset's page has it."""
        return "65.6 MB" if self.split == "testdev_balanced" else ""

    def settings(self) -> dict[str, str]:
        """With what is asked for consistency."""
        also = {"also asked": f"all of {self._asked}, for consistency"} if self.consistency else {}
        return super().settings() | also

    def read(self, data: Path) -> list[Example]:
        """From the owners' files, or from the dataset of Hugging Face."""
        file = f"{self._asked}_questions.json"
        # Only the balanced sets are published as Hugging Face datasets.
        rows = None if find(data, file) else _hub_rows(data, self._asked)
        if rows is not None:
            source, images = f"{data} ({self._asked})", rows[1]
            published: Mapping[str, Any] = rows[0]
        else:
            path = need(data, file, title=self.title, command=self.name)
            source, images = str(path), {}
            published = read_json_or_chunks(path)
        folder = find(data, "images") or data / "images"
        choices = self._choices(data)
        examples: list[Example] = []
        for name, question in published.items():
            where = f"{source}, question {name!r}"
            image = field(question, "imageId", str, where)
            examples.append(
                _question(name, question, images.get(image, folder / f"{image}.jpg"), choices.get(name), where)
            )
        if choices and any(isinstance(each, Question) and each.valid is None for each in examples):
            raise DataError(f"the choices of {self._tier} in {str(data)!r} lack questions; download them again.")
        return examples

    def _choices(self, data: Path) -> Mapping[str, Any]:
        stems = (f"{self.split}_choices", f"{self._tier}_choices")
        path = find(data, *(name for stem in stems for name in (f"{stem}.json", stem)))
        return read_json_or_chunks(path) if path else {}

    def judge(self, example: Example, answer: str) -> float:
        """Exact match."""
        return float(normalize(answer) == example.answers[0])

    def summarize(
        self, examples: Sequence[Example], predictions: Mapping[str, str], correct: Mapping[str, float]
    ) -> Summary:
        """All of GQA's metrics for which the files are there, in percent (distribution: lower is better)."""
        given = {example.id: normalize(predictions.get(example.id, "")) for example in examples}
        judged = [each for each in examples if not isinstance(each, Question) or each.balanced]
        metrics = {"accuracy": percent(correct[each.id] for each in judged)}
        for kind in ("binary", "open"):
            metrics[kind] = percent(correct[each.id] for each in judged if each.group.get("kind") == kind)
        questions = [each for each in judged if isinstance(each, Question)]
        for metric, known in (("validity", "valid"), ("plausibility", "plausible")):
            sets = [(each, getattr(each, known)) for each in questions if getattr(each, known) is not None]
            if sets:
                metrics[metric] = percent(float(each.id in predictions and given[each.id] in s) for each, s in sets)
        if self.consistency:
            metrics["consistency"] = _consistency(questions, correct)
        if any("global" in each.group for each in judged):
            metrics["distribution"] = _distribution(judged, given)
        return Summary(metrics, {name: by_group(judged, correct, name) for name in self.group_titles})


def normalize(answer: str) -> str:
    """LLaVA's step before GQA's comparison: without final full stops, in lower case; blanks stay."""
    return answer.rstrip(".").lower()


def _question(name: str, question: Any, image: Path, choices: Any, where: str) -> Question:
    text = field(question, "question", str, where)
    answer = field(question, "answer", str, where)
    types = field(question, "types", dict, where)
    structural = field(types, "structural", str, where)
    group = {
        "structural": structural,
        "semantic": field(types, "semantic", str, where),
        "kind": "open" if structural == "query" else "binary",
        "words": str(len(text.split())),
    }
    if isinstance(question.get("semantic"), list):
        group["steps"] = str(_steps(question["semantic"]))
    # Questions without a group have the name "" in the published file, and the official script counts them as a group.
    if isinstance(question.get("groups"), dict) and question["groups"].get("global") is not None:
        group["global"] = str(question["groups"]["global"])
    valid = plausible = None
    if choices is not None:
        # GQA's script judges these questions, whose answer is an attribute that two things share, by its name alone.
        common = "Common" in str(types.get("detailed"))
        valid = _COMMON if common else frozenset(texts(choices, "valid", f"{where}, its choices,"))
        plausible = _COMMON if common else frozenset(texts(choices, "plausible", f"{where}, its choices,"))
    entailed = field({"entailed": [], **question}, "entailed", (list, str, type(None)), where) or []
    if isinstance(entailed, str):  # Hugging Face's copy holds the list as text
        entailed = re.findall(r"\w+", entailed)
    return Question(
        id=name,
        images=(image,),
        prompt=text + SHORT_ANSWER,
        answers=(answer,),
        group=group,
        entailed=tuple(map(str, entailed)),
        valid=valid,
        plausible=plausible,
        balanced=question.get("isBalanced") is not False,
    )


def _steps(program: Sequence[Any]) -> int:
    steps = (f"{step.get('operation')}: {step.get('argument')}" for step in program if isinstance(step, dict))
    return sum(not any(free in step for free in _FREE_STEPS) for step in steps)


def _consistency(questions: Sequence[Question], correct: Mapping[str, float]) -> float:
    """Over questions that were answered right: how many of the questions that this answers are right, too."""
    shares = []
    for question in questions:
        others = [name for name in question.entailed if name != question.id]
        if correct[question.id] and others:
            absent = [name for name in others if name not in correct]
            if absent:
                raise DataError(
                    f"question {question.id!r} of GQA entails {absent[0]!r}, which the file of all questions lacks; "
                    "download it again."
                )
            shares.append(sum(correct[name] for name in others) / len(others))
    return percent(shares)


def _distribution(questions: Sequence[Example], given: Mapping[str, str]) -> float:
    """Chi-square between right and given answers in each group of questions, weighted by size, over 100."""
    right: dict[str, Counter[str]] = defaultdict(Counter)
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for question in questions:
        group = question.group.get("global")
        if group is not None:
            right[group][question.answers[0]] += 1
            said[group][given[question.id]] += 1
    total = weighted = 0.0
    for group, answers in right.items():
        statistic = sum((said[group][answer] - count) ** 2 / count for answer, count in answers.items())
        weighted += statistic * answers.total()
        total += answers.total()
    return weighted / total / 100


def _hub_rows(data: Path, split: str) -> tuple[dict[str, Any], dict[str, Path]] | None:
    """Questions by id and image files by image id, from lmms-lab/GQA; None where that is not what lies there."""
    from mobillama_v.eval.benchmarks import hub_datasets

    tier = split.split("_")[0]
    rows = hub_datasets.read(data, tier, config=f"{split}_instructions")
    if rows is None:
        return None
    pictures = hub_datasets.read(data, tier, config=f"{split}_images") or []
    files = {row["id"]: hub_datasets.image_file(data, row["image"], row["id"]) for row in pictures}
    return {str(row["id"]): row for row in rows}, {name: file for name, file in files.items() if file}
