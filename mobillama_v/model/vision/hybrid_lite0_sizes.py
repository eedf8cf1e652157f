"""Numbers of the hybrid tower, for both who compute it: torch (:mod:`mobillama_v.model.vision.hybrid_lite0`) and numpy
(:mod:`mobillama_v.backends.numpy.hybrid_lite0`).
"""

from __future__ import annotations

IMAGE_SIZE = 224
GRID = 7
WIDTH, HEADS, DEPTH = 256, 8, 3

STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""EfficientNet-Lite0 (Tan & Le, arXiv 1905.11946, without squeeze-and-excitation): repeats, kernel, stride, expansion,
channels of each stage."""
READ = (2, 4, 6)
"""Stages that end the resolutions of strides 8, 16 and 32."""
FINE, MEDIUM, COARSE = (STAGES[i][-1] for i in READ)
"""Channels of the stem's maps of those strides."""
STEM_WIDTH, HEAD_WIDTH = 32, 1280
GATHERED = FINE * 16 + MEDIUM * 4 + COARSE
"""Stem values over one cell of the grid: 4 x 4 of stride 8, 2 x 2 of stride 16, one of stride 32."""

CLASSES, RANKS, SLOTS = 1000, 2, 4
"""Classes of the stem, how many of the likeliest are named, and how many vectors a name has."""
KINDS, KIND_SLOTS = 76, 2
THINGS = 6
"""How many shapes are told, each by one vector: the sum of the words of its size, color, name and place."""
LINES, LETTERS = 2, 7
LINE_SLOTS = LETTERS + 1
"""A line of text is told as its letters, then one vector of color and place."""
TOLD = 2 + 1 + RANKS * SLOTS + KIND_SLOTS + THINGS + LINES * LINE_SLOTS
"""Vectors before the patches."""

PARTS = 4
SHAPES, COLORS, PHOTO = 10, 12, 73
LABELS = 74
"""Labels of a cell: 10 shapes and text, 12 colors, center, large, 12 background colors, 36 characters, photograph."""
COLOR_LABELS, BACKGROUND_LABELS = slice(11, 23), slice(25, 37)
CHARACTERS = 62
"""A to Z, a to z, 0 to 9."""
THING_KINDS = (3, COLORS, SHAPES)
"""Logits of a shape: its size (neither, small, large), color, name."""
LETTER_CHANNELS = 64
"""Of the convolutions that find letters."""
FEATURE_SHARE = 0.5
"""Scale of the standardized features beside the words."""

SURE, UNSURE = 0.5, 0.15
"""Probabilities from which a class is "sure" and "perhaps"."""
STEEP, STEEPER = 40.0, 120.0
"""Of the soft steps at those probabilities, and at the thirds of a picture's side."""
FOUND = 0.3
"""Heat around a peak from which a shape is told."""
APART = 1.75
"""Cells between two letters' middles, one above the other, from which they are of two lines."""
