"""A benchmark of drawn pictures with several questions each, for tests of what is the same in all benchmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mobillama_v.eval.benchmarks.base import SHORT_ANSWER, Example, Score, by_group, missing_from, percent

QUESTIONS = [
    "What is this?",
    "Which color is it?",
    "How many dogs are on the grass, and are they red or blue or neither?",
    "Is it a small blue square or a red circle above it?",
    "A red circle?",
]


def draw(folder: Path, *, pictures: int) -> None:
    """Pictures of different colors and sizes, and ``questions.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = []
    for i in range(pictures):
        picture = Image.new("RGB", (60 + 10 * i, 50), (40 * i % 256, 90 * i % 256, 200 - 20 * i))
        picture.paste((255 - 30 * i, 255, 30 * i), (5, 5, 20 + 5 * i, 30))
        picture.save(folder / f"{i}.png")
        questions += [
            {
                "id": f"{i}-{j}",
                "image": f"{i}.png",
                "question": text,
                "answer": "yes",
                "kind": "even" if j % 2 else "odd",
            }
            for j, text in enumerate(QUESTIONS)
        ]
    (folder / "questions.json").write_text(json.dumps(questions))


@dataclass(frozen=True)
class Toy:
    """Questions about the drawn pictures; an answer that holds an e is right."""

    split: str = "test"
    name: str = "toy"
    title: str = "Toy <b>questions</b>"
    official_count: int = 0

    def sources(self) -> list[Any]:
        return []

    def settings(self) -> dict[str, str]:
        return {"split": self.split, "prompt": "{question}" + SHORT_ANSWER, "ocr": "none"}

    def examples(self, data: Path) -> list[Example]:
        return [
            Example(
                each["id"],
                (data / each["image"],) if each["image"] else (),
                each["question"] + SHORT_ANSWER,
                (each["answer"],),
                {"kind": each["kind"]},
            )
            for each in json.loads((data / "questions.json").read_text())
        ]

    def keys(self, example: Example) -> list[Any]:
        return [example.id]

    def record_keys(self, record: Any) -> list[Any]:
        return [record.id]

    def score(self, examples: Sequence[Example], predictions: Mapping[str, str]) -> Score:
        correct = {each.id: float("e" in predictions.get(each.id, "")) for each in examples}
        accuracy = percent(list(correct.values()))
        kinds = by_group(examples, correct, "kind")
        return Score(
            accuracy, "accuracy", {"accuracy": accuracy}, {"kind": kinds}, correct, missing_from(examples, predictions)
        )


def run(
    data: Path, folder: Path, model: Path | str, *, benchmark: Toy | None = None, engine: str = "torch", **options: Any
) -> Any:
    """Run the toy."""
    from mobillama_v.eval import evaluate

    benchmark = benchmark or Toy()
    chosen = evaluate.Model(str(model), engine=engine)
    return evaluate.run(benchmark, benchmark.examples(data), folder, model=chosen, **options)
