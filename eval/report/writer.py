"""The report of a run: a page to look at, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mobillama_v.eval.compare import benchmarks_of, cell, read_columns, row
from mobillama_v.eval.report.page import notes, page, settings_of
from mobillama_v.eval.report.samples import pick
from mobillama_v.eval.results import Result, paper_score
from mobillama_v.eval.stats import INTERVALS
from mobillama_v.eval.store import write_text

_SHOWN = 5  # wrong answers of each benchmark in the Markdown


def write(run: Path) -> Path:
    """Write ``report.html`` and ``report.md`` for all judged benchmarks in the folder of a run; the page's path.

    Raises:
        DataError: the folder holds no scores.
    """
    (column,) = read_columns([run])
    results = [column.results[name] for name in benchmarks_of([column])]
    models = dict.fromkeys(Path(str(result.about.get("model", "unknown"))).name for result in results)
    title = f"{', '.join(models)} on {_listed([str(result.about['title']) for result in results])}"
    html = run / "report.html"
    write_text(html, page(results, title))
    write_text(run / "report.md", markdown(results, title))
    return html


def markdown(results: Sequence[Result], title: str) -> str:
    """The report without pictures."""
    lines = [f"# {cell(title)}", "", row(["benchmark", "measure", "score (95 %)", "paper, 0.8B"])]
    lines.append("| --- | --- | --- | --- |")
    for result in results:
        title, paper = str(result.about["title"]), paper_score(result.benchmark)
        lines.append(row([title, result.score.headline_name, result.shown, paper]))
    lines += ["", f"In brackets: {INTERVALS}."]
    for result in results:
        lines += ["", *_section(result)]
    return "\n".join(lines) + "\n"


def _section(result: Result) -> list[str]:
    lines = [f"## {cell(str(result.about['title']))}", ""]
    lines += [f"**{cell(note)}**\n" for note in notes(result)]
    lines += [row(["setting", ""]), "| --- | --- |"]
    lines += [row([name, value.replace("\n", "\\n")]) for name, value in settings_of(result).items()]
    lines += ["", row(["measure", ""]), "| --- | ---: |"]
    lines += [row([name, result.figure(value)]) for name, value in result.score.metrics.items()]
    for name, values in result.score.categories.items():
        lines += ["", row([f"by {name}", ""]), "| --- | ---: |"]
        lines += [row([label, result.figure(value)]) for label, value in values.items()]
    wrong = pick([each for each in result.questions if each.correct < 1], _SHOWN, result.kind.category)
    if wrong:
        lines += ["", row(["wrong answers, for example", "said", "expected"]), "| --- | --- | --- |"]
        lines += [
            row([result.question(each), each.text or "(nothing)", ", ".join(dict.fromkeys(each.answers))])
            for each in wrong
        ]
    return lines


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
