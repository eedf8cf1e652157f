"""A judged run on the disk: ``score.json`` beside the answers, enough to compare runs and to make a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama_v.errors import DataError
from mobillama_v.eval.benchmarks import registry
from mobillama_v.eval.benchmarks.base import Benchmark, Example, Score
from mobillama_v.eval.stats import interval
from mobillama_v.eval.store import RUN, SCORE, read_json, write_json


@dataclass(frozen=True)
class Judged:
    """One question as it was judged: ``correct`` is 0 to 1, ``unit`` what goes right or wrong together (its images).

    ``images`` are files, which may have gone since.
    """

    id: str
    unit: str
    correct: float
    prompt: str
    text: str
    answers: tuple[str, ...]
    group: Mapping[str, str]
    images: tuple[str, ...] = ()
    finish_reason: str = ""


@dataclass(frozen=True)
class Result:
    """A run of a benchmark: what it was (``about``, of :func:`mobillama_v.eval.evaluate.provenance`), score and
    questions.

    ``interval`` is the 95 % confidence interval of the headline, or None where the headline is no mean of what was
    judged.
    """

    about: Mapping[str, Any]
    score: Score
    interval: tuple[float, float] | None
    questions: tuple[Judged, ...]

    @property
    def benchmark(self) -> str:
        """The benchmark's name."""
        return self.about["benchmark"]

    @property
    def kind(self) -> type[Benchmark]:
        """The benchmark's class."""
        return registry.find(self.benchmark)

    def question(self, row: Judged) -> str:
        """What was asked, without what all prompts of the benchmark end with."""
        return row.prompt.removesuffix(self.kind.request)

    def figure(self, value: float) -> str:
        """A score as it is printed."""
        return f"{value:,.{self.kind.digits}f}"

    @property
    def partial(self) -> str:
        """What makes the score no whole set's, as ``1,247 of 12,578 questions``; empty where nothing does."""
        official, count = self.about.get("official_questions"), len(self.questions)
        parts = [f"{count:,} of {official:,} questions"] if official and official != count else []
        return ", ".join(parts + [f"{len(self.score.missing):,} without an answer"] * bool(self.score.missing))

    @property
    def headline(self) -> str:
        """The score with its interval, as ``41.20 (38.9 to 43.4)``."""
        text = self.figure(self.score.headline)
        if self.interval:
            text += " ({:,.1f} to {:,.1f})".format(*self.interval)
        return text

    @property
    def shown(self) -> str:
        """The headline in a table, with what makes it partial."""
        return f"{self.headline}, partial: {self.partial}" if self.partial else self.headline


def paper_score(benchmark: str) -> str:
    """What the paper prints for a benchmark (arXiv 2402.16840, table 8), or a dash."""
    score = registry.find(benchmark).paper_score
    return "–" if score is None else f"{score:,.1f}"


def judge(
    benchmark: Benchmark,
    examples: Sequence[Example],
    answers: Mapping[str, Mapping[str, Any]],
    about: Mapping[str, Any],
) -> Result:
    """Score answers by question id, each with a ``text`` and perhaps a ``finish_reason``."""
    score = benchmark.score(examples, {name: answer["text"] for name, answer in answers.items()})
    rows = []
    for example in examples:
        answer = answers.get(example.id, {})
        unit = "|".join("/".join(path.parts[-2:]) for path in example.images) or example.id
        rows.append(
            Judged(
                id=example.id,
                unit=unit,
                correct=score.correct[example.id],
                prompt=example.prompt,
                text=answer.get("text", ""),
                answers=example.answers,
                group={**example.group},
                images=tuple(str(path.absolute()) for path in example.images),
                finish_reason=answer.get("finish_reason", ""),
            )
        )
    return Result(about, score, interval(benchmark.name, score.headline, rows), tuple(rows))


def write_result(result: Result, folder: Path) -> None:
    """Write ``score.json``, and ``run.json`` where it is not there (predictions that somebody else made)."""
    write_json(
        folder / SCORE,
        {
            "benchmark": result.benchmark,
            "score": dataclasses.asdict(result.score),
            "interval_95": result.interval,
            "questions": [dataclasses.asdict(each) for each in result.questions],
        },
    )
    if not (folder / RUN).is_file():
        write_json(folder / RUN, result.about)


def read_result(folder: Path) -> Result:
    """Read what :func:`write_result` wrote.

    Raises:
        DataError: a file is missing, or is not what it should be.
    """
    about, found = read_json(folder / RUN), read_json(folder / SCORE)
    try:
        score = Score(**{**found["score"], "missing": tuple(found["score"]["missing"])})
        questions = tuple(_judged(each) for each in found["questions"])
        low_high = found["interval_95"]
        return Result(about, score, tuple(low_high) if low_high else None, questions)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{str(folder / SCORE)!r} is not a score of this version ({error}); run the same command again."
        ) from None


def _judged(found: Mapping[str, Any]) -> Judged:
    return Judged(**{**found, "answers": tuple(found["answers"]), "images": tuple(found["images"])})


def results_of(run: Path) -> dict[str, Path]:
    """Folders of the judged benchmarks of a run by name; ``run`` may also be one of them.

    Raises:
        DataError: there is none.
    """
    if (run / SCORE).is_file():
        return {read_json(run / RUN)["benchmark"]: run}
    found = {read_json(path.parent / RUN)["benchmark"]: path.parent for path in sorted(run.glob(f"*/{SCORE}"))}
    if not found:
        raise DataError(f"{str(run)!r} holds no scores; give a folder that `mobillama-v eval run --output` wrote.")
    return found
