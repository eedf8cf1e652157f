"""``mobillama-v models``: which models there are, and how large each is.

Nothing heavy is imported: sizes come from the specs by arithmetic, not from loading a model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from mobillama_v.errors import CheckpointError, ConfigError, MobiLlamaVError, ModelNotFoundError
from mobillama_v.presets import PRESETS, PUBLISHED, Published
from mobillama_v.sizes import kv_cache_bytes, memory_bytes, parts, tokens_per_image
from mobillama_v.specs import DecoderSpec, ModelSpec, build, spec_from_config

app = typer.Typer(help="List the models that can be loaded or built, and show how large each is.", no_args_is_help=True)

_EMBEDDED = Path(__file__).parent / "weights"
_Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table.")]

T = TypeVar("T")


def _refusing(action: Callable[[], T]) -> T:
    """Run ``action``; an error of the user's is one sentence on stderr and exit code 2."""
    try:
        return action()
    except MobiLlamaVError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error


@app.command("list")
def list_models(as_json: _Json = False) -> None:
    """List embedded models, which answer at once, and presets, which a training starts from."""
    rows = [{"name": name, "kind": "embedded", "summary": "loads with its weights"} for name in embedded_models()]
    rows += [{"name": each.name, "kind": "preset", "summary": each.summary} for each in PRESETS.values()]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        typer.echo(f"{row['name']:<16}{row['kind']:<10}{row['summary']}")


@app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="An embedded model, a preset, or a model folder.")],
    as_json: _Json = False,
) -> None:
    """Show the parts of a model, their parameters and the memory they need, next to what the paper's authors print."""
    report = _refusing(lambda: describe(name))
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(report)


def embedded_models() -> list[str]:
    """Names of the models that are installed with the package."""
    return sorted(path.parent.name for path in _EMBEDDED.glob("*/config.json"))


def describe(name: str) -> dict[str, Any]:
    """Everything that ``models show`` prints, as plain values.

    Raises:
        ModelNotFoundError: ``name`` is no embedded model, preset or folder.
        CheckpointError: a folder without a readable ``config.json``.
        ConfigError: a configuration that cannot be.
    """
    kind, spec = find_spec(name)
    decoder = spec.decoder if isinstance(spec, ModelSpec) else spec
    counted = parts(spec)
    published = PUBLISHED.get(name, Published()) if kind == "preset" else Published()
    return {
        "name": name,
        "kind": kind,
        "spec": dataclasses.asdict(spec),
        "parts": [{"part": part.name, "parameters": part.parameters} for part in counted],
        "parameters": sum(part.parameters for part in counted),
        "decoder_parameters": sum(part.parameters for part in parts(decoder)),
        "memory_bytes": memory_bytes(counted),
        "kv_cache_bytes_per_token": kv_cache_bytes(decoder),
        "tokens_per_image": tokens_per_image(spec) if isinstance(spec, ModelSpec) else None,
        "published": [dict(zip(("what", "value", "where"), figure, strict=True)) for figure in published.figures],
        "notes": list(published.notes),
    }


def find_spec(name: str) -> tuple[str, ModelSpec | DecoderSpec]:
    """Where ``name`` was found (``embedded``, ``preset`` or ``folder``), and the spec there."""
    if name in embedded_models():
        return "embedded", read_spec(_EMBEDDED / name)
    if name in PRESETS:
        return "preset", PRESETS[name].spec
    if Path(name).is_dir():
        return "folder", read_spec(Path(name))
    known = ", ".join(dict.fromkeys([*embedded_models(), *PRESETS]))
    raise ModelNotFoundError(f"there is no model {name!r}: it is neither a folder nor one of {known}.")


def read_spec(folder: Path) -> ModelSpec | DecoderSpec:
    """The spec in a model folder's ``config.json``: of a whole model, or of a decoder alone."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); give a folder that holds a model.") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} is not a mapping; give a folder that this project saved.")
    if config.get("model_type") == "mobillama":
        return build(DecoderSpec, config, str(path))
    return spec_from_config(config, str(path))


def _print(report: dict[str, Any]) -> None:
    console = Console()
    table = Table(
        box=box.SIMPLE_HEAD, title=f"{report['name']} ({report['kind']})", title_justify="left", pad_edge=False
    )
    table.add_column("part", overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    total = report["parameters"]
    for part in report["parts"]:
        table.add_row(part["part"], f"{part['parameters']:,}", f"{part['parameters'] / total:.1%}")
    table.add_section()
    if report["tokens_per_image"] is not None:
        table.add_row("decoder", f"{report['decoder_parameters']:,}", f"{report['decoder_parameters'] / total:.1%}")
    table.add_row("all", f"{total:,}", "")
    console.print(table)
    memory = ", ".join(f"{name} {size / 1e6:,.0f} MB" for name, size in report["memory_bytes"].items())
    lines = [
        f"weights: {memory}",
        f"key/value cache: {report['kv_cache_bytes_per_token'] / 1e3:,.1f} kB a token (bf16)",
    ]
    if report["tokens_per_image"] is not None:
        lines.append(f"visual tokens an image: {report['tokens_per_image']}")
    lines += [f"published: {each['what']} {each['value']} ({each['where']})" for each in report["published"]]
    lines += [f"note: {note}" for note in report["notes"]]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=not console.is_terminal)
