"""The commands ``mobillama-v eval``; each imports what it needs when it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillama_v.cli.benchmark_options import DataOption, with_benchmark_options
from mobillama_v.cli.options import DeviceOption, EngineOption, ModelOption
from mobillama_v.errors import ConfigError, DataError, MobiLlamaVError
from mobillama_v.eval.benchmarks import registry

if TYPE_CHECKING:
    from mobillama_v.eval.benchmarks.base import Benchmark, Example, Score
    from mobillama_v.eval.compare import Column
    from mobillama_v.eval.evaluate import Model
    from mobillama_v.eval.results import Result

app = typer.Typer(
    help="Evaluate a model, or anybody's predictions, on GQA, ScienceQA, TextVQA, MME or your own questions.",
    no_args_is_help=True,
    add_completion=False,
)

_NAMES = ", ".join(registry.classes())


def make(name: str, **options: Any) -> Benchmark:
    """The benchmark with the options that were given; those that are None or False were not.

    Raises:
        ConfigError: an unknown benchmark, or an option that it does not have.
    """
    return registry.get(name, **{option: value for option, value in options.items() if value not in (None, False)})


@app.command("score")
@with_benchmark_options()
def score(
    benchmark: Annotated[str, typer.Argument(metavar="BENCH", help=f"One of {_NAMES}.")],
    predictions: Annotated[
        Path, typer.Option("--predictions", "-p", help="Answers, ours or others'; for mme also a folder.")
    ],
    data: DataOption,
    options: dict[str, Any],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, right answers by question too.")
    ] = False,
) -> None:
    """Score predictions, whoever made them; no model is loaded."""
    from mobillama_v.eval.benchmarks.dataset_files import benchmark_folder
    from mobillama_v.eval.predictions import match
    from mobillama_v.ocr import RAPIDOCR

    if options["ocr"] == RAPIDOCR:
        raise ConfigError(f"--ocr {RAPIDOCR} reads the pictures of `eval run`; scoring opens none, so leave it out.")
    chosen = make(benchmark, **options)
    folder = benchmark_folder(data, chosen.name)
    if options["ocr"] is None:
        chosen = chosen.for_scoring(folder)
    examples = chosen.load(folder)
    matched = match(chosen, examples, chosen.read_predictions(predictions), of=str(predictions))
    found = chosen.score(matched.examples, matched.predictions)
    settings = matched.settings(chosen)
    if as_json:
        print(json.dumps(as_dict(chosen, found, settings), ensure_ascii=False))
    else:
        print("\n".join(lines(chosen, found, settings)))


@app.command("prepare")
@with_benchmark_options("split", "ocr", "consistency", "questions")
def prepare(
    data: DataOption,
    options: dict[str, Any],
    benchmark: Annotated[
        str | None, typer.Argument(metavar="[BENCH]", help="One benchmark; all public ones by default.")
    ] = None,
) -> None:
    """Say what to download from where, and check what is there; nothing is downloaded. Exit code 1: not ready."""
    from mobillama_v.eval.prepare import prepare as check

    names = [benchmark] if benchmark else registry.public()
    results = [check(make(name, **(options if benchmark else {})), data) for name in names]
    for result in results:
        print("\n".join(result.lines))
    if not all(result.ready for result in results):
        raise typer.Exit(1)


@app.command("run")
@with_benchmark_options()
def run(
    benchmark: Annotated[
        str, typer.Argument(metavar="BENCH|all", help=f"One of {_NAMES}; or all: {', '.join(registry.public())}.")
    ],
    data: DataOption,
    options: dict[str, Any],
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
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only the first so many questions, for a try.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Count questions whose picture cannot be read as wrong, and go on.")
    ] = False,
) -> None:
    """Ask a model every question of a benchmark, score the answers, and make a report.

    What is answered is kept: after a kill the same command goes on. Start it with torchrun for several processes or
    GPUs: torchrun --nproc_per_node 2 -m mobillama_v eval run …

    Exit code 1: of `all`, some benchmarks have no folder below --data; the others were run. Exit code 2: a benchmark
    failed; the report of the others is written.
    """
    from mobillama_v import distributed
    from mobillama_v.eval.evaluate import Model
    from mobillama_v.eval.report import writer
    from mobillama_v.ocr import RAPIDOCR, library

    options["limit"] = limit
    if options["ocr"] == RAPIDOCR:
        library()  # before anything is read or asked
    chosen, absent = _everything(data, options) if benchmark == "all" else ([_one(benchmark, data, options)], [])
    target = output or Path("runs") / "eval" / (Path(model).name or "model")
    distributed.join()
    try:
        asked = Model(model, distributed.local_device(device), engine)
        asked.plan.limit_threads()
        how = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "allow_missing": allow_missing}
        failures = _answer(chosen, target, asked, **how)
        if distributed.rank() == 0 and any(target.glob("*/score.json")):
            page = writer.write(target)
            print(f"report: {page} (and {page.with_suffix('.md').name})")
        for failure in failures[:-1]:
            print(f"error: {failure}", file=sys.stderr)
        if failures:
            raise failures[-1]
    finally:
        distributed.cleanup()
    if absent:
        raise typer.Exit(1)


def _one(name: str, data: Path, options: dict[str, Any]) -> tuple[Benchmark, list[Example]]:
    from mobillama_v.eval.benchmarks.dataset_files import benchmark_folder

    benchmark = make(name, **options)
    return benchmark, benchmark.load(benchmark_folder(data, benchmark.name))


def _everything(data: Path, options: dict[str, Any]) -> tuple[list[tuple[Benchmark, list[Example]]], list[str]]:
    """The public benchmarks below ``data``, read before anything is asked, and the names of those not there."""
    from mobillama_v.eval.benchmarks.dataset_files import benchmark_folder

    names = registry.public()
    mine = {name: (registry.find(name).options_in_all | {"limit"}).intersection(options) for name in names}
    for option, value in options.items():
        if value not in (None, False) and not any(option in taken for taken in mine.values()):
            raise ConfigError(f"--{option} means something else in each benchmark; run them one by one to give it.")
    absent = [name for name in names if benchmark_folder(data, name) == data]
    if len(absent) == len(names):
        raise DataError(
            f"{str(data)!r} has no folder {', '.join(names)}; `all` needs one for each benchmark (`mobillama-v eval "
            "prepare` says what belongs in it)."
        )
    for name in absent:
        print(f"{name} is left out: there is no folder {str(data / name)!r}.", file=sys.stderr)
    present = [name for name in names if name not in absent]
    return [_one(name, data, {option: options[option] for option in mine[name]}) for name in present], absent


def _answer(
    chosen: list[tuple[Benchmark, list[Example]]],
    output: Path,
    model: Model,
    **how: Any,
) -> list[MobiLlamaVError]:
    """Run and judge each benchmark; of several, one that fails does not keep the others from being run."""
    from mobillama_v import distributed
    from mobillama_v.eval.evaluate import run as ask
    from mobillama_v.eval.results import judge, write_result

    failures: list[MobiLlamaVError] = []
    for benchmark, examples in chosen:
        try:
            done = ask(benchmark, examples, output / benchmark.name, model=model, **how)
        except MobiLlamaVError as error:
            failures.append(error)
            if distributed.world_size() > 1:  # the other processes wait for what this one would not do
                break
            continue
        if distributed.rank() == 0:
            result = judge(benchmark, done.examples, done.answers, done.about)
            write_result(result, output / benchmark.name)
            _print(benchmark, result)
    return failures


def _print(benchmark: Benchmark, result: Result) -> None:
    from mobillama_v.eval.evaluate import TOO_LONG

    head, *rest = lines(benchmark, result.score)
    print(head)
    print(f"  model: {result.about['model']}, {result.about['precision']}")
    if result.interval:
        low, high = map(result.figure, result.interval)
        print(f"  95 % interval: {low} to {high} (Wilson, variance over images)")
    if benchmark.paper_score is not None:
        print(f"  paper, MobiLlama-V 0.8B: {benchmark.paper_score:,.1f}")
    too_long = sum(each.finish_reason == TOO_LONG for each in result.questions)
    if too_long:
        print(f"  prompts that are longer than the model's context, counted as wrong: {too_long:,}")
    print("\n".join(rest), flush=True)


def as_dict(benchmark: Benchmark, score: Score, settings: dict[str, str]) -> dict[str, Any]:
    """A score with what must be known to compare it."""
    return {
        "benchmark": benchmark.name,
        "settings": settings,
        "headline": {"name": score.headline_name, "value": score.headline},
        "metrics": score.metrics,
        "categories": score.categories,
        "questions": len(score.correct),
        "official_questions": benchmark.official_count,
        "missing": list(score.missing),
        "correct": score.correct,
    }


def lines(benchmark: Benchmark, score: Score, settings: dict[str, str] | None = None) -> list[str]:
    """A score as text: the headline, what was asked (the benchmark's settings, or others), how much, and its parts."""
    out = [f"{benchmark.title}: {score.headline:.2f} ({score.headline_name})"]
    for name, value in (settings or benchmark.settings()).items():
        shown = value.replace("\n", "\\n")
        out.append(f"  {name}: {shown}")
    count, whole = len(score.correct), benchmark.official_count
    if whole and count != whole:
        out.append(f"  questions: {count:,} of the owners' {whole:,}; not comparable with published scores")
    else:
        out.append(f"  questions: {count:,}")
    if score.missing:
        first = ", ".join(score.missing[:3])
        out.append(f"  missing answers, counted as wrong: {len(score.missing):,} (first: {first})")
    out += [f"  {name}: {value:.2f}" for name, value in score.metrics.items()]
    for group, values in score.categories.items():
        out.append(f"  by {group}:")
        out += [f"    {name}: {value:.2f}" for name, value in values.items()]
    return out


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
    header, *body = side_by_side.comparison_rows(columns)
    table = Table(caption=side_by_side.caption(columns), caption_justify="left")
    for i, name in enumerate(header):
        table.add_column(Text(name), justify="right" if i else "left")
    for row in body:
        table.add_row(*map(Text, row))
    console.print(table)
    for pair in side_by_side.pairs(columns):
        console.print(Text(f"\n{pair.benchmark}: {side_by_side.sentence(pair)}"))
        for found in pair.disagreements[:shown]:
            console.print(Text(f"  {' '.join(found.question.split())}"), no_wrap=True, overflow="ellipsis")
            expected = " / ".join(dict.fromkeys(found.first.answers))
            mine, theirs = (side_by_side.marked_answer(row) for row in (found.first, found.second))
            console.print(Text(f"    expected {expected}; {pair.first}: {mine}; {pair.second}: {theirs}"))
