"""The commands ``mobillama-v data``; each imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mobillama_v.chat_templates import TEMPLATES
from mobillama_v.errors import DataError
from mobillama_v.markup import printable
from mobillama_v.prompt import SHORT_ANSWER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mobillama_v.train.data.check import Report
    from mobillama_v.train.data.encoding import Encoding
    from mobillama_v.train.data.preprocess import Problem
    from mobillama_v.train.data.preview import View

app = typer.Typer(
    help="Check records before training, look at them as the model will, and make them from other formats.",
    no_args_is_help=True,
    add_completion=False,
)

FilesArgument = Annotated[list[Path], typer.Argument(metavar="FILE...", help="Records: JSON lists or JSON lines.")]
RootOption = Annotated[Path, typer.Option("--image-root", help="Folder that image paths are relative to.")]
TemplateOption = Annotated[
    str | None, typer.Option(help=f"Conversation template, {' or '.join(TEMPLATES)}; by default the model's.")
]
LengthOption = Annotated[
    int | None, typer.Option("--max-length", min=2, help="Tokens of a sample; by default the model's context.")
]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Processes; by default all cores.")]

_STYLES = {False: ("", "underline"), True: ("green", "green underline")}  # of a token, learned or not; they alternate
_SHOWN = 3  # examples of each kind of problem in the terminal


@app.command("check")
def check(
    files: FilesArgument,
    image_root: RootOption = Path("."),
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Measure texts for this model: records too long for an answer.")
    ] = None,
    template: TemplateOption = None,
    max_length: LengthOption = None,
    images: Annotated[
        Literal["decode", "exists", "skip"],
        typer.Option(help="decode every image, look whether its file exists, or leave images alone."),
    ] = "decode",
    report: Annotated[Path | None, typer.Option(help="Write everything that was found as JSON.")] = None,
    clean: Annotated[
        Path | None, typer.Option(help="Write the good records to one file: a list (.json) or JSON lines.")
    ] = None,
    workers: WorkersOption = None,
) -> None:
    """Find the records that a training could not learn from. Exit code 1: there are some."""
    from mobillama_v.progress import Progress
    from mobillama_v.train.data.check import check as run
    from mobillama_v.train.data.check import write_clean

    encoding = None if model is None else encoding_of(model, template, max_length)
    with Progress() as bar:
        found = run(files, image_root=image_root, encoding=encoding, images=images, workers=workers, progress=bar)
    _print_report(found)
    if report is not None:
        found.write(report)
        print(f"report: {report}")
    if clean is not None:
        print(f"{write_clean(found, clean):,} good records: {clean}")
    if found.problems:
        raise typer.Exit(1)


@app.command("preview")
def preview(
    files: FilesArgument,
    image_root: RootOption = Path("."),
    model: Annotated[
        str, typer.Option("--model", "-m", help="Whose tokenizer, template and image transform.")
    ] = "nano",
    template: TemplateOption = None,
    max_length: LengthOption = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="How many records.")] = 3,
    record: Annotated[
        list[str] | None, typer.Option(help="Show records of this id instead; may be given again.")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write one page with the images, instead of the terminal.")] = None,
) -> None:
    """Show records as the model will see them, with the tokens that are learned in color."""
    from mobillama_v.hub import find_model, read_spec
    from mobillama_v.train.data.check import replacing
    from mobillama_v.train.data.preview import page, views

    found = list(views(files, encoding_of(model, template, max_length), count=count, records=record or ()))
    if not found:
        named = f" with the id {', '.join(record)}" if record else ""
        raise DataError(f"{', '.join(map(str, files))}: there is no record{named}; check the file and the id.")
    if html is None:
        for view in found:
            _print_view(view)
        return
    transform = read_spec(find_model(model)).image
    with replacing(html) as file:
        file.write(page(found, image_root=image_root, transform=transform, title=f"What {model} learns from"))
    print(f"{len(found)} records: {html}")


def _print_view(view: View) -> None:
    """A record in the terminal; where there are no colors, what is learned stands in brackets."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"{printable(view.record)} ({view.place}): {printable(view.summary())}")
    text, open_bracket = Text(), False
    for number, token in enumerate(view.tokens):
        if not console.is_terminal and token.learned != open_bracket:
            text.append("⟦" if token.learned else "⟧")
            open_bracket = token.learned
        if token.image is not None:
            text.append(f"[{token.text}]", "magenta")
        else:
            text.append(printable(token.text), _STYLES[token.learned][number % 2])
    if open_bracket:
        text.append("⟧")
    for path in view.images:
        console.print(f"  image {printable(path)}")
    console.print(text)
    console.print()


