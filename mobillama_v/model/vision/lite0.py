"""EfficientNet-Lite0, the convolutional stem of the hybrid tower.

It was trained on ImageNet and knows 1,000 kinds of photographed things (Tan & Le, arXiv 1905.11946; Lite means without
squeeze-and-excitation and with ReLU6).

Shapes: N images, S = 224 image side, G = 7 side of the grid of patches, P = G*G patches.
"""

from __future__ import annotations

from typing import Any

from mobillama_v.model.vision.parts import Conv, Linear, Part

IMAGE_SIZE = 224
GRID = 7

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Repeats, kernel, stride, expansion and channels of each stage."""
READ = (2, 4, 6)
"""Stages that end the resolutions of strides 8, 16 and 32."""
FINE, MEDIUM, COARSE = (STAGES[i][-1] for i in READ)
"""Channels of the stem's maps of those strides."""
STEM_WIDTH, HEAD_WIDTH, CLASSES = 32, 1280, 1000
GATHERED = FINE * 16 + MEDIUM * 4 + COARSE
"""Stem values over one cell of the grid: 4 x 4 of stride 8, 2 x 2 of stride 16, one of stride 32."""


class InvertedResidual(Part):
    """Expand, depthwise, project (MobileNetV2, arXiv 1801.04381); the first stage does not expand."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        wide = inputs * expansion
        self.expand = Conv(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = Conv(wide, wide, kernel, stride, groups=wide)
        self.project = Conv(wide, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Any) -> Any:
        """Map [N,H,W,C] to [N,H/stride,W/stride,C']."""
        y = x if self.expand is None else self.ops.relu6(self.expand(x))
        y = self.project(self.ops.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class Lite0(Part):
    """The stem with its classifier; batch norms are folded into the convolutions."""

    def __init__(self) -> None:
        self.conv_stem = Conv(3, STEM_WIDTH, 3, 2)
        self.stages: list[list[InvertedResidual]] = []
        inputs = STEM_WIDTH
        for repeats, kernel, stride, expansion, outputs in STAGES:
            blocks = []
            for repeat in range(repeats):
                blocks.append(InvertedResidual(inputs, outputs, kernel, 1 if repeat else stride, expansion))
                inputs = outputs
            self.stages.append(blocks)
        self.conv_head = Conv(inputs, HEAD_WIDTH, 1)
        self.classifier = Linear(HEAD_WIDTH, CLASSES)

    def forward(self, pixel_values: Any) -> tuple[Any, Any, Any]:
        """Map pixels [N,3,S,S] to what the maps say about each cell of the grid [N,P,GATHERED], the last map
        [N,P,HEAD_WIDTH], and class logits [N,1000]."""
        x, maps = self.ops.relu6(self.conv_stem(self.ops.channels_last(pixel_values))), []
        for i, stage in enumerate(self.stages):
            for block in stage:
                x = block(x)
            if i in READ:
                maps.append(x)
        cells = self.gather(maps)
        last = self.last_map(cells)
        return cells, last, self.classifier(last.mean(1))

    def last_map(self, cells: Any) -> Any:
        """The map [N,P,HEAD_WIDTH] whose mean is classified, from gathered cells [N,P,GATHERED]."""
        return self.ops.relu6(self.conv_head(cells[:, None, :, -COARSE:]))[:, 0]

    def gather(self, maps: list[Any]) -> Any:
        """Put the values of maps [N,side,side,C] over each cell of the grid beside each other, [N,P,GATHERED]."""
        cells = []
        for x in maps:
            images, step, channels = len(x), x.shape[1] // GRID, x.shape[3]
            x = x.reshape(images, GRID, step, GRID, step, channels).swapaxes(2, 3)
            cells.append(x.reshape(images, GRID * GRID, step * step * channels))
        return self.ops.concatenate(cells, 2)
