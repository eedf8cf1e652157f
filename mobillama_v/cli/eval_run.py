"""``mobillama-v eval run`` and ``mobillama-v eval compare``: what runs a model, and what puts runs side by side.

They join the commands of :mod:`mobillama_v.cli.eval`, whose options they share: ``app`` is the whole of it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillama_v.cli.eval import (
    ConsistencyOption,
    DataOption,
    MetricOption,
    OcrOption,
    PromptOption,
    QuestionsOption,
    SplitOption,
    app,
    lines,
    make,
)
from mobillama_v.cli.options import DeviceOption, EngineOption, ModelOption
from mobillama_v.errors import ConfigError, DataError, MobiLlamaVError
from mobillama_v.eval.benchmarks.registry import NAMES, PUBLIC

if TYPE_CHECKING:
    from mobillama_v.eval.benchmarks.base import Benchmark, Example
    from mobillama_v.eval.compare import Column
    from mobillama_v.eval.distributed import World
    from mobillama_v.eval.evaluate import Model
    from mobillama_v.eval.results import Result

_FOR_ONE = {"ocr": "textvqa", "consistency": "gqa"}  # options that mean one thing in `all`


@app.command("run")
def run(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCH|all", help=f"One of {', '.join(NAMES)}; or all: {', '.join(PUBLIC)}.")
    ],
    data: DataOption,
    model: ModelOption = "nano",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Where answers, scores and the report go; a run that was killed there goes on."
        ),
    ] = None,
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions that are asked at once.")] = 32,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer, in tokens; by default as the benchmark needs.")
    ] = None,
    split: SplitOption = None,
    ocr: OcrOption = None,
    consistency: ConsistencyOption = False,
    questions: QuestionsOption = None,
    metric: MetricOption = None,
    prompt: PromptOption = None,
) -> None:
    """Ask a model every question of a benchmark, score the answers, and make a report.

    What is answered is kept: after a kill the same command goes on. Start it with torchrun for several processes or
    GPUs: torchrun --nproc_per_node 2 -m mobillama_v eval run …

    Exit code 1: of `all`, some benchmarks have no folder below --data; the others were run.
    """
    from mobillama_v.eval.distributed import World
    from mobillama_v.eval.evaluate import Model
    from mobillama_v.eval.ocr import RAPIDOCR, library
    from mobillama_v.eval.report import writer

    options = {
        "split": split,
        "ocr": ocr,
        "consistency": consistency,
        "questions": questions,
        "metric": metric,
        "prompt": prompt,
    }
    if ocr == RAPIDOCR:
        library()  # before anything is read or asked
    chosen, absent = _everything(data, options) if benchmark == "all" else ([_one(benchmark, data, options)], [])
    target = output or Path("runs") / "eval" / (Path(model).name or "model")
    world = World.join()
    try:
        asked = Model(model, world.device(device), engine)
        asked.plan.limit_threads()
        _answer(chosen, target, asked, world, batch_size=batch_size, max_new_tokens=max_new_tokens)
        if world.rank == 0:
            page = writer.write(target)
            print(f"report: {page} (and {page.with_suffix('.md').name})")
    finally:
        world.leave()
    if absent:
        raise typer.Exit(1)


def _one(name: str, data: Path, options: dict[str, Any]) -> tuple[Benchmark, list[Example]]:
    from mobillama_v.eval.benchmarks.dataset_files import benchmark_folder

    benchmark = make(name, **options)
    return benchmark, benchmark.examples(benchmark_folder(data, benchmark.name))


def _everything(data: Path, options: dict[str, Any]) -> tuple[list[tuple[Benchmark, list[Example]]], list[str]]:
    """The public benchmarks below ``data``, read before anything is asked, and the names of those not there."""
    from mobillama_v.eval.benchmarks.dataset_files import benchmark_folder

    for option, value in options.items():
        if value not in (None, False) and option not in _FOR_ONE:
            raise ConfigError(f"--{option} means something else in each benchmark; run them one by one to give it.")
    absent = [name for name in PUBLIC if benchmark_folder(data, name) == data]
    if len(absent) == len(PUBLIC):
        raise DataError(
            f"{str(data)!r} has no folder {', '.join(PUBLIC)}; `all` needs one for each benchmark (`mobillama-v eval "
            "prepare` says what belongs in it)."
        )
    for name in absent:
        print(f"{name} is left out: there is no folder {str(data / name)!r}.", file=sys.stderr)
    mine = {
        name: {option: value for option, value in options.items() if _FOR_ONE.get(option) == name} for name in PUBLIC
    }
    return [_one(name, data, mine[name]) for name in PUBLIC if name not in absent], absent


def _answer(
    chosen: list[tuple[Benchmark, list[Example]]],
    output: Path,
    model: Model,
    world: World,
    *,
    batch_size: int,
    max_new_tokens: int | None,
) -> None:
    """Run and judge each benchmark; of several, one that fails does not keep the others from being run."""
    from mobillama_v.eval.evaluate import run as ask
    from mobillama_v.eval.results import judge, write_result

    failures: list[MobiLlamaVError] = []
    for benchmark, examples in chosen:
        try:
            done = ask(
                benchmark,
                examples,
                output / benchmark.name,
                model=model,
                batch_size=batch_size,
                max_new_tokens=max_new_tokens,
                world=world,
            )
        except MobiLlamaVError as error:
            if world.size > 1:  # the other processes wait for what this one would not do
                raise
            failures.append(error)
            continue
        if world.rank == 0:
            result = judge(benchmark, done.examples, done.answers, done.about)
            write_result(result, output / benchmark.name)
            _print(benchmark, result)
    for failure in failures[:-1]:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        raise failures[-1]


def _print(benchmark: Benchmark, result: Result) -> None:
    from mobillama_v.eval.compare import figure
    from mobillama_v.eval.evaluate import TOO_LONG
    from mobillama_v.eval.results import PAPER

    head, *rest = lines(benchmark, result.score)
    print(head)
    print(f"  model: {result.about['model']}, {result.about['precision']}")
    if result.interval:
        low, high = (figure(value, result.digits) for value in result.interval)
        print(f"  95 % interval: {low} to {high} (bootstrap over images)")
    if benchmark.name in PAPER:
        print(f"  paper, MobiLlama-V 0.8B: {figure(PAPER[benchmark.name], 1)}")
    too_long = sum(each.finish_reason == TOO_LONG for each in result.questions)
    if too_long:
        print(f"  prompts that are longer than the model's context, counted as wrong: {too_long:,}")
    print("\n".join(rest), flush=True)


@app.command("compare")
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of `eval run`; each is compared with the first."),
    ],
    show: Annotated[int, typer.Option(min=0, help="How many disagreements to show of each pair.")] = 5,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the comparison as Markdown.")] = None,
    disagreements: Annotated[
        Path | None, typer.Option(help="Write every question on which two runs disagree, one JSON object a line.")
    ] = None,
) -> None:
    """Put runs side by side with the paper's scores, and show where two of them disagree."""
    from mobillama_v.eval import compare as side_by_side
    from mobillama_v.eval.store import write_output

    columns = side_by_side.read_columns(runs)
    if output:
        write_output(output, side_by_side.markdown(columns, show))
    if disagreements:
        write_output(disagreements, side_by_side.disagreement_lines(side_by_side.pairs(columns)))
    _show(columns, show)


def _show(columns: list[Column], shown: int) -> None:
    """The comparison on a terminal, as wide as it is."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mobillama_v.eval import compare as side_by_side

    console = Console(highlight=False)
    header, *body = side_by_side.table(columns)
    table = Table(caption="In brackets: 95 % bootstrap intervals over images, seed 0.", caption_justify="left")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left")
    for row in body:
        table.add_row(*map(Text, row))
    console.print(table)
    for pair in side_by_side.pairs(columns):
        console.print(Text(f"\n{pair.benchmark}: {side_by_side.sentence(pair)}"))
        for found in pair.disagreements[:shown]:
            console.print(
                Text(f"  {' '.join(side_by_side.question(found.first).split())}"), no_wrap=True, overflow="ellipsis"
            )
            expected = " / ".join(dict.fromkeys(found.first.answers))
            mine, theirs = (side_by_side.given(row) for row in (found.first, found.second))
            console.print(Text(f"    expected {expected}; {pair.first}: {mine}; {pair.second}: {theirs}"))
