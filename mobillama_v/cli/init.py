"""``mobillama-v init``: a model folder to start a training from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from mobillama_v.projector import PROJECTORS


def init(
    out: Annotated[Path, typer.Argument(help="New folder, for model.start of a recipe.")],
    decoder: Annotated[
        str,
        typer.Option(
            help="A MobiLlama or Llama checkpoint (folder or Hugging Face id, such as MBZUAI/MobiLlama-05B), or "
            "fresh:PRESET for random weights."
        ),
    ],
    tower: Annotated[
        str, typer.Option(help="open_clip model and weights, MODEL:TAG or MODEL:FILE; MODEL alone: random.")
    ] = "ViT-L-14-336-quickgelu:openai",
    projector: Annotated[str, typer.Option(help=f"Its type: {', '.join(PROJECTORS)}.")] = "mlp2x_gelu",
    factor: Annotated[
        int, typer.Option(min=1, help="Side of the square of patches that a merging projector makes one of.")
    ] = 1,
    feature_layer: Annotated[int, typer.Option(max=-1, help="Layer of the tower that is read, from its end.")] = -2,
    image_mode: Annotated[Literal["pad", "crop", "squash"], typer.Option(help="How images are made square.")] = "pad",
    image_size: Annotated[int | None, typer.Option(min=1, help="Side in pixels; by default the tower's own.")] = None,
    ffn: Annotated[
        Literal["auto", "per-layer", "fold"],
        typer.Option(
            help="auto: the feed-forward networks of all layers must be equal and become one; per-layer: keep one in "
            "each layer; fold: start from their mean, and say how far each is from it."
        ),
    ] = "auto",
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json; by default the decoder checkpoint's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random weights.")] = 0,
) -> None:
    """Put a decoder, an image tower and a fresh projector into one folder, from which a training starts."""
    from mobillama_v.config import ProjectorConfig, TowerConfig
    from mobillama_v.interop.init_checkpoint import write_start

    model, _, pretrained = tower.partition(":")
    made = write_start(
        out,
        decoder=decoder,
        tower=TowerConfig(model=model, pretrained=pretrained or None, feature_layer=feature_layer),
        projector=ProjectorConfig(type=projector, factor=factor),
        image_mode=image_mode,
        image_size=image_size,
        sharing=ffn,
        tokenizer=tokenizer,
        seed=seed,
    )
    shape = made.spec.decoder
    shared = "one feed-forward network for all" if shape.ffn_sharing == "all" else "a feed-forward network in each"
    print(f"decoder: {shape.num_hidden_layers} layers of width {shape.hidden_size}, {shared}")
    for note in made.decoder.notes:
        print(f"  {note}")
    for each in made.decoder.folded:
        print(
            f"  layer {each.layer} is {each.weights:.1%} of its weights from the folded network, {each.outputs:.1%} of "
            "its outputs"
        )
    print(f"{made.tensors:,} tensors written and read back: {out}")
