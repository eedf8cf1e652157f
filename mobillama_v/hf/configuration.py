"""transformers configurations around the plain specs of :mod:`mobillama_v.config`.

``MobiLlamaConfig`` carries the decoder's fields flat (as ``LlamaConfig`` does), ``MobiLlamaVConfig`` the parts of the
whole model. Both refuse unknown keys.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from mobillama_v.config import (
    BOOKKEEPING,
    DecoderConfig,
    ImageTransform,
    ModelConfig,
    ProjectorConfig,
    TowerConfig,
    from_mapping,
)
from mobillama_v.errors import ConfigError

# Keyword arguments that transformers' own loaders add; they are not model fields.
_LOADER_KEYS = BOOKKEEPING | {
    "_attn_implementation_internal",
    "_commit_hash",
    "_experts_implementation_internal",
    "attn_implementation",
    "experts_implementation",
    "name_or_path",
    "num_labels",
}


def _refuse_unknown(config: PreTrainedConfig, extra: dict[str, Any]) -> None:
    unknown = sorted(set(extra) - _LOADER_KEYS)
    if unknown:
        raise ConfigError(f"{type(config).__name__} has no field {', '.join(unknown)}; remove it or mend its spelling.")


class MobiLlamaConfig(PreTrainedConfig):
    """Configuration of the decoder alone; the fields are those of :class:`~mobillama_v.config.DecoderConfig`."""

    model_type = "mobillama"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012 (transformers' own declaration)

    vocab_size: int = 32000
    hidden_size: int = 2048
    intermediate_size: int = 5632
    num_hidden_layers: int = 22
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    ffn_sharing: str = "all"
    initializer_range: float = 0.02
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int = 0
    qkv_bias: bool = False
    llama3_rope: dict[str, Any] | None = None
    qk_norm: bool = False
    attention_head_dim: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse_unknown(self, kwargs)
        super().__post_init__(**kwargs)
        if self.tie_word_embeddings:
            raise ConfigError("MobiLlama's head is untied; set tie_word_embeddings to false.")
        _ = self.spec  # validates the values

    @property
    def spec(self) -> DecoderConfig:
        """The plain form of this configuration."""
        return DecoderConfig(**{f.name: getattr(self, f.name) for f in dataclasses.fields(DecoderConfig)})

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.spec.head_dim


class MobiLlamaVConfig(PreTrainedConfig):
    """Configuration of the whole model.

    ``tower``, ``projector`` and ``image`` are the fields of :class:`~mobillama_v.config.TowerConfig`,
    :class:`~mobillama_v.config.ProjectorConfig` and :class:`~mobillama_v.images.ImageTransform` as mappings.
    """

    model_type = "mobillama_v"
    sub_configs_defaults = {"text_config": SubConfigSpec(MobiLlamaConfig)}  # noqa: RUF012 (transformers' own declaration)

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    tower: dict[str, Any] | None = None
    projector: dict[str, Any] | None = None
    image: dict[str, Any] | None = None
    template: str = "v1"
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        _refuse_unknown(self, kwargs)
        kwargs.pop("use_cache", None)  # what a trainer set for itself; the decoder's own counts
        super().__post_init__(**kwargs)
        for name, default in (("tower", {}), ("projector", {}), ("image", {"size": 336})):
            if getattr(self, name) is None:
                setattr(self, name, default)
        _ = self.spec  # validates the values

    @classmethod
    def from_spec(cls, spec: ModelConfig) -> MobiLlamaVConfig:
        """The transformers form of ``spec``."""
        return cls(
            text_config=dataclasses.asdict(spec.decoder),
            tower=dataclasses.asdict(spec.tower),
            projector=dataclasses.asdict(spec.projector),
            image=dataclasses.asdict(spec.image),
            template=spec.template,
        )

    @property
    def spec(self) -> ModelConfig:
        """The plain form of this configuration."""
        text = self.text_config
        assert isinstance(text, MobiLlamaConfig)
        return ModelConfig(
            decoder=text.spec,
            tower=from_mapping(TowerConfig, self.tower, "tower"),
            projector=from_mapping(ProjectorConfig, self.projector, "projector"),
            image=from_mapping(ImageTransform, self.image, "image"),
            template=self.template,
        )
