"""``mobillama-v models``: which models there are, and how large each is.

Nothing heavy is imported: sizes come from the specs by arithmetic, not from loading a model. Errors are raised; the
program around it prints them and ends with exit code 2.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from mobillama_v.config import DecoderConfig, ModelConfig, weight_bytes
from mobillama_v.errors import CheckpointError, MissingExtraError, ModelNotFoundError
from mobillama_v.hub import embedded_models, find_model, read_spec
from mobillama_v.presets import PRESETS, PUBLISHED, Published

app = typer.Typer(help="List the models that can be loaded or built, and show how large each is.", no_args_is_help=True)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]


@app.command("list")
def list_models(as_json: _Json = False) -> None:
    """List embedded models, which can be asked at once, and presets, which a training starts from."""
    rows = [
        {"name": name, "kind": "embedded", "summary": "installed with its weights: describe --model " + name}
        for name in embedded_models()
    ]
    rows += [{"name": each.name, "kind": "preset", "summary": each.summary} for each in PRESETS.values()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        print(f"{row['name']:<16}{row['kind']:<10}{row['summary']}")


@app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(help="An embedded model, a preset, a model folder, or a Hugging Face id.")],
    as_json: _Json = False,
) -> None:
    """Show the parts of a model, their parameters and the memory they need, next to what the paper's authors print."""
    report = report_of(name)
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(report)


def report_of(name: str) -> dict[str, Any]:
    """Everything that ``models show`` prints, as plain values.

    Raises:
        ModelNotFoundError: there is no such model.
        CheckpointError: a folder without a readable ``config.json``.
        ConfigError: a configuration that cannot be.
    """
    kind, spec = find_spec(name)
    decoder = spec.decoder if isinstance(spec, ModelConfig) else spec
    counted = spec.params_by_part()
    published = PUBLISHED.get(name, Published()) if kind == "preset" else Published()
    return {
        "name": name,
        "kind": kind,
        "spec": dataclasses.asdict(spec),
        "parts": [{"part": _label(part, spec), "parameters": count} for part, count in counted.items()],
        "parameters": sum(counted.values()),
        "decoder_parameters": decoder.num_params(),
        "memory_bytes": weight_bytes(counted),
        "kv_cache_bytes_per_token": decoder.kv_cache_bytes(),
        "tokens_per_image": spec.tokens_per_image() if isinstance(spec, ModelConfig) else None,
        "published": [
            {"what": each.what, "printed": each.printed, "here": each.here(decoder), "where": each.where}
            for each in published.figures
        ],
        "notes": list(published.notes),
        "backend": None if kind == "preset" else _backend(name, spec),
    }


def _label(part: str, spec: ModelConfig | DecoderConfig) -> str:
    """The name of a part, with which one it is."""
    decoder = spec.decoder if isinstance(spec, ModelConfig) else spec
    notes = {"feed-forward": "shared by all layers" if decoder.ffn_sharing == "all" else "one per layer"}
    if isinstance(spec, ModelConfig):
        notes |= {"projector": spec.projector.type, "tower": spec.tower.model}
    return f"{part} ({notes[part]})" if part in notes else part


def _backend(name: str, spec: ModelConfig | DecoderConfig) -> str | None:
    """What :func:`mobillama_v.load` would run the model with here; None for a decoder alone or without weights."""
    from mobillama_v.backends.select import select_backend

    try:
        return select_backend(spec, find_model(name)).describe() if isinstance(spec, ModelConfig) else None
    except CheckpointError:
        return None
    except MissingExtraError as error:
        return f"nothing yet: {error}"


def find_spec(name: str) -> tuple[str, ModelConfig | DecoderConfig]:
    """Where ``name`` was found (``embedded``, ``preset``, ``folder`` or ``hub``), and the spec there."""
    if name in embedded_models():
        return "embedded", read_spec(find_model(name))
    if name in PRESETS:
        return "preset", PRESETS[name].spec
    if not os.path.isdir(os.path.expanduser(name)) and "/" not in name:
        known = ", ".join(dict.fromkeys([*embedded_models(), *PRESETS]))
        raise ModelNotFoundError(f"there is no model {name!r}: it is neither a folder nor one of {known}.")
    folder = find_model(name)
    return "folder" if os.path.isdir(os.path.expanduser(name)) else "hub", read_spec(folder)


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
    lines += [
        f"{each['what']}: {each['here']} here, {each['printed']} in {each['where']}" for each in report["published"]
    ]
    if report["backend"] is not None:
        lines.append(f"runs here with: {report['backend']}")
    lines += [f"note: {note}" for note in report["notes"]]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=not console.is_terminal)
