"""Models by name: the paper's decoders (arXiv 2402.16840) and the whole models that this project makes of them.

Shapes are those of the configurations that the authors released (github.com/mbzuai-oryx/MobiLlama, folder
``mobillama``, and huggingface.co/MBZUAI), with two corrections that their checkpoints ask for: every head has its own
keys and values, and ``config.json``'s 8 layers belong to baseline2. ``PUBLISHED`` holds what the authors print.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from mobillama_v.config import DecoderConfig, ModelConfig, ProjectorConfig, TowerConfig
from mobillama_v.errors import ModelNotFoundError
from mobillama_v.images import ImageTransform
from mobillama_v.model.vision import HYBRID

_MOBILLAMA_05B = DecoderConfig(rms_norm_eps=1e-5)
_CLIP = TowerConfig(pretrained="openai")

# The embedded model: everything about its shape is here.
_NANO = ModelConfig(
    decoder=DecoderConfig(
        vocab_size=6144,
        hidden_size=256,
        intermediate_size=2048,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
    ),
    tower=TowerConfig(model=HYBRID, feature_layer=-1, select="cls_patch"),
    projector=ProjectorConfig(type="mlp2x_gelu"),
    image=ImageTransform(size=224, mode="squash", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    template="v1",
)


@dataclass(frozen=True)
class Preset:
    """A name, one line about it, and the spec: of a whole model, or of a decoder alone."""

    name: str
    summary: str
    spec: ModelConfig | DecoderConfig

    @property
    def decoder(self) -> DecoderConfig:
        """The decoder's spec."""
        return self.spec.decoder if isinstance(self.spec, ModelConfig) else self.spec


@dataclass(frozen=True)
class Figure:
    """A figure that the authors print: of what, the figure, where; and the same of the decoder that is built here."""

    what: str
    printed: str
    where: str
    here: Callable[[DecoderConfig], str]


@dataclass(frozen=True)
class Published:
    """What the authors print about a model, and where their sources disagree."""

    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()


def _whole(decoder: DecoderConfig) -> ModelConfig:
    """LLaVA-1.5's tower and projector before ``decoder``."""
    return ModelConfig(decoder=decoder, tower=_CLIP)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("nano", "the embedded model: EfficientNet-Lite0 hybrid tower, 6 layers of width 256", _NANO),
        Preset("mobillama-0.5b", "MobiLlama 0.5B behind CLIP ViT-L/14-336", _whole(_MOBILLAMA_05B)),
        Preset(
            "mobillama-0.8b",
            "MobiLlama 0.8B behind CLIP ViT-L/14-336: the paper's MobiLlama-V",
            _whole(replace(_MOBILLAMA_05B, hidden_size=2560, intermediate_size=10240)),
        ),
        Preset(
            "large-base",
            "the paper's large-base (1.2B), a feed-forward network per layer, behind CLIP ViT-L/14-336",
            _whole(replace(_MOBILLAMA_05B, ffn_sharing="none")),
        ),
        Preset(
            "baseline1",
            "the paper's thin baseline: 22 layers of width 1024, a feed-forward network per layer; decoder only",
            replace(_MOBILLAMA_05B, hidden_size=1024, ffn_sharing="none"),
        ),
        Preset(
            "baseline2",
            "the paper's shallow baseline: 8 layers of width 2048, a feed-forward network per layer; decoder only",
            replace(_MOBILLAMA_05B, num_hidden_layers=8, ffn_sharing="none"),
        ),
    )
}

_README = "results tables of the authors' README, column #Params"
_SITE = "the authors' project page, MobiLlama Architecture"
_HEADS = (
    "The released config.json says num_key_value_heads 4; the released code ignores it and gives every one of the 32 "
    "heads its own keys and values."
)
_CONTEXT = (
    "The released configuration of 0.8B says max_position_embeddings 2560, its own hidden size; here it is 2048, as in "
    "all others."
)


def _parameters(printed: str) -> Figure:
    return Figure("parameters of the decoder", printed, _README, lambda decoder: f"{decoder.num_params() / 1e9:.3f}B")


def _saved(decoder: DecoderConfig) -> str:
    return f"{1 - decoder.num_params() / replace(decoder, ffn_sharing='none').num_params():.1%}"


def _share(name: str, printed: str) -> Figure:
    """A part's share of the decoder without its input embedding."""

    def here(decoder: DecoderConfig) -> str:
        counts = decoder.params_by_part()
        return f"{counts[name] / (decoder.num_params() - counts['embedding']):.1%}"

    return Figure(f"share of {name}", printed, _SITE, here)


# Of the paper's tables 1 and 3 only what the authors repeat in a text source is quoted, to the digits given there.
PUBLISHED: dict[str, Published] = {
    "mobillama-0.5b": Published(
        figures=(_parameters("0.5B"), Figure("parameters saved against large-base", "60%", _SITE, _saved)),
        notes=(_HEADS,),
    ),
    "mobillama-0.8b": Published(
        figures=(_parameters("0.8B"),),
        notes=(
            "The paper prints hidden size 2532 and intermediate size 11,080; 2532 cannot be split over 32 heads, and "
            "the released configuration (2560 and 10,240) is what is built here.",
            _HEADS,
            _CONTEXT,
        ),
    ),
    "large-base": Published(
        figures=(
            _parameters("1.2B"),
            _share("feed-forward", "65%"),
            _share("attention", "30%"),
            _share("head", "5%"),
        ),
        notes=(
            _HEADS,
            "The printed shares fit a count without the input embedding, which is how they are computed here.",
        ),
    ),
    "baseline2": Published(
        notes=(
            "The file mobillama/config.json of the authors' repository, which their 0.5B training script loads, has "
            "this shape (8 layers); the released 0.5B checkpoint has 22 layers.",
            _HEADS,
        ),
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ModelNotFoundError: there is none.
    """
    if name not in PRESETS:
        raise ModelNotFoundError(f"there is no preset {name!r}; the presets are {', '.join(PRESETS)}.")
    return PRESETS[name]
