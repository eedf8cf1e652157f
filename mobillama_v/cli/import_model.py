"""``mobillama-v import``: another program's model as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def import_(
    source: Annotated[str, typer.Argument(help="A checkpoint: a folder, or a Hugging Face id.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist.")],
    base: Annotated[
        str | None, typer.Option(help="LLaVA: the language model that an adapter or a projector belongs to.")
    ] = None,
    tower: Annotated[
        str | None, typer.Option(help="LLaVA: the image tower, a folder or id of transformers' CLIP or SigLIP.")
    ] = None,
    ffn: Annotated[
        Literal["auto", "per-layer"],
        typer.Option(help="auto: hold feed-forward networks once where all layers have the same. per-layer: never."),
    ] = "auto",
    tokenizer: Annotated[Path | None, typer.Option(help="A tokenizer.json; by default the checkpoint's.")] = None,
) -> None:
    """Make a model folder of a vision-language model that another program has trained.

    Known are llava-hf, LLaVA, Idefics3 and SmolVLM. Every tensor is used or named, and compared after writing.
    """
    from mobillama_v.interop.import_model import import_model

    made = import_model(source, out, base=base, tower=tower, ffn=ffn, tokenizer=tokenizer)
    decoder = made.spec.decoder
    print(f"decoder: {decoder.num_hidden_layers} layers of width {decoder.hidden_size}; template {made.spec.template}")
    print(
        f"tower: {made.spec.tower.model}, {made.spec.image.size} pixels, {made.spec.tokens_per_image()} visual tokens"
    )
    for note in made.notes:
        print(f"  {note}")
    print(f"{made.tensors:,} tensors written and read back. Use it with: mobillama-v describe --model {out} photo.jpg")
