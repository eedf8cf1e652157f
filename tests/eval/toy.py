"""A benchmark of drawn pictures with several questions each, for tests of what is the same in all benchmarks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from mobillama_v.eval.benchmarks.base import SHORT_ANSWER, Benchmark, Example

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
class Toy(Benchmark):
    """Questions about the drawn pictures; an answer that holds an e is right."""

    split: str = "test"

    name = "toy"
    title = "Toy <b>questions</b>"
    splits: ClassVar = {"test": 0, "val": 0}
    judged_by = "the letter e"
    category = "kind"

    def read(self, data: Path) -> list[Example]:
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

    def judge(self, example: Example, answer: str) -> float:
        return float("e" in answer)


def run(
    data: Path, folder: Path, model: Path | str, *, benchmark: Toy | None = None, engine: str = "torch", **options: Any
) -> Any:
    """Run the toy."""
    from mobillama_v.eval import evaluate

    benchmark = benchmark or Toy()
    chosen = evaluate.Model(str(model), engine=engine)
    return evaluate.run(benchmark, benchmark.load(data), folder, model=chosen, **options)
