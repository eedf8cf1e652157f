"""How large a model is, by arithmetic from its specs: parameters a part, memory, key/value cache, visual tokens.

Nothing heavy is imported, so that the command line answers at once; only a tower whose shape cannot be read from
open_clip's configuration files is built, without memory, to be counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from mobillama_v.config import DecoderConfig, ModelConfig, ProjectorConfig
from mobillama_v.model.vision import tower_shape

BYTES = {"fp32": 4.0, "bf16": 2.0}
"""Bytes of a parameter."""
_BYTES_4BIT = 4.5 / 8
"""Of a matrix of the decoder in blocks of 32 four-bit weights that share an fp16 scale; all else stays in bf16."""


@dataclass(frozen=True)
class Part:
    """One part of a model and its number of parameters; ``matrix`` marks those that 4-bit engines quantize."""

    name: str
    parameters: int
    matrix: bool = False


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
