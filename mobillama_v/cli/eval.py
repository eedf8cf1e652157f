"""The commands ``mobillama-v eval``; each imports what it needs when it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillama_v.eval.benchmarks.registry import NAMES, PUBLIC

if TYPE_CHECKING:
    from mobillama_v.eval.benchmarks.base import Benchmark, Score

app = typer.Typer(
    help="Evaluate a model, or anybody's predictions, on GQA, ScienceQA, TextVQA, MME or your own questions.",
    no_args_is_help=True,
    add_completion=False,
)

DataOption = Annotated[
    Path, typer.Option("--data", "-d", help="The benchmark's files; or a folder with a sub-folder for each benchmark.")
]
SplitOption = Annotated[
    str | None,
    typer.Option(help="gqa: testdev_balanced, val_balanced; scienceqa: test, val, train, minitest, minival."),
]
OcrOption = Annotated[
    str | None,
    typer.Option(
        help="textvqa: rosetta; custom: none; or rapidocr to read the words in the pictures (extra ocr); none tells no "
        "OCR tokens."
    ),
]
ConsistencyOption = Annotated[
    bool, typer.Option("--consistency", help="gqa: ask and score all questions of the tier, for consistency.")
]
QuestionsOption = Annotated[
    Path | None, typer.Option(help="custom: the question file; else one of LLaVA's, to take the prompts from.")
]
MetricOption = Annotated[str | None, typer.Option(help="custom: exact, vqa, anls or yesno.")]
PromptOption = Annotated[str | None, typer.Option(help="custom: as-is, or short to ask for a short answer.")]


def make(name: str, **options: Any) -> Benchmark:
    """The benchmark with the options that were given; those that are None or False were not.

    Raises:
        ConfigError: an unknown benchmark, or an option that it does not have.
    """
    from mobillama_v.eval.benchmarks.registry import get

    return get(name, **{option: value for option, value in options.items() if value not in (None, False)})


@app.command("score")
def score(
    benchmark: Annotated[str, typer.Argument(metavar="BENCH", help=f"One of {', '.join(NAMES)}.")],
    predictions: Annotated[
        Path, typer.Option("--predictions", "-p", help="Answers, ours or others'; for mme also a folder.")
    ],
    data: DataOption,
    split: SplitOption = None,
    ocr: OcrOption = None,
    consistency: ConsistencyOption = False,
    questions: QuestionsOption = None,
    metric: MetricOption = None,
    prompt: PromptOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, right answers by question too.")
    ] = False,
) -> None:
    """Score predictions, whoever made them; no model is loaded."""
    from mobillama_v.eval.benchmarks.dataset_files import benchmark_folder
    from mobillama_v.eval.benchmarks.textvqa import TextVQA
    from mobillama_v.eval.ocr import refuse_for_scoring
    from mobillama_v.eval.predictions import match, read_records

    refuse_for_scoring(ocr)
    chosen = make(
        benchmark, split=split, ocr=ocr, consistency=consistency, questions=questions, metric=metric, prompt=prompt
    )
    folder = benchmark_folder(data, chosen.name)
    if isinstance(chosen, TextVQA) and ocr is None:
        chosen = chosen.for_scoring(folder)
    examples = chosen.examples(folder)
    matched = match(chosen, examples, read_records(predictions), of=str(predictions))
    found = chosen.score(matched.examples, matched.predictions)
    settings = matched.settings(chosen)
    if as_json:
        print(json.dumps(as_dict(chosen, found, settings), ensure_ascii=False))
    else:
        print("\n".join(lines(chosen, found, settings)))


@app.command("prepare")
def prepare(
    data: DataOption,
    benchmark: Annotated[
        str | None, typer.Argument(metavar="[BENCH]", help="One benchmark; all public ones by default.")
    ] = None,
    split: SplitOption = None,
    ocr: OcrOption = None,
    consistency: ConsistencyOption = False,
    questions: QuestionsOption = None,
) -> None:
    """Say what to download from where, and check what is there; nothing is downloaded. Exit code 1: not ready."""
    from mobillama_v.eval.prepare import prepare as check

    options = {"split": split, "ocr": ocr, "consistency": consistency, "questions": questions}
    names = [benchmark] if benchmark else list(PUBLIC)
    results = [check(make(name, **(options if benchmark else {})), data) for name in names]
    for result in results:
        print("\n".join(result.lines))
    if not all(result.ready for result in results):
        raise typer.Exit(1)


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
