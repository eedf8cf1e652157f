"""The image tower of the embedded model: a hybrid ViT whose stem is EfficientNet-Lite0.

A convolutional stem before a transformer is the ViT paper's hybrid (arXiv 2010.11929, section 3.1). The stem's feature
maps of three resolutions are gathered over a 7 x 7 grid and mixed by transformer blocks: where is what, in which color.
What its last map and the finer ones know of photographs is added. That is the **patch part** of the output. In the
place of a CLS token stand **structured visual tokens**, which name what was recognized
(:mod:`mobillama_v.model.vision.structured_tokens`).

The tower is written once, over a table of operations (:mod:`mobillama_v.model.vision.parts`), for torch and for numpy.
It has the attributes and the ``forward_intermediates`` of a timm vision transformer, and :func:`register_towers` makes
timm and open_clip know it; neither is imported to use it.

Shapes: N images, S = 224 image side, G = 7 grid side, P = G*G patches, D width, E structured tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mobillama_v.errors import ConfigError
from mobillama_v.model.vision.lite0 import COARSE, GATHERED, GRID, HEAD_WIDTH, IMAGE_SIZE, Lite0
from mobillama_v.model.vision.parts import LayerNorm, Linear, Part, num_params, parameter
from mobillama_v.model.vision.registry import TowerConfig, TowerKind, TowerShape, register_tower
from mobillama_v.model.vision.structured_tokens import PREFIX_TOKENS, WIDTH, WORDS, LabelTokens, StructuredTokens

HYBRID = "mobillama-v-hybrid-lite0"
"""Its open_clip name."""
HEADS, DEPTH = 8, 3
_TIMM_NAME = "vit_hybrid_lite0_s32_224"  # which open_clip's configuration of HYBRID gives
_CONFIGS = Path(__file__).parent / "open_clip_configs"


class CellEmbed(Part):
    """Stem and patch embedding: pixels to patch tokens and class logits."""

    grid_size = (GRID, GRID)

    def __init__(self) -> None:
        self.stem = Lite0()
        self.norm = LayerNorm(GATHERED)
        self.fc1, self.fc2 = Linear(GATHERED, 2 * WIDTH), Linear(2 * WIDTH, WIDTH)

    def embed(self, cells: Any) -> Any:
        """Map gathered cells [N,P,GATHERED] to patch tokens [N,P,D]."""
        return self.fc2(self.ops.gelu(self.fc1(self.norm(cells))))

    def forward(self, pixel_values: Any) -> tuple[Any, Any, Any, Any]:
        """Map [N,3,S,S] to patch tokens [N,P,D], the cells that they embed [N,P,GATHERED], the stem's last map
        [N,P,HEAD_WIDTH] and class logits [N,1000]."""
        cells, last, logits = self.stem(pixel_values)
        return self.embed(cells), cells, last, logits


class PhotoPatches(Part):
    """What the stem's maps say about each patch of a photograph: two layers, as LLaVA-1.5's projector has.

    The last map knows what is there; the finer ones know colors.
    """

    def __init__(self) -> None:
        self.norm, self.fine_norm = LayerNorm(HEAD_WIDTH), LayerNorm(GATHERED - COARSE)
        self.fc1, self.fc2 = Linear(HEAD_WIDTH, 2 * WIDTH), Linear(2 * WIDTH, WIDTH)
        self.fine = Linear(GATHERED - COARSE, 2 * WIDTH, bias=False)

    def forward(self, last: Any, cells: Any) -> Any:
        """Map the stem's last map [N,P,HEAD_WIDTH] and gathered cells [N,P,GATHERED] to [N,P,D]."""
        fine = self.fine(self.fine_norm(cells[..., :-COARSE]))
        return self.fc2(self.ops.gelu(self.fc1(self.norm(last)) + fine))


class ViTBlock(Part):
    """A pre-norm transformer block (arXiv 2010.11929)."""

    def __init__(self) -> None:
        self.norm1, self.norm2 = LayerNorm(WIDTH), LayerNorm(WIDTH)
        self.qkv, self.proj = Linear(WIDTH, 3 * WIDTH), Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = Linear(WIDTH, 4 * WIDTH), Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        """Map [N,P,D] to [N,P,D]."""
        qkv = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, HEADS, WIDTH // HEADS)
        q, k, v = (qkv[:, :, i].swapaxes(1, 2) for i in range(3))
        x = x + self.proj(self.ops.attention(q, k, v).swapaxes(1, 2).reshape(x.shape))
        return x + self.fc2(self.ops.gelu(self.fc1(self.norm2(x))))


