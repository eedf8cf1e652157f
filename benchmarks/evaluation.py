"""``python -m benchmarks eval``: the evaluation's runner against asking one question at a time."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.harness import OutputOption, finish, machine, times_as_fast
from mobillama_v.cli.bench import aligned
from mobillama_v.cli.options import DeviceOption, EngineOption, ModelOption

if TYPE_CHECKING:
    from mobillama_v.eval.benchmarks.base import Benchmark, Example
    from mobillama_v.eval.evaluate import Model

QUESTIONS = 20  # on each image
ALONE, RUNNER = "one at a time", "runner"


@dataclass
class Measured:
    """Of one method: seconds a turn, images encoded, and the answers by question id."""

    seconds: list[float] = field(default_factory=list)
    encoded: int = 0
    answers: dict[str, str] = field(default_factory=dict)


def bench_eval(
    model: ModelOption = "nano",
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    images: Annotated[int, typer.Option(min=1, help=f"Drawn pictures, with {QUESTIONS} questions each.")] = 36,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that the runner asks at once.")] = 32,
    output: OutputOption = None,
) -> None:
    """The evaluation's runner against a loop that asks one question at a time and encodes its image each time.

    Both take turns on a set like GQA, so that what else the machine does hurts both. Exit code 1: their answers differ.
    """
    from benchmarks.drawn_gqa import draw_gqa
    from mobillama_v.eval.benchmarks.registry import get
    from mobillama_v.eval.evaluate import Model

    chosen = Model(model, device, engine)
    chosen.plan.limit_threads()
    benchmark = get("gqa")
    with tempfile.TemporaryDirectory() as folder:
        draw_gqa(Path(folder) / "data", images=images, questions=QUESTIONS)
        examples = benchmark.load(Path(folder) / "data")
        measured = measure(benchmark, examples, chosen, Path(folder) / "runs", batch_size=batch_size)
    facts = {
        "bench": "eval",
        "model": model,
        "weights_sha256": chosen.digest,
        "precision": chosen.plan.precision,
        "device": str(chosen.assistant.device),
        **machine(),
        "images": images,
        "batch_size": batch_size,
        **summary(measured),
    }
    finish(facts, table(facts), output)
    if facts["different_answers"]:
        raise typer.Exit(1)


def measure(
    benchmark: Benchmark, examples: Sequence[Example], model: Model, folder: Path, *, batch_size: int
) -> dict[str, Measured]:
    """Answer the examples by both methods, a window of the runner at a time, after a warm-up of each."""
    from mobillama_v.eval.evaluate import Evaluator, run
    from mobillama_v.generate import Sampling

    tokens = benchmark.max_new_tokens
    sampling = Sampling(max_new_tokens=tokens)
    assistant = model.assistant
    first = list(examples[:batch_size])
    assistant.ask(first[0].images, first[0].prompt, sampling)
    run(benchmark, first, folder / "warm-up", model=model, batch_size=batch_size)
    alone = Measured(encoded=len(examples))
    batched = Measured(encoded=len({example.images for example in examples}))
    evaluator = Evaluator(assistant, batch_size=batch_size, max_new_tokens=tokens)
    for number, window in enumerate(evaluator.share(examples)):
        start = time.perf_counter()
        for example in window:
            alone.answers[example.id] = assistant.ask(example.images, example.prompt, sampling).text
        between = time.perf_counter()
        batched.answers |= run(benchmark, window, folder / str(number), model=model, batch_size=batch_size).texts
        batched.seconds.append(time.perf_counter() - between)
        alone.seconds.append(between - start)
    return {ALONE: alone, RUNNER: batched}


def summary(measured: dict[str, Measured]) -> dict[str, Any]:
    """Speeds of both methods, and the questions that they answer with different texts."""
    alone, runner = measured[ALONE], measured[RUNNER]
    return {
        "questions": len(alone.answers),
        "seconds": {name: each.seconds for name, each in measured.items()},
        "questions_per_second": {name: len(alone.answers) / sum(each.seconds) for name, each in measured.items()},
        "images_encoded": {name: each.encoded for name, each in measured.items()},
        "speedup": sum(alone.seconds) / sum(runner.seconds),
        "speedup_by_turn": times_as_fast(runner.seconds, alone.seconds),
        "different_answers": [name for name, text in alone.answers.items() if runner.answers.get(name) != text],
    }


def table(facts: dict[str, Any]) -> str:
    """The measurement as text."""
    rows = [("", "questions/s", "seconds", "images encoded")]
    for name, seconds in facts["seconds"].items():
        speed, encoded = facts["questions_per_second"][name], facts["images_encoded"][name]
        rows.append((name, f"{speed:.1f}", f"{sum(seconds):.1f}", f"{encoded:,}"))
    turns, different = facts["speedup_by_turn"], len(facts["different_answers"])
    return "\n".join(
        [
            *aligned(rows),
            f"{facts['questions']:,} questions: the runner is {facts['speedup']:.1f} times as fast (between "
            f"{turns['least']:.1f} and {turns['most']:.1f} in {len(facts['seconds'][RUNNER])} turns).",
            f"They differ in {different:,} answers." if different else "Both give the same answers.",
        ]
    )
