"""What ``describe`` and ``chat`` share: options of the model and of its answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from mobillama_v.cli.options import (
    DeviceOption,
    EngineOption,
    ModelOption,
    OcrOption,
    UrlsOption,
    VerboseOption,
    load_assistant,
    log_verbosely,
    with_options,
)

if TYPE_CHECKING:
    from mobillama_v.assistant import Assistant
    from mobillama_v.generate import Sampling

_TokensOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
_TemperatureOption = Annotated[
    float, typer.Option(min=0, help="0 always takes the likeliest token; higher varies more.")
]
_TopPOption = Annotated[float, typer.Option(help="Sample among the likeliest tokens of this total probability.")]
_SeedOption = Annotated[int | None, typer.Option(help="Makes sampled answers repeatable.")]
_PenaltyOption = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1, words that the answer has already become less likely.")
]
_NgramOption = Annotated[
    int, typer.Option("--no-repeat-ngram", help="No run of this many tokens comes twice in an answer; 0: it may.")
]


class Answering(NamedTuple):
    """What the options ask for."""

    model: str
    sampling: Sampling
    allow_urls: bool
    target: int | None
    """The side of the pictures that the model takes; ``None`` where words are read, which needs whole pictures."""
    load: Callable[[], Assistant]


def with_answering(longest: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command these options, and their meaning as its parameter ``answering``.

    Args:
        longest: tokens of an answer, unless the option says otherwise.
    """
    signature = inspect.signature(_answering, eval_str=True)
    own = [
        each.replace(default=longest) if each.name == "max_new_tokens" else each
        for each in signature.parameters.values()
    ]
    return lambda command: with_options(command, "answering", own, _answering)


def _answering(
    max_new_tokens: _TokensOption,
    temperature: _TemperatureOption = 0.0,
    top_p: _TopPOption = 1.0,
    seed: _SeedOption = None,
    repetition_penalty: _PenaltyOption = 1.0,
    no_repeat_ngram: _NgramOption = 0,
    model: ModelOption = "nano",
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    ocr: OcrOption = False,
    allow_urls: UrlsOption = False,
    verbose: VerboseOption = False,
) -> Answering:
    from mobillama_v.generate import Sampling
    from mobillama_v.hub import find_model, read_spec

    log_verbosely(verbose)
    folder: Path = find_model(model)
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram=no_repeat_ngram,
    )
    target = None if ocr else read_spec(folder).image.size
    load = partial(load_assistant, folder, device, engine, ocr=ocr, verbose=verbose)
    return Answering(model, sampling, allow_urls, target, load)
