"""``mobillama-v init``: a model folder to start a training from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mobillama_v.projector import PROJECTORS

if TYPE_CHECKING:
    from mobillama_v.config import TowerConfig


def init(
    out: Annotated[Path, typer.Argument(help="New folder. A training recipe names it as model.start.")],
    decoder: Annotated[
        str,
        typer.Option(
            help="The language model: a MobiLlama or Llama checkpoint (a folder, a .gguf file, or a Hugging Face id "
            "such as MBZUAI/MobiLlama-05B), or random:PRESET for random weights."
        ),
    ],
    tower: Annotated[
        str,
        typer.Option(
            help="The image tower, from open_clip: MODEL:TAG or MODEL:FILE; MODEL alone has random weights. Or that of "
            "a model: its folder, or nano."
        ),
    ] = "ViT-L-14-336-quickgelu:openai",
    projector: Annotated[
        str, typer.Option(help=f"Its type, which turns image features into visual tokens: {', '.join(PROJECTORS)}.")
    ] = "mlp2x_gelu",
    factor: Annotated[
        int, typer.Option(min=1, help="A projector that merges patches merges squares of this many patches a side.")
    ] = 1,
    feature_layer: Annotated[
        int | None,
        typer.Option(
            max=-1, help="Layer of the tower whose features are used, counted from its end: -2, or as in the model."
        ),
    ] = None,
    image_mode: Annotated[
        Literal["pad", "crop", "squash"] | None,
        typer.Option(help="How images are made square: pad, or as in the model."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="Side in pixels; by default the tower's own.")] = None,
    ffn: Annotated[
        Literal["auto", "per-layer", "average", "fold"],
        typer.Option(
            help="auto: share one feed-forward network; the layers' must be equal. per-layer: keep one in each layer. "
            "average: share the mean of the layers' networks, and report how far each is from it. (fold: the old name "
            "of average.)"
        ),
    ] = "auto",
    tokenizer: Annotated[
        Path | None, typer.Option(help="A tokenizer.json; by default the decoder checkpoint's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
) -> None:
    """Make a model to train: a language model, an image tower and a new projector in one folder."""
    from mobillama_v.config import ProjectorConfig
    from mobillama_v.interop.init_checkpoint import RANDOM, write_initial_model

    if decoder.startswith("fresh:"):
        decoder = RANDOM + decoder.removeprefix("fresh:")
        _warn("--decoder fresh:PRESET", f"{RANDOM}PRESET")
    if ffn == "fold":
        ffn = "average"
        _warn("--ffn fold", "average")
    made = write_initial_model(
        out,
        decoder=decoder,
        tower=_tower(tower, feature_layer),
        projector=ProjectorConfig(type=projector, factor=factor),
        image_mode=image_mode,
        image_size=image_size,
        ffn=ffn,
        tokenizer=tokenizer,
        seed=seed,
    )
    shape = made.spec.decoder
    shared = "one feed-forward network for all" if shape.ffn_sharing == "all" else "a feed-forward network in each"
    print(f"decoder: {shape.num_hidden_layers} layers of width {shape.hidden_size}, {shared}")
    for note in made.decoder.notes:
        print(f"  {note}")
    for each in made.decoder.averaged:
        print(
            f"  layer {each.layer} is {each.weights:.1%} of its weights from the average, {each.outputs:.1%} of its "
            "outputs"
        )
    print(f"{made.tensors:,} tensors written and read back: {out}")


def _tower(name: str, feature_layer: int | None) -> TowerConfig | Path:
    """A tower of open_clip, or the folder of a model whose tower is to be taken."""
    from mobillama_v.config import TowerConfig
    from mobillama_v.errors import ConfigError
    from mobillama_v.hub import embedded_models, find_model

    if name in embedded_models() or Path(name, "config.json").is_file():
        if feature_layer is not None:
            raise ConfigError("--feature-layer is for towers of open_clip; leave it out, the model's own is taken.")
        return find_model(name)
    model, _, pretrained = name.partition(":")
    return TowerConfig(model=model, pretrained=pretrained or None, feature_layer=feature_layer or -2)


def _warn(old: str, new: str) -> None:
    print(f"warning: {old} is now called {new}; the next version will not know the old name.", file=sys.stderr)