class HybridTrunk(Part):
    """The whole trunk, with the interface of a timm vision transformer."""

    embed_dim = num_features = WIDTH
    num_prefix_tokens = PREFIX_TOKENS

    def __init__(self) -> None:
        self.default_cfg: dict[str, Any] = {"input_size": (3, IMAGE_SIZE, IMAGE_SIZE), "num_classes": 0}
        self.patch_embed = CellEmbed()
        self.pos_embed = parameter(1, GRID * GRID, WIDTH, std=0.02)
        self.blocks = [ViTBlock() for _ in range(DEPTH)]
        self.cell_words, self.account = LabelTokens(), StructuredTokens()
        self.photo_patches, self.photo_words = PhotoPatches(), Linear(HEAD_WIDTH, WORDS)

    def mix(self, patches: Any) -> Any:
        """Run embedded patches [N,P,D] through all blocks."""
        x = patches + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x

    def words(self, last: Any) -> Any:
        """Probabilities [N,WORDS] of words that describe a photograph, from the stem's last map [N,P,HEAD_WIDTH]."""
        return self.ops.sigmoid(self.photo_words(last.mean(1)))

    def forward_intermediates(
        self,
        x: Any,
        indices: list[int] | int | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features after chosen blocks, as timm's vision transformers give them.

        Args:
            x: pixels [N,3,S,S].
            indices: blocks (negative ones count from the end), or how many last ones; None means all.
            return_prefix_tokens: pair each map with the structured tokens [N,E,D], for which all blocks run.
            norm: has no effect: after the last block there is always :class:`LabelTokens`, before it never anything.
            stop_early: leave out blocks after the last one asked for.
            output_fmt: ``NCHW`` [N,D,G,G] or ``NLC`` [N,P,D].
            intermediates_only: do not return the pooled result with them.
        """
        if isinstance(indices, int):
            indices = list(range(-indices, 0))
        wanted = {i % DEPTH for i in (range(DEPTH) if indices is None else indices)}
        patches, cells, last, logits = self.patch_embed(x)
        whole = return_prefix_tokens or not intermediates_only
        y, maps, structured = patches + self.pos_embed, [], None
        for i, block in enumerate(self.blocks):
            if stop_early and not whole and i > max(wanted):
                break
            y = block(y)
            if i == DEPTH - 1:
                y, features, labels = self.cell_words(y)
                y = y + self.photo_patches(last, cells)
                if whole:
                    structured = self.account(self.ops.softmax(logits), self.words(last), cells, features, labels)
            if i in wanted:
                maps.append(y if output_fmt == "NLC" else y.swapaxes(1, 2).reshape(-1, WIDTH, GRID, GRID))
        found = [(each, structured) for each in maps] if return_prefix_tokens else maps
        return found if intermediates_only else (self.ops.concatenate((structured, y), 1), found)

    def forward_head(self, tokens: Any, pre_logits: bool = False) -> Any:
        """Pool tokens [N,E+P,D] to [N,D], the mean of the patches."""
        return tokens[:, self.num_prefix_tokens :].mean(1)

    def forward(self, x: Any) -> Any:
        """Pooled features [N,D] of pixels [N,3,S,S]."""
        return self.forward_head(self.forward_intermediates(x)[0])

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Nothing to reset: the trunk has no classifier but the stem's; timm's interface asks for the method."""


class HybridVisual(Part):
    """What open_clip's timm adapter makes of the trunk, without open_clip: the same tensors under the same names."""

    def __init__(self) -> None:
        self.trunk = HybridTrunk()

    def forward_intermediates(
        self, x: Any, *, normalize_intermediates: bool = False, output_extra_tokens: bool = False, **options: Any
    ) -> dict[str, list[Any]]:
        """Intermediates in open_clip's form (``intermediates_only`` is meant)."""
        options["intermediates_only"] = True
        found = self.trunk.forward_intermediates(
            x, norm=normalize_intermediates, return_prefix_tokens=output_extra_tokens, **options
        )
        if not output_extra_tokens:
            return {"image_intermediates": found}
        return {
            "image_intermediates": [patches for patches, _ in found],
            "image_intermediates_prefix": [prefix for _, prefix in found],
        }


@register_tower(HYBRID)
class _HybridLite0(TowerKind):
    """One architecture without options."""

    def shape(self, spec: TowerConfig, image_size: int) -> TowerShape:
        if image_size != IMAGE_SIZE:
            raise ConfigError(f"tower {HYBRID} reads images of {IMAGE_SIZE} pixels a side, not {image_size}.")
        return TowerShape(WIDTH, PREFIX_TOKENS, GRID * GRID, depth=DEPTH, parameters=num_params(HybridVisual()))

    def declared(self) -> HybridVisual:
        return HybridVisual()

    def build(self, spec: TowerConfig, *, image_size: int, pretrained: bool) -> Any:
        from mobillama_v.model.vision.image_tower import FullPrecisionTower
        from mobillama_v.model.vision.parts_torch import to_torch

        self.shape(spec, image_size)  # raises on another size
        if spec.pretrained is not None:
            raise ConfigError(f"tower {HYBRID} has no pretrained weights of its own; they come with the checkpoint.")
        return FullPrecisionTower(to_torch(HybridVisual()), spec)


def register_towers() -> None:
    """Make timm and open_clip know the hybrid tower, so that ``open_clip.create_model(HYBRID)`` builds it."""
    import open_clip
    from timm.models import is_model, register_model

    if not is_model(_TIMM_NAME):
        register_model(vit_hybrid_lite0_s32_224)
    open_clip.add_model_config(_CONFIGS)


def vit_hybrid_lite0_s32_224(pretrained: bool = False, **options: Any) -> Any:
    """timm's entry point of the trunk; timm's options for other heads have no effect on it.

    Raises:
        ConfigError: pretrained weights were asked for.
    """
    from mobillama_v.model.vision.parts_torch import to_torch

    if pretrained:
        raise ConfigError(f"{_TIMM_NAME} has no pretrained weights of its own; they come with the checkpoint.")
    return to_torch(HybridTrunk())
