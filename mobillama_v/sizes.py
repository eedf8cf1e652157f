"""How large a model is, by arithmetic from its specs: parameters a part, memory, key/value cache, visual tokens.

Nothing heavy is imported, so that the command line answers at once; only a tower whose shape cannot be read from
open_clip's configuration files is built, without memory, to be counted.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mobillama_v.config import HYBRID, DecoderConfig, ModelConfig, ProjectorConfig, TowerConfig

_HYBRID_PARAMETERS = 9_564_855

BYTES = {"fp32": 4.0, "bf16": 2.0}
"""Bytes of a parameter."""
_BYTES_4BIT = 4.5 / 8
"""Of a matrix of the decoder in blocks of 32 four-bit weights that share an fp16 scale; all else stays in bf16."""

# Options of an open_clip vision transformer that the count below covers, or that own no parameters.
_PLAIN = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "act_kwargs", "patch_dropout"}


@dataclass(frozen=True)
class TowerShape:
    """What the rest of a model needs to know of its tower: width Dv, extra (CLS) tokens E, patches P, parameters."""

    width: int
    prefix: int
    patches: int
    parameters: int

    def extra(self, spec: TowerConfig) -> int:
        """Tokens kept beside the patches."""
        return self.prefix if spec.select == "cls_patch" else 0


@dataclass(frozen=True)
class Part:
    """One part of a model and its number of parameters; ``matrix`` marks those that 4-bit engines quantize."""

    name: str
    parameters: int
    matrix: bool = False


def tower_shape(spec: TowerConfig, image_size: int) -> TowerShape:
    """Shape of the tower that ``spec`` names, for square images of ``image_size`` pixels.

    Raises:
        ConfigError: open_clip has no such model, or it is no vision transformer.
    """
    if spec.model == HYBRID:  # one architecture without options
        return TowerShape(width=256, prefix=35, patches=49, parameters=_HYBRID_PARAMETERS)
    config = _open_clip_config(spec.model)
    if config is not None and set(config["vision_cfg"]) <= _PLAIN and isinstance(config["vision_cfg"]["layers"], int):
        return _plain_vit(config, image_size)
    return _built(spec, image_size)


def _open_clip_config(model: str) -> dict[str, Any] | None:
    """One of the configuration files that open_clip ships, without importing it."""
    found = importlib.util.find_spec("open_clip")
    folders = found.submodule_search_locations if found is not None else None
    if not folders or Path(model).name != model:
        return None
    path = Path(folders[0]) / "model_configs" / f"{model}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _plain_vit(config: dict[str, Any], image_size: int) -> TowerShape:
    """A vision transformer as open_clip builds it: CLS, learned positions, norms before and after, biases in blocks."""
    vision = config["vision_cfg"]
    width, patch = vision["width"], vision["patch_size"]
    patches = (image_size // patch) ** 2
    hidden = int(width * vision.get("mlp_ratio", 4.0))
    attention = 4 * width * (width + 1)
    mlp = hidden * (2 * width + 1) + width
    block = attention + mlp + 4 * width
    embeddings = 3 * width * patch**2 + (patches + 2) * width
    head = 4 * width + width * config["embed_dim"]  # norms before and after the blocks, and the projection
    return TowerShape(width, 1, patches, vision["layers"] * block + embeddings + head)


def _built(spec: TowerConfig, image_size: int) -> TowerShape:
    import torch

    from mobillama_v.model.vision.clip import build_tower

    with torch.device("meta"):
        tower = build_tower(TowerConfig(spec.model, feature_layer=-1, select="cls_patch"), image_size=image_size)
    return TowerShape(
        width=tower.width,
        prefix=tower.extra,
        patches=tower.patches,
        parameters=sum(p.numel() for p in tower.parameters()),
    )


def tokens_per_image(spec: ModelConfig) -> int:
    """Visual tokens P' that one image makes.

    Raises:
        ConfigError: the projector cannot merge the tower's patches, or there is no such tower.
    """
    shape = tower_shape(spec.tower, spec.image.size)
    return spec.projector.kind.num_tokens(shape.extra(spec.tower), shape.patches)


def decoder_parts(spec: DecoderConfig) -> list[Part]:
    """Parameters of the decoder and its head, part by part."""
    hidden, layers = spec.hidden_size, spec.num_hidden_layers
    kv_width = spec.num_key_value_heads * spec.head_dim
    networks = 1 if spec.ffn_sharing == "all" else layers
    shared = "shared by all layers" if spec.ffn_sharing == "all" else "one per layer"
    return [
        Part("embedding", spec.vocab_size * hidden),
        Part("attention", layers * 2 * hidden * (hidden + kv_width), matrix=True),
        Part(f"feed-forward ({shared})", networks * 3 * hidden * spec.intermediate_size, matrix=True),
        Part("norms", (2 * layers + 1) * hidden),
        Part("head", spec.vocab_size * hidden, matrix=True),
    ]


def projector_parameters(spec: ProjectorConfig, *, tower_width: int, decoder_width: int) -> int:
    """Parameters of the projector."""
    return spec.kind.num_params(tower_width, decoder_width)


def parts(spec: ModelConfig | DecoderConfig) -> list[Part]:
    """Parameters of a whole model, or of a decoder alone, part by part."""
    if isinstance(spec, DecoderConfig):
        return decoder_parts(spec)
    shape = tower_shape(spec.tower, spec.image.size)
    projector = projector_parameters(spec.projector, tower_width=shape.width, decoder_width=spec.decoder.hidden_size)
    return [
        *decoder_parts(spec.decoder),
        Part(f"projector ({spec.projector.type})", projector),
        Part(f"tower ({spec.tower.model})", shape.parameters),
    ]


def memory_bytes(counted: list[Part]) -> dict[str, int]:
    """Bytes of the weights in fp32, in bf16, and with the decoder's matrices at 4.5 bits a weight, the rest in bf16."""
    total = sum(part.parameters for part in counted)
    sizes = {name: int(total * each) for name, each in BYTES.items()}
    packed = sum(part.parameters for part in counted if part.matrix)
    sizes["4-bit"] = int(packed * _BYTES_4BIT + (total - packed) * BYTES["bf16"])
    return sizes


def kv_cache_bytes(spec: DecoderConfig, dtype: str = "bf16") -> int:
    """Bytes of keys and values that one position costs."""
    return int(2 * spec.num_hidden_layers * spec.num_key_value_heads * spec.head_dim * BYTES[dtype])
