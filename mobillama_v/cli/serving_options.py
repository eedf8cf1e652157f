"""What the demo's and the server's command lines share: their options, and the way from them to a service."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mobillama_v.cli.options import load_assistant
from mobillama_v.demo.limits import Limits
from mobillama_v.errors import ConfigError
from mobillama_v.hub import DEFAULT, embedded_models, find_model, read_spec

if TYPE_CHECKING:
    from mobillama_v.assistant import Assistant
    from mobillama_v.demo.service import Service

ModelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model", "-m", help="A model to offer, by name, folder or Hugging Face id; repeat it for several. [nano]"
    ),
]
HostOption = Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 is all of this machine's.")]
RootOption = Annotated[str, typer.Option(help="Path under which a reverse proxy serves this, such as /vision.")]
BytesOption = Annotated[int, typer.Option(min=1, help="Largest picture file, in bytes.")]
PixelsOption = Annotated[int, typer.Option(min=1, help="Largest picture, in pixels.")]
ImagesOption = Annotated[int, typer.Option(min=1, help="Most pictures of one conversation.")]
LongestOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
SecondsOption = Annotated[float, typer.Option(min=1, help="Longest time to compute one answer; it ends there.")]
RunningOption = Annotated[int, typer.Option(min=1, help="Answers computed at once, a token of each in turn.")]
WaitingOption = Annotated[int, typer.Option(min=0, help="Answers that may wait; more are refused.")]
EachOption = Annotated[int, typer.Option(min=0, help="Answers of one user that may wait.")]


def offered(names: list[str] | None, device: str, engine: str) -> dict[str, Callable[[], Assistant]]:
    """Loaders of the models to offer, by the names that users see: a folder's is its last part.

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
    return {shown: partial(load_assistant, folder, device, engine) for shown, folder in folders.items()}


def opened(models: dict[str, Callable[[], Assistant]], limits: Limits) -> Service:
    """A service whose default model is loaded, so that what is wrong with it is told before anybody asks.

    Raises:
        MobiLlamaVError: as :func:`mobillama_v.assistant.load` does.
    """
    from mobillama_v.demo.service import Service

    service = Service(models, limits)
    service.assistant(service.models[0])
    return service
