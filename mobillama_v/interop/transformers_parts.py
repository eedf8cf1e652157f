"""What checkpoints of transformers' vision-language models share: decoder, tokens, pictures and template."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mobillama_v.config import DecoderConfig
from mobillama_v.errors import CheckpointError
from mobillama_v.images import ImageTransform
from mobillama_v.interop.formats import Piece, Sources, read_config

_NETWORK = tuple(f"mlp.{part}_proj" for part in ("gate", "up", "down"))
_LAYER = ("input_layernorm", "post_attention_layernorm", "self_attn.o_proj", *_NETWORK)
_RESAMPLE = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # PIL's numbers


@dataclass(frozen=True)
class DecoderPart:
    """A decoder's shape, where its tensors and its head come from, and notes."""

    spec: DecoderConfig
    pieces: dict[str, Piece]
    notes: tuple[str, ...]


def decoder_part(
    folder: Path,
    config: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    *,
    theirs: Callable[[str], str],
    head: str,
    tied: bool,
) -> DecoderPart:
    """Plan a decoder.

    Args:
        folder: of the checkpoint, for messages.
        config: its ``text_config``.
        shapes: of the checkpoint's tensors, by their names.
        theirs: makes the full name of a tensor of a ``LlamaModel``.
        head: the name of the head, which a ``tied`` one does not have.
        tied: whether the head is the embeddings.

    Raises:
        CheckpointError: it asks for something that this decoder does not have.
        ConfigError: sizes that no decoder can have.
    """
    from mobillama_v.interop.llama import (
        MODEL_TYPES,
        decoder_spec,
        refuse_features,
    )  # with torch; `export --help` needs none

    path = folder / "config.json"
    refuse_features(config, path)
    if config.get("model_type", "llama") not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise CheckpointError(f"{path} has a decoder of type {config['model_type']!r}; known are {known}.")
    values = {"num_attention_heads": 32} | config
    prefix = theirs("")
    plain = {f"model.{name[len(prefix) :]}": shape for name, shape in shapes.items() if name.startswith(prefix)}
    notes: list[str] = []
    spec = replace(decoder_spec(plain, values, notes, folder), ffn_sharing="none")
    pieces = decoder_pieces(spec, theirs)
    if tied and head not in shapes:
        notes.append("the head is a copy of the embeddings, to which the checkpoint ties it")
        head = theirs("embed_tokens.weight")
    return DecoderPart(spec, pieces | {"lm_head.weight": Piece((head,))}, tuple(notes))


def decoder_pieces(spec: DecoderConfig, theirs: Callable[[str], str]) -> dict[str, Piece]:
    """Where the tensors of ``language_model.`` come from, of a decoder with a network in each layer."""
    names = ["embed_tokens.weight", "norm.weight"]
    for i in range(spec.num_hidden_layers):
        names += [f"layers.{i}.{name}.weight" for name in _LAYER]
        kinds = ("weight", "bias") if spec.qkv_bias else ("weight",)
        names += [f"layers.{i}.self_attn.{part}_proj.{kind}" for part in "qkv" for kind in kinds]
        names += [f"layers.{i}.self_attn.{part}_norm.weight" for part in "qk" if spec.qk_norm]
    return {f"language_model.{name}": Piece((theirs(name),)) for name in names}


_ENDS = {"chatml": "<|im_end|>", "smolvlm": "<end_of_utterance>", "nanovlm": "<|endoftext|>"} | {
    **{"nanovlm-chat": "<|im_end|>", "nanovlm-tile": "<|im_end|>", "internvl": "<|im_end|>"}
}
"""What ends an answer, by the templates of other programs."""


def token_ids(sources: Sources, spec: DecoderConfig, template: str) -> DecoderConfig:
    """The decoder with the special tokens that the tokenizer's configuration names, if there is one.

    What ends a turn in the template ends an answer.
    """
    from tokenizers import Tokenizer

    if not sources.tokenizer.is_file():
        return spec
    tokenizer, folder = Tokenizer.from_file(str(sources.tokenizer)), sources.tokenizer.parent
    named = read_config(folder, "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if template in _ENDS:
        named = named | {"eos_token": _ENDS[template]}
    found: dict[str, Any] = {}
    for kind in ("bos", "eos", "pad"):
        token = named.get(f"{kind}_token")
        index = tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token) if token else None
        if index is not None:
            found[f"{kind}_token_id"] = index
    return replace(spec, **found)


def processor_config(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of pictures: in ``preprocessor_config.json``, or in its ``processor_config.json``."""
    if (folder / "preprocessor_config.json").is_file():
        return read_config(folder, "preprocessor_config.json")
    if (folder / "processor_config.json").is_file():
        found = read_config(folder, "processor_config.json").get("image_processor")
        return found if isinstance(found, dict) else {}
    return {}


def image_transform(values: dict[str, Any], side: int, notes: list[str]) -> ImageTransform:
    """The picture's geometry and normalization in a processor's configuration, for a tower of ``side`` pixels."""
    if not values:
        notes.append("nothing says how pictures are made square; they are padded and normalized as in LLaVA-1.5")
        return ImageTransform(side)
    mode: Any = "pad" if values.get("do_pad") else "crop" if values.get("do_center_crop") else "squash"
    options: dict[str, Any] = {"resample": _RESAMPLE.get(values.get("resample", 3), "bicubic")}
    for name, key in (("mean", "image_mean"), ("std", "image_std")):
        if values.get(key) is not None:
            options[name] = tuple(values[key])
    if "mean" in options and mode == "pad":
        options["background"] = tuple(int(255 * each) for each in options["mean"])
    return ImageTransform(side, mode=mode, **options)
