"""Runs side by side: scores with intervals beside the paper's, and the questions on which two runs disagree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama_v.errors import DataError
from mobillama_v.eval.benchmarks import registry
from mobillama_v.eval.results import Judged, Result, paper_score, read_result, results_of
from mobillama_v.eval.stats import INTERVALS, difference, headline_rows


@dataclass(frozen=True)
class Column:
    """A run: what it is called, and its results by benchmark."""

    name: str
    results: dict[str, Result]


@dataclass(frozen=True)
class Disagreement:
    """A question that two runs answer with different success."""

    question: str
    first: Judged
    second: Judged

    @property
    def winner(self) -> int:
        """0 where the first run is more right, 1 where the second is."""
        return int(self.second.correct > self.first.correct)


@dataclass(frozen=True)
class Pair:
    """Two runs on the questions that both were asked.

    ``wins`` are the questions that each is more right on. ``change`` is the second's headline less the first's with its
    95 % interval over the same questions, or None where the headlines are not of the same questions.
    """

    benchmark: str
    first: str
    second: str
    shared: int
    wins: tuple[int, int]
    change: tuple[float, tuple[float, float]] | None
    different: tuple[str, ...]
    disagreements: tuple[Disagreement, ...]


def read_columns(runs: Sequence[Path]) -> list[Column]:
    """Read runs; those of the same folder name are told apart by their whole path.

    Raises:
        DataError: a folder holds no scores, or is given twice.
    """
    if len({run.resolve() for run in runs}) < len(runs):
        raise DataError("the same run is given twice; name each folder once.")
    short = [run.resolve().name for run in runs]
    names = short if len(set(short)) == len(short) else [str(run) for run in runs]
    return [
        Column(name, {key: read_result(path) for key, path in results_of(run).items()})
        for name, run in zip(names, runs, strict=True)
    ]


def benchmarks_of(columns: Sequence[Column]) -> list[str]:
    """Every benchmark that a run has: those that are known in their order, then the others."""
    names = {name for column in columns for name in column.results}
    known = list(registry.classes())
    return [name for name in known if name in names] + sorted(names.difference(known))


def pairs(columns: Sequence[Column]) -> list[Pair]:
    """Every later run against the first, for each benchmark that both have."""
    first, *others = columns
    return [
        pair(first.name, first.results[name], other.name, other.results[name])
        for other in others
        for name in benchmarks_of(columns)
        if name in first.results and name in other.results
    ]


def pair(first: str, a: Result, second: str, b: Result) -> Pair:
    """Two runs of one benchmark."""
    mine, theirs = {row.id: row for row in a.questions}, {row.id: row for row in b.questions}
    shared = [name for name in mine if name in theirs]
    split = tuple(
        Disagreement(a.question(mine[name]), mine[name], theirs[name])
        for name in shared
        if mine[name].correct != theirs[name].correct
    )
    losses = sum(each.winner for each in split)
    return Pair(
        benchmark=a.benchmark,
        first=first,
        second=second,
        shared=len(shared),
        wins=(len(split) - losses, losses),
        change=_change(a, b),
        different=tuple(_different_settings(a, b)),
        disagreements=split,
    )


def _change(a: Result, b: Result) -> tuple[float, tuple[float, float]] | None:
    rows = [headline_rows(each.benchmark, each.score.headline, each.questions) for each in (a, b)]
    ids = [[row.id for row in part] for part in rows]  # type: ignore[attr-defined]
    if not ids[0] or ids[0] != ids[1] or a.score.headline_name != b.score.headline_name:
        return None
    return difference(a.benchmark, *rows)


def _different_settings(a: Result, b: Result) -> list[str]:
    mine = {**a.about.get("settings", {}), **{k: a.about.get(k) for k in ("precision", "max_new_tokens")}}
    theirs = {**b.about.get("settings", {}), **{k: b.about.get(k) for k in ("precision", "max_new_tokens")}}
    return [
        f"{key}: {mine.get(key)!r} and {theirs.get(key)!r}"
        for key in {**mine, **theirs}
        if mine.get(key) != theirs.get(key)
    ]


def comparison_rows(columns: Sequence[Column]) -> list[list[str]]:
    """Header and one row a benchmark: its name and measure, each run, the paper's."""
    rows = [["benchmark", *[column.name for column in columns], "MobiLlama-V 0.8B (paper)"]]
    for name in benchmarks_of(columns):
        results = [column.results.get(name) for column in columns]
        measure = next(result.score.headline_name for result in results if result)
        scores = [result.shown if result else "–" for result in results]
        rows.append([f"{name}, {measure}", *scores, paper_score(name)])
    return rows


