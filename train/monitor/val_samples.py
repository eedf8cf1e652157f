"""Answers of a model while it learns: a file that grows, and a page that shows how they changed, with the pictures.

``OUTPUT/validation/`` holds ``answers.jsonl``, every answer of every validation, and ``index.html``, which needs
nothing but itself.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobillama_v.images import ImageTransform
from mobillama_v.markup import Html, tag
from mobillama_v.train.data.html_page import document, picture
from mobillama_v.train.monitor.log import METRICS, drop_lines_after

FOLDER, ANSWERS, PAGE = "validation", "answers.jsonl", "index.html"
_QUESTIONS, _STEPS = 24, 8  # shown on the page: the first questions, the last validations
_THUMBNAIL = 224  # pixels of a side
_STYLE = """
article { display: flex; flex-wrap: wrap; gap: 1rem; }
article > div { flex: 1 1 20rem; }
p { white-space: pre-wrap; }
table { border-collapse: collapse; } th { font-weight: 600; text-align: left; }
th, td { padding: .1rem .8rem .1rem 0; vertical-align: top; overflow-wrap: anywhere; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
"""


@dataclass(frozen=True)
class Answer:
    """A model's answer to a question after ``step`` steps, and the expected one."""

    step: int
    source: str
    record: str
    images: Sequence[str]
    prompt: str
    expected: str
    text: str

    @property
    def right(self) -> bool:
        """Whether it is the expected answer; upper and lower case are the same."""
        return self.text.casefold() == self.expected.casefold()


def append_answers(output: Path, answers: Sequence[Answer]) -> None:
    """Add the answers of one validation to the file."""
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(dataclasses.asdict(answer) | {"right": answer.right}) + "\n" for answer in answers]
    with open(folder / ANSWERS, "a", encoding="utf-8") as file:
        file.writelines(lines)


def drop_answers_after(output: Path, *, after: int) -> None:
    """Drop the answers of steps that a resumed training does again."""
    path = output / FOLDER / ANSWERS
    if path.is_file():
        drop_lines_after(after, path)


def read_answers(output: Path) -> list[Answer]:
    """All answers, in the order in which they were given."""
    answers = []
    for line in (output / FOLDER / ANSWERS).read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        del values["right"]
        answers.append(Answer(**values))
    return answers


def write_page(output: Path, step: int, metrics: dict[str, float], image_root: Path, transform: ImageTransform) -> None:
    """Write the page anew; ``metrics`` are those of ``step``, which ``metrics.jsonl`` does not hold yet."""
    scores: dict[int, tuple[float, float]] = {}
    metrics_file = output / METRICS
    lines = metrics_file.read_text(encoding="utf-8").splitlines() if metrics_file.is_file() else []
    for entry in map(json.loads, lines):
        if "validation_exact_match" in entry:
            scores[entry["step"]] = entry["validation_loss"], entry["validation_exact_match"]
    scores[step] = metrics["eval_loss"], metrics["eval_exact_match"]
    asked: dict[tuple[str, str, str], list[Answer]] = {}
    for answer in read_answers(output):
        asked.setdefault((answer.source, answer.record, answer.prompt), []).append(answer)
    articles = [_article(answers, image_root, transform) for answers in list(asked.values())[:_QUESTIONS]]
    title = f"Answers of {output.resolve().name} after {step:,} steps"
    text = document(title, _STYLE, _table(scores), *articles)
    path = output / FOLDER / PAGE
    path.write_text(text, encoding="utf-8")


def _table(scores: dict[int, tuple[float, float]]) -> Html:
    head = tag("tr", *[tag("th", name) for name in ("step", "loss", "exact match")])
    rows = [
        tag("tr", *[tag("td", cell, class_="number") for cell in (f"{step:,}", f"{loss:.4f}", f"{exact:.1%}")])
        for step, (loss, exact) in scores.items()
    ]
    return tag("table", head, *rows)


def _article(answers: Sequence[Answer], image_root: Path, transform: ImageTransform) -> Html:
    first = answers[0]
    pictures = [picture(path, image_root, transform, side=_THUMBNAIL) for path in first.images]
    rows = [
        tag(
            "tr",
            tag("td", f"step {answer.step:,}", class_="number"),
            tag("td", answer.text or "(nothing)", class_="right" if answer.right else "wrong"),
        )
        for answer in answers[-_STEPS:]
    ]
    rows.append(tag("tr", tag("th", "expected"), tag("td", first.expected)))
    words = [
        tag("p", first.prompt),
        tag("table", *rows),
        tag("p", f"{first.record} of {Path(first.source).name}", class_="small"),
    ]
    return tag("article", *pictures, tag("div", *words))
