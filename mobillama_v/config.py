"""What a model is made of, as plain dataclasses.

They are the fields of ``config.json`` and need neither torch nor transformers, so that the command line can read a
model folder before it has imported anything heavy. :mod:`mobillama_v.hf.configuration` wraps them for transformers.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from mobillama_v.chat_templates import get_template
from mobillama_v.errors import ConfigError
from mobillama_v.fields import check, check_types, shown
from mobillama_v.images import ImageTransform
from mobillama_v.model.vision import TowerConfig, TowerShape
from mobillama_v.projector import Projector, get_projector

if TYPE_CHECKING:
    from mobillama_v.projector.module import ProjectorModule


# What transformers itself writes into a config.json; everything else must be a field below.
BOOKKEEPING = {
    "_name_or_path", "architectures", "auto_map", "chunk_size_feed_forward", "dtype", "id2label", "is_encoder_decoder",
    "label2id", "model_type", "output_attentions", "output_hidden_states", "problem_type", "return_dict",
    "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip

BYTES = {"fp32": 4.0, "bf16": 2.0}
"""Bytes of a parameter."""
_BYTES_4BIT = 4.5 / 8  # in blocks of 32 four-bit weights that share an fp16 scale
_MATRICES = ("attention", "feed-forward", "head")  # parts of the decoder that 4-bit engines quantize

T = TypeVar("T")


# Each size with its largest value, which is that of the native engine: a mistyped one must not ask for terabytes.
_SIZES = {
    "vocab_size": 1 << 24, "hidden_size": 1 << 16, "intermediate_size": 1 << 18, "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 16, "num_key_value_heads": 1 << 16, "max_position_embeddings": 1 << 20,
}  # fmt: skip


@dataclass(frozen=True)
class Llama3Rope:
    """How Llama 3.1 and 3.2 stretch slow rotary frequencies to longer contexts (transformers' ``rope_type: llama3``).

    A frequency that turns less than ``low_freq_factor`` times in ``original_max_position_embeddings`` positions is
    divided by ``factor``, one that turns more than ``high_freq_factor`` times stays, and between them they blend.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        check_types(self)
        for each in dataclasses.fields(self):
            check(getattr(self, each.name) > 0, f"{each.name} must be above 0, not {shown(getattr(self, each.name))}.")
        check(self.low_freq_factor < self.high_freq_factor, "low_freq_factor must be below high_freq_factor.")

    def scale(self, frequencies: Any) -> Any:
        """The stretched frequencies, radians a position; arrays of numpy or torch."""
        turns = frequencies * (self.original_max_position_embeddings / (2 * math.pi))
        kept = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clip(0, 1)
        return frequencies * ((1 - kept) / self.factor + kept)


@dataclass(frozen=True)
class DecoderConfig:
    """The MobiLlama decoder (arXiv 2402.16840, section 3): a Llama whose feed-forward network may be shared.

    ``ffn_sharing`` is ``"all"`` (one network, owned by the decoder, used by every layer) or ``"none"`` (one per layer,
    which is a plain Llama: the paper's large-base and baselines). ``qkv_bias`` gives queries, keys and values a bias,
    as Qwen2 has it; ``qk_norm`` normalizes each head's queries and keys, as Qwen3 does; ``llama3_rope`` is for Llama 3.
    ``attention_head_dim`` is the width of a head where that is not the hidden size over the number of heads. Defaults
    are MobiLlama-0.5B.
    """

    vocab_size: int = 32000
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 22
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    ffn_sharing: Literal["all", "none"] = "all"
    initializer_range: float = 0.02
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 0
    qkv_bias: bool = False
    llama3_rope: Llama3Rope | None = None
    qk_norm: bool = False
    attention_head_dim: int | None = None

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("qkv_bias", "qk_norm"):
            value = getattr(self, name)
            check(isinstance(value, bool), f"{name} must be true or false, not {shown(value)}.")
        if self.llama3_rope is not None and not isinstance(self.llama3_rope, Llama3Rope):
            object.__setattr__(self, "llama3_rope", from_mapping(Llama3Rope, self.llama3_rope, "llama3_rope"))
        for name, most in _SIZES.items():
            value = getattr(self, name)
            check(0 < value <= most, f"{name} must be a positive integer of at most {most}, not {shown(value)}.")
        for name in ("rms_norm_eps", "rope_theta", "initializer_range"):
            value = getattr(self, name)
            check(value > 0, f"{name} must be above 0, not {shown(value)}.")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            check(
                0 <= value < self.vocab_size,
                f"{name} must be a token's id, from 0 to {self.vocab_size - 1}, not {shown(value)}.",
            )
        if self.attention_head_dim is None:
            check(
                self.hidden_size % (2 * self.num_attention_heads) == 0,
                f"hidden_size {self.hidden_size} cannot be split into {self.num_attention_heads} heads of even size; "
                "choose a multiple of twice the number of heads.",
            )
        else:
            check(
                0 < self.attention_head_dim <= 1 << 10 and self.attention_head_dim % 2 == 0,
                f"attention_head_dim must be an even number of at most 1024, not {shown(self.attention_head_dim)}.",
            )
        check(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
            f"{self.num_key_value_heads}.",
        )
        check(
            self.ffn_sharing in ("all", "none"), f"ffn_sharing must be 'all' or 'none', not {shown(self.ffn_sharing)}."
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.attention_head_dim or self.hidden_size // self.num_attention_heads

    @property
    def query_width(self) -> int:
        """Width of all heads' queries together, and of what they attend to."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of all heads' keys together, and of their values."""
        return self.num_key_value_heads * self.head_dim

    def rotary_frequencies(self) -> np.ndarray[Any, Any]:
        """Of the rotary embedding (RoFormer, arXiv 2104.09864): radians a position, fp32 [head_dim / 2]."""
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        frequencies = np.float32(1) / np.float32(self.rope_theta) ** exponents
        scaled = frequencies if self.llama3_rope is None else self.llama3_rope.scale(frequencies)
        return np.ascontiguousarray(scaled, np.float32)

    def params_by_part(self) -> dict[str, int]:
        """Parameters of the decoder and its head, part by part; a shared feed-forward network counts once."""
        hidden, layers = self.hidden_size, self.num_hidden_layers
        queries, keys = self.query_width, self.key_width
        networks = 1 if self.ffn_sharing == "all" else layers
        return {
            "embedding": self.vocab_size * hidden,
            "attention": layers * (2 * hidden * (queries + keys) + (queries + 2 * keys) * self.qkv_bias),
            "feed-forward": networks * 3 * hidden * self.intermediate_size,
            "norms": (2 * layers + 1) * hidden + 2 * layers * self.head_dim * self.qk_norm,
            "head": self.vocab_size * hidden,
        }

    def num_params(self) -> int:
        """Parameters of the decoder and its head."""
        return sum(self.params_by_part().values())

    def kv_cache_bytes(self, dtype: str = "bf16") -> int:
        """Bytes of keys and values that one position costs; ``dtype`` is a key of :data:`BYTES`."""
        return int(2 * self.num_hidden_layers * self.key_width * BYTES[dtype])


@dataclass(frozen=True)
class ProjectorConfig:
    """Visual features to decoder width: a type of :data:`~mobillama_v.projector.PROJECTORS`.

    ``factor`` is the side of the square of patches that a merging type makes one visual token of; 1 for all others.
    """

    type: str = "mlp2x_gelu"
    factor: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        _ = self.kind  # validates the values

    @property
    def kind(self) -> Projector:
        """The projector, which counts its tokens and parameters and says which backends can run it."""
        return get_projector(self.type, self.factor)

    def build(self, *, tower_width: int, decoder_width: int) -> ProjectorModule:
        """The projector in torch, freshly initialized."""
        from mobillama_v.projector.module import ProjectorModule

        return ProjectorModule(self.kind, tower_width=tower_width, decoder_width=decoder_width)


@dataclass(frozen=True)
class ModelConfig:
    """A whole MobiLlama-V: decoder, tower, projector, how pixels are made, and the conversation template."""

    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    tower: TowerConfig = field(default_factory=TowerConfig)
    projector: ProjectorConfig = field(default_factory=ProjectorConfig)
    image: ImageTransform = field(default_factory=lambda: ImageTransform(size=336, mode="pad"))
    template: str = "v1"
    """A name of :data:`~mobillama_v.chat_templates.TEMPLATES`."""

    def __post_init__(self) -> None:
        check_types(self)
        get_template(self.template)  # raises where there is none

    def tower_shape(self) -> TowerShape:
        """Width, tokens and parameters of the tower.

        Raises:
            ConfigError: there is no such tower.
        """
        return self.tower.shape(self.image.size)

    def tokens_per_image(self) -> int:
        """Visual tokens P' that one image makes.

        Raises:
            ConfigError: the projector cannot merge the tower's patches, or there is no such tower.
        """
        shape = self.tower_shape()
        return self.projector.kind.num_tokens(shape.extra(self.tower), shape.patches)

    def params_by_part(self) -> dict[str, int]:
        """Parameters of each part: the decoder's, ``projector`` and ``tower``.

        Raises:
            ConfigError: there is no such tower.
        """
        shape = self.tower_shape()
        projector = self.projector.kind.num_params(shape.width, self.decoder.hidden_size)
        return self.decoder.params_by_part() | {"projector": projector, "tower": shape.parameters}

    def num_params(self) -> int:
        """Parameters of the whole model; errors as of :meth:`params_by_part`."""
        return sum(self.params_by_part().values())

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "config.json") -> ModelConfig:
        """Read a ``config.json`` mapping of a whole model (``model_type`` ``mobillama_v``).

        Raises:
            ConfigError: another model type, an unknown key or an impossible value, named.
        """
        if values.get("model_type") != "mobillama_v":
            raise ConfigError(
                f"{where} describes a model of type {shown(values.get('model_type'))}, not 'mobillama_v'; "
                "give a folder that this project saved."
            )
        unknown = sorted(set(values) - set(_PARTS) - {"template"} - BOOKKEEPING)
        if unknown:
            raise ConfigError(f"{where} has unknown keys: {', '.join(unknown)}.")
        parts = {
            field: from_mapping(part, values[key], f"{key} in {where}")
            for key, (field, part) in _PARTS.items()
            if values.get(key) is not None
        }
        try:
            return cls(**parts, template=values.get("template", "v1"))
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error


_PARTS: dict[str, tuple[str, Any]] = {
    "text_config": ("decoder", DecoderConfig),
    "tower": ("tower", TowerConfig),
    "projector": ("projector", ProjectorConfig),
    "image": ("image", ImageTransform),
}


def from_mapping(cls: type[T], values: Any, where: str) -> T:
    """Make the dataclass ``cls`` from a mapping.

    Raises:
        ConfigError: no mapping, an unknown key or an impossible value, named.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a mapping, not {type(values).__name__}.")
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known - BOOKKEEPING)
    if unknown:
        raise ConfigError(f"{where} has unknown keys: {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
    required = [f.name for f in dataclasses.fields(cls) if _is_required(f)]  # type: ignore[arg-type]
    if missing := [name for name in required if name not in values]:
        raise ConfigError(f"{where} lacks {', '.join(missing)}.")
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
    try:
        return cls(**chosen)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def weight_bytes(params_by_part: dict[str, int]) -> dict[str, int]:
    """Bytes of the weights in fp32, in bf16, and with the decoder's matrices at 4.5 bits a weight, the rest in bf16."""
    total = sum(params_by_part.values())
    packed = sum(params_by_part[name] for name in _MATRICES)
    sizes = {name: int(total * each) for name, each in BYTES.items()}
    return sizes | {"4-bit": int(packed * _BYTES_4BIT + (total - packed) * BYTES["bf16"])}
