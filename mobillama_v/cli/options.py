"""What several commands share: their options, and the steps from options to a loaded assistant.

Imported before torch is, so that ``--help``, mistyped options and unreadable pictures are answered at once.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillama_v.errors import ImageError
from mobillama_v.markup import printable as printable

if TYPE_CHECKING:
    from PIL.Image import Image

    from mobillama_v.assistant import Assistant

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="An embedded model, a model folder, or a Hugging Face id (owner/name).")
]
DeviceOption = Annotated[
    str, typer.Option(help="auto (CUDA, else MPS, else CPU; nano: CPU), or a torch device such as cpu or cuda:1.")
]
EngineOption = Annotated[
    str,
    typer.Option(help="native (the CPU engine), numpy, torch, or auto: native on a CPU for packed and small models."),
]
UrlsOption = Annotated[
    bool, typer.Option("--allow-urls", help="Fetch http(s) addresses; only public hosts, up to 32 MB and 20 s each.")
]
OcrOption = Annotated[
    bool, typer.Option("--ocr", help="Read the words in pictures and give them to the model (extra ocr).")
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Say on standard error which backends answer, and what was changed to read a picture."
    ),
]

MAX_STDIN = 256 * 1024 * 1024


def with_options(
    command: Callable[..., None], name: str, parameters: Iterable[inspect.Parameter], make: Callable[..., Any]
) -> Callable[..., None]:
    """A command with more options, of which its own parameter is made.

    Args:
        command: it takes the parameter as a keyword.
        name: of the parameter.
        parameters: the options, in the order of the help text.
        make: from the options' values to the parameter's.
    """
    signature, more = inspect.signature(command, eval_str=True), list(parameters)
    own = [each for each in signature.parameters.values() if each.name != name]
    every = [*own, *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in more)]

    def run(**values: Any) -> None:
        made = make(**{each.name: values.pop(each.name) for each in more})
        command(**values, **{name: made})

    run.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in every}
    run.__doc__ = command.__doc__
    return run


def log_verbosely(verbose: bool) -> None:
    """Say on stderr, where ``verbose``, what the package logs: how a picture was shown, what was normalized."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    logger = logging.getLogger("mobillama_v")
    logger.handlers = [handler] if verbose else []
    logger.setLevel(logging.INFO if verbose else logging.NOTSET)


def load_assistant(folder: Path, device: str, engine: str, *, ocr: bool = False, verbose: bool = False) -> Assistant:
    """Load the model in ``folder`` for a command; torch is imported here, for models that need it.

    Args:
        folder: of the model.
        device: as for :func:`mobillama_v.load`.
        engine: as for :func:`mobillama_v.load`.
        ocr: as for :func:`mobillama_v.load`.
        verbose: say on stderr which backends answer, and why.

    Raises:
        MobiLlamaVError: as :func:`mobillama_v.load` does.
    """
    from mobillama_v.backends.select import select_backend
    from mobillama_v.hub import read_spec
    from mobillama_v.loading import load_plan

    config = read_spec(folder)
    plan = select_backend(config, folder, device=device, engine=engine)
    plan.limit_threads()
    with _waiting(f"loading {folder.name}") if "torch" in (plan.decoder, plan.vision) else nullcontext():
        assistant = load_plan(str(folder.absolute()), folder, config, plan, ocr=ocr)
    if verbose:
        print(assistant.backend, file=sys.stderr)
    return assistant


@contextmanager
def _waiting(what: str) -> Iterator[None]:
    """Show on a terminal what is being waited for."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def expand(sources: list[str]) -> Iterator[str | ImageError]:
    """Each source, with folders replaced by the images in them; for a folder that has none, the error."""
    from mobillama_v.images import find_images

    for source in sources:
        if source == "-" or not os.path.isdir(source):
            yield source
            continue
        try:
            yield from (str(path) for path in find_images(Path(source)))
        except ImageError as error:
            yield error


def read_image(source: str, *, allow_urls: bool, target: int | None = None) -> Image:
    """The image at a path, at ``-`` (stdin), or at a web address where that is allowed.

    Raises:
        ImageError: it cannot be read.
    """
    from mobillama_v.images import load_image

    if source == "-":
        data = sys.stdin.buffer.read(MAX_STDIN + 1)
        if len(data) > MAX_STDIN:
            raise ImageError(f"standard input holds more than {MAX_STDIN >> 20} MB; give a smaller picture.")
        return load_image(data, name="standard input", target=target)
    if "://" in source:
        from mobillama_v.images.fetch import fetch, is_url

        if not is_url(source):
            return load_image(source, target=target)
        if not allow_urls:
            raise ImageError(f"{source!r} is a web address; add --allow-urls to fetch it.")
        return load_image(fetch(source), name=repr(source), target=target)
    return load_image(source, target=target)