@app.command("convert")
def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A table (CSV, TSV, JSON, JSON lines) of questions or conversations, VQAv2's questions, COCO's "
            "captions, a folder of images with .txt files beside them or with a folder for each class, or a Hugging "
            "Face dataset on disk (a folder, or one .parquet file)."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="File of records: a list (.json) or JSON lines (.jsonl).")],
    annotations: Annotated[Path | None, typer.Option(help="VQAv2's annotations; SOURCE is then its questions.")] = None,
    image: Annotated[str, typer.Option(help="Column of the image's path.")] = "image",
    question: Annotated[str, typer.Option(help="Column of the question.")] = "question",
    answer: Annotated[str, typer.Option(help="Column of the answer.")] = "answer",
    pick: Annotated[
        Literal["first", "most"] | None,
        typer.Option(help="Of a list of answers take the first, or the one given most often."),
    ] = None,
    image_name: Annotated[
        str | None,
        typer.Option(help="VQAv2: file of an image, such as '{image_id}.jpg'; by default COCO's of 2014."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Hugging Face: folder to write the images to; by default OUT's name + -images.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Hugging Face: which split.")] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="The question where there is none; by default 'Describe the image.' or 'What is this?'."),
    ] = None,
    short: Annotated[bool, typer.Option("--short", help="Append LLaVA's line that asks for a short answer.")] = False,
    turns: Annotated[int, typer.Option(min=1, help="Neighboring questions about one image in a record.")] = 1,
) -> None:
    """Make records from another format; look at them with preview and check. Exit code 1: rows were left out."""
    import itertools
    import json

    from mobillama_v.train.data import convert as formats
    from mobillama_v.train.data.check import write_records

    folder = images or out.with_name(f"{out.stem}-images")
    options = formats.Options(image, question, answer, pick, prompt, split, folder)
    if annotations is not None:
        items = formats.vqav2(source, annotations, image_name=image_name)
    else:
        items = formats.read(source, options)
    bad: list[Problem] = []
    records = formats.records_of(items, suffix=SHORT_ANSWER if short else "", turns=turns, left_out=bad.append)
    first = next(records, None)
    if first is None:
        more = f"; none of its {len(bad):,} rows can be used" if len(bad) > 1 else ""
        raise DataError(f"{bad[0].reason.rstrip('.')}{more}." if bad else f"{source} holds nothing to convert.")
    plain = 0

    def texts() -> Iterator[str]:
        nonlocal plain
        for record in itertools.chain([first], records):
            plain += "image" not in record
            yield json.dumps(record, ensure_ascii=False)

    count = write_records(out, texts())
    print(f"{count:,} records: {out}" + (f"; {plain:,} of them are text only" if plain else ""))
    if bad:
        print(f"{len(bad):,} rows are left out")
        _print_problems(bad)
        raise typer.Exit(1)


def encoding_of(model: str, template: str | None, max_length: int | None) -> Encoding:
    """How records become tokens for a model, which is not loaded.

    Raises:
        MobiLlamaVError: there is no such model, or it has no tokenizer.
        RecipeError: a length that is more than the model's context.
    """
    from mobillama_v.hub import find_model, read_spec
    from mobillama_v.train.data.encoding import Encoding

    folder = find_model(model)
    return Encoding.of(folder, read_spec(folder), template=template, max_length=max_length, key="--max-length")


def _print_report(found: Report) -> None:
    bad = len(found.problems)
    print(f"{found.records:,} records, {found.images:,} images in good ones; {bad:,} records are bad")
    if found.tokens is not None:
        print(
            f"{found.tokens:,} tokens, {found.supervised:,} of them supervised; {found.shortened:,} records lose their "
            "end to fit"
        )
    for note, count in found.notes.items():
        print(f"{count:,} records: {note}")
    if bad:
        _print_problems(found.problems)


def _print_problems(problems: Sequence[Problem]) -> None:
    """How many problems of each kind, most first, with examples."""
    from collections import Counter

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("problem", "records", "for example", box=box.SIMPLE)
    for kind, count in Counter(problem.kind for problem in problems).most_common():
        shown = [problem.reason for problem in problems if problem.kind == kind][:_SHOWN]
        table.add_row(kind, f"{count:,}", printable("\n".join(shown)))
    Console(highlight=False, markup=False).print(table)
