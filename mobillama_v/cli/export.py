"""``mobillama-v export``: a model in the format of another program."""

# No `from __future__ import annotations` here: the annotations of a command hold its format's help.

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mobillama_v.errors import CheckpointError
from mobillama_v.interop import formats


class _Formats(TyperGroup):
    """A command for each format in :data:`mobillama_v.interop.formats.EXPORTERS`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in formats.EXPORTERS:
            command = typer.Typer(add_completion=False)
            command.command(name)(_export_to(formats.exporter(name)))
            self.add_command(typer.main.get_command(command), name)


app = typer.Typer(
    cls=_Formats, help="Write a model in another program's format.", no_args_is_help=True, add_completion=False
)


@app.callback()
def _export() -> None:
    """Write a model in another program's format."""


def _export_to(exporter: formats.Exporter) -> Callable[..., None]:
    kinds = f"Number type of the weights: {', '.join(exporter.types[:-1])} or {exporter.types[-1]}."

    def export(
        model: Annotated[str, typer.Argument(help="An embedded model, a model folder, or a Hugging Face id.")],
        out: Annotated[
            Path, typer.Argument(metavar="OUT", help=f"The {exporter.suffix or 'folder'} to write. It must not exist.")
        ],
        kind: Annotated[str, typer.Option("--type", help=kinds)] = exporter.default_type,
    ) -> None:
        from mobillama_v.hub import find_model, read_spec
        from mobillama_v.output import refuse_existing, require_space, written_whole

        folder = find_model(model)
        spec = read_spec(folder)
        refuse_existing(out)
        require_space(out, spec.decoder.num_params() // 2)  # no format has fewer bits than 4

        from mobillama_v.backends.native.packed_format import is_packed
        from mobillama_v.model.vlm import load_network

        exporter.check(spec, kind)
        if is_packed(folder):
            raise CheckpointError(f"{str(folder)!r} is packed; give the model that it was made from.")
        network = load_network(folder, spec)
        with written_whole(out) as made:
            notes = exporter.write(made, network, spec, kind=kind, folder=folder)
        for note in notes:
            print(note)
        files = [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]
        print(f"{out}: {sum(path.stat().st_size for path in files) / 1e6:,.1f} MB, {kind}.")

    export.__doc__ = exporter.help
    return export
