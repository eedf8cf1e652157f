"""``mobillama-v bench``: measurements of this machine, each of its ways side by side in one run."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillama_v.cli.options import DeviceOption, EngineOption, ModelOption
from mobillama_v.eval.bench_run import aligned, bench_run

if TYPE_CHECKING:
    from mobillama_v.eval.benchmarks.base import Benchmark, Example
    from mobillama_v.eval.evaluate import Model

app = typer.Typer(
    help="Measure how fast this machine runs what the project does.", no_args_is_help=True, add_completion=False
)

QUESTIONS = 20  # on each image


app.command("run")(bench_run)


@app.callback()
def _bench() -> None:
    """Measure how fast this machine runs what the project does."""


@dataclass
class Measured:
    """Seconds of both ways by turn, and their answers by question id."""

    questions: int = 0
    images: int = 0
    alone: list[float] = field(default_factory=list)
    batched: list[float] = field(default_factory=list)
    answers_alone: dict[str, str] = field(default_factory=dict)
    answers_batched: dict[str, str] = field(default_factory=dict)

    @property
    def speedup(self) -> float:
        """How many times as fast the batches are."""
        return sum(self.alone) / sum(self.batched)

    @property
    def different(self) -> list[str]:
        """Questions that both ways do not answer with the same text."""
        return [name for name, text in self.answers_alone.items() if self.answers_batched.get(name) != text]


@app.command("eval")
def bench_eval(
    model: ModelOption = "nano",
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    images: Annotated[int, typer.Option(min=1, help=f"Drawn pictures, with {QUESTIONS} questions each.")] = 36,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that the runner asks at once.")] = 32,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the measurement as JSON.")] = None,
) -> None:
    """The evaluation's runner against a loop that asks one question at a time and encodes its image each time.

    Both take turns on a set like GQA, so that what else the machine does hurts both. Exit code 1: their answers differ.
    """
    from mobillama_v.eval.benchmarks.registry import get
    from mobillama_v.eval.drawn import draw_gqa
    from mobillama_v.eval.evaluate import Model
    from mobillama_v.eval.store import write_output

    chosen = Model(model, device, engine)
    chosen.plan.limit_threads()
    benchmark = get("gqa")
    with tempfile.TemporaryDirectory() as folder:
        draw_gqa(Path(folder) / "data", images=images, questions=QUESTIONS)
        examples = benchmark.examples(Path(folder) / "data")
        measured = measure(benchmark, examples, chosen, Path(folder) / "runs", batch_size=batch_size)
    facts = as_dict(measured, chosen, batch_size)
    print(table(measured, batch_size))
    if output:
        write_output(output, json.dumps(facts, indent=1) + "\n")
    if measured.different:
        raise typer.Exit(1)


def measure(
    benchmark: Benchmark, examples: Sequence[Example], model: Model, folder: Path, *, batch_size: int
) -> Measured:
    """Answer the examples in both ways, a window of the runner at a time, after a warm-up of each."""
    from mobillama_v.eval.distributed import World
    from mobillama_v.eval.evaluate import Evaluator, longest_answer, run
    from mobillama_v.generate import Sampling

    tokens = longest_answer(benchmark.name)
    sampling = Sampling(max_new_tokens=tokens)
    assistant = model.assistant
    first = list(examples[:batch_size])
    assistant.ask(first[0].images, first[0].prompt, sampling)
    run(benchmark, first, folder / "warm-up", model=model, batch_size=batch_size)
    measured = Measured(questions=len(examples), images=len({example.images for example in examples}))
    asker = Evaluator(assistant, batch_size=batch_size, max_new_tokens=tokens)
    for number, window in enumerate(asker.share(examples, World())):
        start = time.perf_counter()
        for example in window:
            measured.answers_alone[example.id] = assistant.ask(example.images, example.prompt, sampling).text
        between = time.perf_counter()
        done = run(benchmark, window, folder / str(number), model=model, batch_size=batch_size)
        measured.answers_batched |= done.texts
        measured.batched.append(time.perf_counter() - between)
        measured.alone.append(between - start)
    return measured


def as_dict(measured: Measured, model: Model, batch_size: int) -> dict[str, Any]:
    """The measurement with what it was made on."""
    import torch

    return {
        "bench": "eval",
        "model": model.name,
        "weights_sha256": model.digest,
        "precision": model.plan.precision,
        "device": str(model.assistant.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "questions": measured.questions,
        "images": measured.images,
        "batch_size": batch_size,
        "seconds": {"one at a time": measured.alone, "runner": measured.batched},
        "questions_per_second": {
            "one at a time": measured.questions / sum(measured.alone),
            "runner": measured.questions / sum(measured.batched),
        },
        "speedup": measured.speedup,
        "different_answers": measured.different,
    }


def table(measured: Measured, batch_size: int) -> str:
    """The measurement as text."""
    rows = [("", "questions/s", "seconds", "images encoded")]
    for name, seconds, encoded in (
        ("one at a time", measured.alone, measured.questions),
        (f"runner, batches of {batch_size}", measured.batched, measured.images),
    ):
        total = sum(seconds)
        rows.append((name, f"{measured.questions / total:.1f}", f"{total:.1f}", f"{encoded:,}"))
    lines = aligned(rows)
    turns = [a / b for a, b in zip(measured.alone, measured.batched, strict=True)]
    lines.append(
        f"{measured.questions:,} questions on {measured.images:,} images: the runner is {measured.speedup:.1f} times "
        f"as fast (between {min(turns):.1f} and {max(turns):.1f} in {len(turns)} turns)."
    )
    different = len(measured.different)
    lines.append("Both give the same answers." if not different else f"They differ in {different:,} answers.")
    return "\n".join(lines)
