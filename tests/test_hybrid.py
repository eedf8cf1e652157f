"""The hybrid tower: the same model directly and through open_clip, its class part, and its stem against timm's."""

from __future__ import annotations

import pytest
import torch

from mobillama_v import hybrid
from mobillama_v.errors import ConfigError
from mobillama_v.specs import HYBRID, TowerSpec
from mobillama_v.vision import build_tower, register_towers

SPEC = TowerSpec(model=HYBRID, feature_layer=-1, select="cls_patch")


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    tower = build_tower(SPEC, image_size=224).eval()
    torch.nn.init.normal_(tower.visual.trunk.class_names.table)
    return tower


def test_it_is_an_open_clip_model(tower) -> None:
    import open_clip

    register_towers()
    register_towers()  # once more changes nothing
    visual = open_clip.create_model(HYBRID).visual.eval()
    visual.load_state_dict(tower.visual.state_dict(), strict=True)
    pixels = torch.randn(2, 3, 224, 224)
    options = {"normalize_intermediates": False, "stop_early": True, "intermediates_only": True}
    with torch.no_grad():
        theirs = visual.forward_intermediates(
            pixels, indices=[-1], output_fmt="NLC", output_extra_tokens=True, **options
        )
        expected = torch.cat((theirs["image_intermediates_prefix"][0], theirs["image_intermediates"][0]), dim=1)
        torch.testing.assert_close(tower(pixels), expected)
        assert visual(pixels).shape == (2, hybrid.WIDTH)


def test_shapes_and_counts(tower) -> None:
    assert (tower.width, tower.extra, tower.patches) == (256, 12, 49)
    trunk = tower.visual.trunk
    with torch.no_grad():
        last, middle = trunk.forward_intermediates(torch.randn(1, 3, 224, 224), indices=[2, 0], intermediates_only=True)
    assert last.shape == middle.shape == (1, 256, 7, 7) and not torch.equal(last, middle)


def test_the_class_part_names_the_likeliest_classes(tower) -> None:
    names = tower.visual.trunk.class_names
    probabilities = torch.zeros(1, 1000)
    probabilities[0, [7, 3, 9]] = torch.tensor([0.64, 0.25, 0.09])
    with torch.no_grad():
        found = names(probabilities)[0].view(3, 4, 256)
        for slot, (index, amplitude) in enumerate(((7, 0.8), (3, 0.5), (9, 0.3))):
            torch.testing.assert_close(found[slot], names.table[index] * amplitude)


def test_cells_are_gathered_where_they_are() -> None:
    maps = [torch.zeros(1, channels, 224 // s, 224 // s) for channels, s in ((40, 8), (112, 16), (320, 32))]
    maps[0][:, :, 4 * 2 + 1, 4 * 5 + 3] = 1  # stride 8, in cell (2, 5)
    maps[2][:, :, 6, 0] = 2
    cells = hybrid.gather_cells(maps)[0].view(7, 7, hybrid.GATHERED)
    assert cells[2, 5].sum() == 40 and cells[6, 0].sum() == 640 and cells.sum() == 680


@pytest.mark.parametrize(("side", "stride"), [(7, 2), (8, 2), (9, 1)])
def test_same_padding_is_tensorflows(side: int, stride: int) -> None:
    from timm.layers import create_conv2d

    ours = hybrid.ConvSame(2, 3, 5, stride)
    theirs = create_conv2d(2, 3, 5, stride=stride, padding="same", bias=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 2, side, side)
    torch.testing.assert_close(ours(x), theirs(x))


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="224 pixels a side, not 336"):
        build_tower(SPEC, image_size=336)
    with pytest.raises(ConfigError, match="no pretrained weights of its own"):
        build_tower(TowerSpec(model=HYBRID, pretrained="openai"), image_size=224)
