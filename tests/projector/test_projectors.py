"""Projectors: shapes, which patches are merged, and refusals."""

from __future__ import annotations

import pytest
import torch

from mobillama_v.config import ProjectorConfig
from mobillama_v.errors import ConfigError
from mobillama_v.projector import get_projector


@pytest.mark.parametrize(
    ("spec", "tokens"),
    [
        (ProjectorConfig("linear"), 17),
        (ProjectorConfig("mlp2x_gelu"), 17),
        (ProjectorConfig("pixel_shuffle_mlp", 2), 5),
        (ProjectorConfig("avg_pool_mlp", 4), 2),
    ],
)
def test_shapes_and_token_counts(spec: ProjectorConfig, tokens: int) -> None:
    projector = spec.build(tower_width=6, decoder_width=10)
    assert projector(torch.randn(3, 17, 6), extra=1).shape == (3, tokens, 10)
    assert spec.kind.num_tokens(1, 16) == tokens


@pytest.mark.parametrize("kind", ["pixel_shuffle_mlp", "avg_pool_mlp"])
def test_a_visual_token_sees_its_square_only(kind: str) -> None:
    projector = ProjectorConfig(kind, 2).build(tower_width=6, decoder_width=10)
    features = torch.randn(1, 16, 6)
    changed = features.clone()
    changed[0, 6] += 1  # row 1, column 2 of the 4x4 grid: the upper right square
    moved = (projector(features) - projector(changed)).abs().amax(-1)[0]
    assert (moved > 1e-6).tolist() == [False, True, False, False]


def test_average_pooling_keeps_the_mean_and_shuffle_the_values() -> None:
    features = torch.arange(16.0).view(1, 16, 1)
    average, shuffle = get_projector("avg_pool_mlp", 2), get_projector("pixel_shuffle_mlp", 2)
    assert average.merge(features)[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert shuffle.merge(features)[0, 1].tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize(("kind", "factor"), [("linear", 2), ("avg_pool_mlp", 1), ("perceiver", 1)])
def test_impossible_specs_are_refused(kind: str, factor: int) -> None:
    with pytest.raises(ConfigError):
        ProjectorConfig(kind, factor)


def test_a_grid_that_does_not_divide_is_refused() -> None:
    projector = ProjectorConfig("avg_pool_mlp", 3).build(tower_width=6, decoder_width=10)
    with pytest.raises(ConfigError, match="cannot merge 16 patches"):
        projector(torch.randn(1, 16, 6))
