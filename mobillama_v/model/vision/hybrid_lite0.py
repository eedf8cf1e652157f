"""The image tower of the embedded model: a hybrid ViT whose stem is EfficientNet-Lite0.

A convolutional stem before a transformer is the ViT paper's hybrid (arXiv 2010.11929, section 3.1). This stem was
trained on ImageNet and knows 1,000 kinds of photographed things. Its feature maps of three resolutions are gathered
over a 7 x 7 grid and mixed by transformer blocks: where is what, in which color. That is the **patch part** of the
output; in the place of a CLS token stands an **account** of what was recognized, in words
(:mod:`mobillama_v.model.vision.structured_tokens`).

Plain torch: neither timm nor open_clip is imported. :func:`mobillama_v.model.vision.clip.register_towers` makes them
know it.

Shapes: N images, S = 224 image side, G = 7 grid side, P = G*G patches, D width, E vectors of the account.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobillama_v.model.vision.hybrid_lite0_sizes import (
    CLASSES,
    DEPTH,
    GATHERED,
    GRID,
    HEAD_WIDTH,
    HEADS,
    IMAGE_SIZE,
    READ,
    STAGES,
    STEM_WIDTH,
    TOLD,
    WIDTH,
)
from mobillama_v.model.vision.structured_tokens import LabelTokens, StructuredTokens


class ConvSame(nn.Conv2d):
    """A convolution (its batch norm folded in) padded as TensorFlow does: the odd pixel at the end."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,H,W] to [N,C',ceil(H/stride),ceil(W/stride)]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, padding=kernel // 2, groups=self.groups)
        total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
        x = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
        return F.conv2d(x, self.weight, self.bias, stride, groups=self.groups)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (MobileNetV2, arXiv 1801.04381); the first stage does not expand."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = ConvSame(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = ConvSame(wide, wide, kernel, stride, groups=wide)
        self.project = ConvSame(wide, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,C,H,W] to [N,C',H/stride,W/stride]."""
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class Lite0(nn.Module):
    """EfficientNet-Lite0 with its classifier, giving the feature maps of strides 8, 16 and 32 and the class logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = ConvSame(3, STEM_WIDTH, 3, 2)
        stages, inputs = [], STEM_WIDTH
        for repeats, kernel, stride, expansion, outputs in STAGES:
            blocks = []
            for repeat in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, kernel, 1 if repeat else stride, expansion))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.conv_head = ConvSame(inputs, HEAD_WIDTH, 1)
        self.classifier = nn.Linear(HEAD_WIDTH, CLASSES)

    def forward(self, pixel_values: Tensor) -> tuple[list[Tensor], Tensor]:
        """Map [N,3,S,S] to ([N,40,S/8,S/8], [N,112,S/16,S/16], [N,320,S/32,S/32]) and logits [N,1000]."""
        x = F.relu6(self.conv_stem(pixel_values.contiguous(memory_format=torch.channels_last)))
        maps = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in READ:
                maps.append(x)
        pooled = F.relu6(self.conv_head(x)).mean((2, 3))
        return maps, self.classifier(pooled)


def gather_cells(maps: list[Tensor]) -> Tensor:
    """Everything that the stem's maps say about each cell of the grid, [N,P,GATHERED]."""
    cells = []
    for x in maps:
        images, channels, side, _ = x.shape
        step = side // GRID
        x = x.reshape(images, channels, GRID, step, GRID, step).permute(0, 2, 4, 3, 5, 1)
        cells.append(x.reshape(images, GRID * GRID, step * step * channels))
    return torch.cat(cells, dim=-1)


class CellEmbed(nn.Module):
    """Stem and patch embedding: pixels to patch tokens and class logits."""

    grid_size = (GRID, GRID)

    def __init__(self) -> None:
        super().__init__()
        self.stem = Lite0()
        self.norm = nn.LayerNorm(GATHERED)
        self.fc1 = nn.Linear(GATHERED, 2 * WIDTH)
        self.fc2 = nn.Linear(2 * WIDTH, WIDTH)

    def embed(self, cells: Tensor) -> Tensor:
        """Map gathered cells [N,P,GATHERED] to patch tokens [N,P,D]."""
        return self.fc2(F.gelu(self.fc1(self.norm(cells))))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map [N,3,S,S] to patch tokens [N,P,D], the cells that they embed [N,P,GATHERED] and class logits [N,1000]."""
        maps, logits = self.stem(pixel_values)
        cells = gather_cells(maps)
        return self.embed(cells), cells, logits


class ViTBlock(nn.Module):
    """A pre-norm transformer block (arXiv 2010.11929)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,P,D] to [N,P,D]."""
        images, patches, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(images, patches, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.proj(attended)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class HybridTrunk(nn.Module):
    """The whole trunk, with the attributes and the ``forward_intermediates`` of a timm vision transformer."""

    embed_dim = num_features = WIDTH
    num_prefix_tokens = TOLD

    def __init__(self) -> None:
        super().__init__()
        self.default_cfg: dict[str, Any] = {"input_size": (3, IMAGE_SIZE, IMAGE_SIZE), "num_classes": 0}
        self.patch_embed = CellEmbed()
        self.pos_embed = nn.Parameter(torch.randn(1, GRID * GRID, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(ViTBlock() for _ in range(DEPTH))
        self.cell_words, self.account = LabelTokens(), StructuredTokens()

    def mix(self, patches: Tensor) -> Tensor:
        """Run embedded patches [N,P,D] through all blocks."""
        x = patches + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x

    def forward_intermediates(
        self,
        x: Tensor,
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
            return_prefix_tokens: pair each map with the account [N,E,D], for which all blocks run.
            norm: has no effect: after the last block there is always :class:`LabelTokens`, before it never anything.
            stop_early: leave out blocks after the last one asked for.
            output_fmt: ``NCHW`` [N,D,G,G] or ``NLC`` [N,P,D].
            intermediates_only: do not return the pooled result with them.
        """
        if isinstance(indices, int):
            indices = list(range(-indices, 0))
        wanted = {i % DEPTH for i in (range(DEPTH) if indices is None else indices)}
        patches, cells, logits = self.patch_embed(x)
        told = return_prefix_tokens or not intermediates_only
        y, maps, account = patches + self.pos_embed, [], None
        for i, block in enumerate(self.blocks):
            if stop_early and not told and i > max(wanted):
                break
            y = block(y)
            if i == DEPTH - 1:
                y, features, labels = self.cell_words(y)
                account = self.account(logits.softmax(-1), cells, features, labels) if told else None
            if i in wanted:
                maps.append(y if output_fmt == "NLC" else y.transpose(1, 2).unflatten(2, (GRID, GRID)))
        found = [(each, account) for each in maps] if return_prefix_tokens else maps
        return found if intermediates_only else (torch.cat((account, y), dim=1), found)  # type: ignore[list-item]

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool tokens [N,E+P,D] to [N,D], the mean of the patches."""
        return tokens[:, self.num_prefix_tokens :].mean(1)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features [N,D] of pixels [N,3,S,S]."""
        return self.forward_head(self.forward_intermediates(x)[0])

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Nothing to reset: the trunk has no classifier but the stem's; timm's interface asks for the method."""


class HybridVisual(nn.Module):
    """What open_clip's timm adapter makes of the trunk, without open_clip: the same tensors under the same names."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = HybridTrunk()

    def forward_intermediates(
        self, x: Tensor, *, normalize_intermediates: bool = False, output_extra_tokens: bool = False, **options: Any
    ) -> dict[str, list[Tensor]]:
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
