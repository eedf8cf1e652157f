"""``mobillama-v export``: a model in the format of another program."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from mobillama_v.errors import CheckpointError, ConfigError

app = typer.Typer(help="Write a model in another program's format.", no_args_is_help=True, add_completion=False)


@app.callback()
def _export() -> None:
    """Write a model in another program's format."""


@app.command("gguf")
def gguf(
    model: Annotated[str, typer.Argument(help="An embedded model, a model folder, or a Hugging Face id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write; it must not exist.")],
    kind: Annotated[str, typer.Option("--type", help="Of the matrices: f32, f16, q8_0 or q4_0.")] = "q8_0",
) -> None:
    """Write a model's decoder as a GGUF file, which llama.cpp reads as a Llama.

    The image tower and the projector are not part of it: llama.cpp answers about texts alone.
    """
    from mobillama_v.hub import find_model, read_spec

    folder = find_model(model)
    spec = read_spec(folder)
    if out.exists():
        raise ConfigError(f"{str(out)!r} is there already; name a file that is not.")
    if not out.absolute().parent.is_dir():
        raise ConfigError(
            f"there is no folder {str(out.absolute().parent)!r} to write {out.name!r} into; make it first."
        )

    from mobillama_v.backends.native.packed_format import is_packed
    from mobillama_v.interop.gguf import library, refuse_type, write_gguf
    from mobillama_v.model.vlm import load_network

    refuse_type(kind, spec.decoder)
    library()
    if is_packed(folder):
        raise CheckpointError(f"{str(folder)!r} is packed; give the model that it was made from.")
    network = load_network(folder, spec)
    try:
        with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}-") as work:
            made = Path(work) / out.name
            notes = write_gguf(
                made,
                network.language_model,
                network.lm_head,
                spec.decoder,
                kind=kind,
                name=folder.name,
                tokenizer=folder / "tokenizer.json",
            )
            made.rename(out)  # whole or not there
    except OSError as error:
        raise ConfigError(
            f"{str(out)!r} cannot be written ({error.strerror or error}); choose another place."
        ) from error
    for note in notes:
        print(note)
    print(f"{out}: {out.stat().st_size / 1e6:,.1f} MB, {kind}.")