def caption(columns: Sequence[Column]) -> str:
    """What stands below the table."""
    partial = any(result.partial for column in columns for result in column.results.values())
    warning = "Warning: what is partial cannot be compared with published scores, nor with other parts. "
    return (warning if partial else "") + f"In brackets: {INTERVALS}."


def markdown(columns: Sequence[Column], shown: int) -> str:
    """The comparison as Markdown, with ``shown`` of each pair's disagreements."""
    header, *body = comparison_rows(columns)
    lines = ["# Runs side by side", "", row(header), "|" + " --- |" * len(header), *map(row, body), ""]
    lines += [caption(columns), ""]
    for each in pairs(columns):
        lines += [f"## {each.benchmark}: {cell(each.first)} and {cell(each.second)}", "", sentence(each), ""]
        if each.disagreements and shown:
            lines += [row(["question", "expected", each.first, each.second]), "| --- | --- | --- | --- |"]
            lines += [
                row(
                    [
                        d.question,
                        " / ".join(dict.fromkeys(d.first.answers)),
                        marked_answer(d.first),
                        marked_answer(d.second),
                    ]
                )
                for d in each.disagreements[:shown]
            ]
            if len(each.disagreements) > shown:
                lines += ["", f"… and {len(each.disagreements) - shown:,} more."]
            lines.append("")
    return "\n".join(lines)


def sentence(each: Pair) -> str:
    """What a pair says, in words."""
    text = (
        f"Of {each.shared:,} shared questions they disagree on {len(each.disagreements):,}: {each.first} wins "
        f"{each.wins[0]:,}, {each.second} wins {each.wins[1]:,}."
    )
    if each.change:
        change, (low, high) = each.change
        clear = "" if low <= 0 <= high else ", which is more than chance"
        text += f" {each.second} less {each.first}: {change:+.2f} (95 %: {low:+.2f} to {high:+.2f}{clear})."
    if each.different:
        text += f" They were asked differently: {'; '.join(each.different)}."
    return text


def disagreement_lines(every: Sequence[Pair]) -> str:
    """Every disagreement as a JSON object a line."""
    return "".join(json.dumps(_record(each, d)) + "\n" for each in every for d in each.disagreements)


def _record(each: Pair, found: Disagreement) -> dict[str, Any]:
    return {
        "benchmark": each.benchmark,
        "question_id": found.first.id,
        "prompt": found.first.prompt,
        "answers": list(found.first.answers),
        each.first: {"text": found.first.text, "correct": found.first.correct},
        each.second: {"text": found.second.text, "correct": found.second.correct},
        "winner": (each.first, each.second)[found.winner],
    }


def marked_answer(row: Judged) -> str:
    """An answer and whether it is right."""
    mark = "✓" if row.correct == 1 else "✗" if row.correct == 0 else f"{row.correct:.2f}"
    return f"{row.text} {mark}"


def cell(text: str) -> str:
    """Text that is only text in a Markdown table: on one line, its marks escaped."""
    text = " ".join(text.split())
    for mark in "\\`*_{}[]<>|#~&":
        text = text.replace(mark, "\\" + mark)
    return text


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cell(each) for each in cells) + " |"
