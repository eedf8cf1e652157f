"""What ``demo`` and ``serve`` share: their options, and how these become a service."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobillama_v.cli.options import load_assistant, with_options
from mobillama_v.demo.limits import Limits, least
from mobillama_v.errors import ConfigError
from mobillama_v.hub import DEFAULT, embedded_models, find_model, read_spec

if TYPE_CHECKING:
    from mobillama_v.assistant import Assistant
    from mobillama_v.demo.service import Service

ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model", "-m", help="A model to serve: a name, a folder or a Hugging Face id. Repeat it for several. [nano]"
    ),
]
HostOption = Annotated[str, typer.Option(help="Address of the server; 0.0.0.0 is every address of this machine.")]
AllowHostOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        help="A name by which clients address this, as behind a reverse proxy. Repeat it for several. "
        "[on loopback: localhost alone; else any name]",
    ),
]
RootOption = Annotated[str, typer.Option(help="Path at which a reverse proxy serves this, such as /vision.")]


def with_limits(command: Callable[..., None]) -> Callable[..., None]:
    """A command with an option for each field of :class:`Limits` for it, which ``command`` takes as its ``limits``."""
    default: Limits = inspect.signature(command).parameters["limits"].default
    parameters = []
    for field in fields(Limits):
        if field.metadata["only"] not in ("", command.__name__):
            continue
        value = getattr(default, field.name)
        option = typer.Option(min=least(field.name), help=field.metadata["help"])
        kind = Annotated[type(value), option]  # type: ignore[valid-type]
        parameters.append(inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind))
    return with_options(command, "limits", parameters, Limits)


def model_loaders(
    names: list[str] | None, device: str, engine: str, *, ocr: bool = False
) -> dict[str, Callable[[], Assistant]]:
    """Loaders of the models to serve, by the names that users see. A folder is called by its last part.

    Raises:
        ModelNotFoundError: one is not there.
        CheckpointError, ConfigError: one is no model folder.
        ConfigError: two have one name.
    """
    folders: dict[str, Path] = {}
    for name in names or [DEFAULT]:
        folder = find_model(name)
        read_spec(folder)
        shown = name if name in embedded_models() or not os.path.isdir(os.path.expanduser(name)) else folder.name
        shown = shown or folder.resolve().name
        if folders.setdefault(shown, folder) != folder:
            raise ConfigError(f"two models are called {shown!r}; rename the folder of one.")
    return {shown: partial(load_assistant, folder, device, engine, ocr=ocr) for shown, folder in folders.items()}


def open_service(models: dict[str, Callable[[], Assistant]], limits: Limits) -> Service:
    """A service whose default model is loaded, so that an error in it is reported before anybody asks.

    Raises:
        MobiLlamaVError: as :func:`mobillama_v.assistant.load` does.
    """
    from mobillama_v.demo.service import Service

    service = Service(models, limits)
    service.assistant(service.models[0])
    return service
