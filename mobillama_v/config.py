"""What a model is made of, as plain dataclasses.

They are the fields of ``config.json`` and need neither torch nor transformers, so that the command line can read a
model folder before it has imported anything heavy. :mod:`mobillama_v.hf.configuration` wraps them for transformers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mobillama_v.errors import ConfigError
from mobillama_v.images import ImageTransform
from mobillama_v.projector import Projector, get_projector
from mobillama_v.prompt import get_template

if TYPE_CHECKING:
    from mobillama_v.projector.module import ProjectorModule

HYBRID = "mobillama-v-hybrid-lite0"
"""open_clip name of the embedded model's tower, :mod:`mobillama_v.model.vision.hybrid_lite0`."""

# What transformers itself writes into a config.json; everything else must be a field below.
BOOKKEEPING = {
    "_name_or_path", "architectures", "auto_map", "chunk_size_feed_forward", "dtype", "id2label", "is_encoder_decoder",
    "label2id", "model_type", "output_attentions", "output_hidden_states", "problem_type", "return_dict",
    "tie_word_embeddings", "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip

T = TypeVar("T")


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class DecoderConfig:
    """The MobiLlama decoder (arXiv 2402.16840, section 3): a Llama whose feed-forward network may be shared.

    ``ffn_sharing`` is ``"all"`` (one network, owned by the decoder, used by every layer) or ``"none"`` (one per layer,
    which is a plain Llama: the paper's large-base and baselines). Defaults are MobiLlama-0.5B.
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

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            _check(isinstance(value, int) and value > 0, f"{name} must be a positive integer, not {value!r}.")
        _check(
            self.hidden_size % (2 * self.num_attention_heads) == 0,
            f"hidden_size {self.hidden_size} cannot be split into {self.num_attention_heads} heads of even size; "
            "choose a multiple of twice the number of heads.",
        )
        _check(
            self.num_attention_heads % self.num_key_value_heads == 0,
            f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
            f"{self.num_key_value_heads}.",
        )
        _check(self.ffn_sharing in ("all", "none"), f"ffn_sharing must be 'all' or 'none', not {self.ffn_sharing!r}.")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class TowerConfig:
    """The image tower: an open_clip image model by name, and which of its features are used.

    ``pretrained`` is an open_clip tag (``openai``) or a local file; ``None`` leaves the tower's weights to the
    checkpoint. ``feature_layer`` counts blocks from the end as LLaVA does (-2: the output of the block before the
    last, no final norm; -1 of the last). ``select`` keeps the ``patch`` features or the CLS part before them too.
    """

    model: str = "ViT-L-14-336-quickgelu"
    pretrained: str | None = None
    feature_layer: int = -2
    select: Literal["patch", "cls_patch"] = "patch"

    def __post_init__(self) -> None:
        _check(self.feature_layer < 0, f"feature_layer counts from the end (-1, -2, …), not {self.feature_layer}.")
        _check(self.select in ("patch", "cls_patch"), f"select must be 'patch' or 'cls_patch', not {self.select!r}.")


@dataclass(frozen=True)
class ProjectorConfig:
    """Visual features to decoder width: a type of :data:`~mobillama_v.projector.PROJECTORS`.

    ``factor`` is the side of the square of patches that a merging type makes one visual token of; 1 for all others.
    """

    type: str = "mlp2x_gelu"
    factor: int = 1

    def __post_init__(self) -> None:
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
    """A name of :data:`~mobillama_v.prompt.TEMPLATES`."""

    def __post_init__(self) -> None:
        get_template(self.template)  # raises where there is none


_PARTS: dict[str, Any] = {
    "text_config": DecoderConfig,
    "tower": TowerConfig,
    "projector": ProjectorConfig,
    "image": ImageTransform,
}


def build(cls: type[T], values: dict[str, Any], where: str) -> T:
    """Make the dataclass ``cls`` from a mapping; an unknown key or a wrong type is a :class:`ConfigError`."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must be a mapping, not {type(values).__name__}.")
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known - BOOKKEEPING)
    if unknown:
        raise ConfigError(f"{where} has unknown keys: {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
    chosen = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
    try:
        return cls(**chosen)
    except (TypeError, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from error


def spec_from_config(config: dict[str, Any], where: str = "config.json") -> ModelConfig:
    """Read a ``config.json`` mapping of a whole model (``model_type`` ``mobillama_v``).

    Raises:
        ConfigError: another model type, an unknown key or an impossible value, named.
    """
    if config.get("model_type") != "mobillama_v":
        raise ConfigError(
            f"{where} describes a model of type {config.get('model_type')!r}, not 'mobillama_v'; "
            "give a folder that this project saved."
        )
    unknown = sorted(set(config) - set(_PARTS) - {"template"} - BOOKKEEPING)
    if unknown:
        raise ConfigError(f"{where} has unknown keys: {', '.join(unknown)}.")
    parts = {name: build(cls, config.get(name) or {}, f"{name} in {where}") for name, cls in _PARTS.items()}
    return ModelConfig(
        decoder=parts["text_config"],
        tower=parts["tower"],
        projector=parts["projector"],
        image=parts["image"],
        template=config.get("template", "v1"),
    )
