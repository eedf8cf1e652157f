"""``mobillama-v describe``: pictures to text, one after another."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from mobillama_v.cli.answering import Answering, with_answering
from mobillama_v.cli.options import expand, printable, read_image
from mobillama_v.errors import ImageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from mobillama_v.assistant import Assistant
    from mobillama_v.generate import Sampling
    from mobillama_v.reply import Reply


class Picture(NamedTuple):
    """A picture that could be read, where it came from, and the seconds that took."""

    source: str
    image: Image
    seconds: float


@with_answering(longest=128)
def describe(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Files, folders, or - for standard input.", show_default=False)
    ],
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What to ask about each picture.")] = (
        "Describe the image."
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    *,
    answering: Answering,
) -> None:
    """Describe pictures, or answer one question about each.

    A picture that cannot be read is reported and the others are described; the exit code is then 1, and 2 if there was
    none to describe.
    """
    sources = list(expand(images))
    several = len(sources) > 1
    failures: list[ImageError] = []
    with _progress(len(sources)) as advance:
        pictures = _readable(sources, answering, failures, advance)
        first = next(pictures, None)
        if first is None:  # before torch is imported
            raise typer.Exit(2)
        assistant, sampling = answering.load(), answering.sampling
        live = sys.stdout.isatty() and not as_json
        for picture in _chain(first, pictures):
            if as_json:
                reply = assistant.ask([picture.image], prompt, sampling)
                print(json.dumps(_record(picture, reply, answering.model)), flush=True)
            else:
                _print(assistant, picture, prompt, sampling, several=several, live=live)
    if failures:
        raise typer.Exit(1)


def _chain(first: Picture, rest: Iterator[Picture]) -> Iterator[Picture]:
    yield first
    yield from rest


def _readable(
    sources: list[str | ImageError], options: Answering, failures: list[ImageError], advance: Callable[[], None]
) -> Iterator[Picture]:
    """Read pictures one at a time; those that cannot be read are reported and noted in ``failures``."""
    for source in sources:
        start = time.perf_counter()
        try:
            if isinstance(source, ImageError):
                raise source
            image = read_image(source, allow_urls=options.allow_urls, target=options.target)
            yield Picture(source, image, time.perf_counter() - start)
        except ImageError as error:
            failures.append(error)
            print(f"error: {printable(str(error))}", file=sys.stderr)
        advance()


def _print(
    assistant: Assistant, picture: Picture, prompt: str, sampling: Sampling, *, several: bool, live: bool
) -> None:
    """Print one text, after the picture's name where there are several; ``live`` is as the words come."""
    answer = assistant.stream([picture.image], prompt, sampling)
    name = f"{printable(picture.source)}: " if several else ""
    if live:
        print(name, end="", flush=True)
    for piece in answer:
        if live:
            print(printable(piece), end="", flush=True)
    print("" if live else name + printable(answer.reply.text), flush=True)


def _record(picture: Picture, reply: Reply, model: str) -> dict[str, object]:
    timings = {"read": picture.seconds, **dataclasses.asdict(reply.timings)}
    return {
        "image": picture.source,
        "text": reply.text,
        "finish_reason": reply.finish_reason,
        "timings": {name: round(seconds, 4) for name, seconds in timings.items()},
        "tokens": {"prompt": reply.prompt_tokens, "image": reply.image_tokens, "new": reply.new_tokens},
        "model": model,
    }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr, where that is a terminal and the texts go elsewhere: on a terminal they show the progress."""
    if total < 2 or not sys.stderr.isatty() or sys.stdout.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    # stdout is a file or a pipe and must stay one: rich would send it to the terminal.
    columns = (TextColumn("describing pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, redirect_stdout=False) as bar:
        task = bar.add_task("", total=total)
        yield lambda: bar.advance(task)
