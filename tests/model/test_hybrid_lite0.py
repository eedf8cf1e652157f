"""The hybrid tower: the same model directly and through open_clip, its structured tokens, its padding."""

from __future__ import annotations

import pytest
import torch

from mobillama_v.errors import ConfigError
from mobillama_v.model.vision import HYBRID, TowerConfig, build_tower
from mobillama_v.model.vision.hybrid_lite0 import register_towers
from mobillama_v.model.vision.lite0 import GATHERED, Lite0
from mobillama_v.model.vision.parts_torch import TORCH, ConvSame, to_torch
from mobillama_v.model.vision.structured_tokens import (
    PHOTO,
    WIDTH,
    WORDS,
    ClassTokens,
    PositionTokens,
    ShapeDetector,
    TextReader,
    find_peaks,
)

SPEC = TowerConfig(model=HYBRID, feature_layer=-1, select="cls_patch")


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    tower = build_tower(SPEC, image_size=224).eval()
    for parameter in tower.visual.trunk.account.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
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
        assert visual(pixels).shape == (2, WIDTH)


def test_shapes_and_counts(tower) -> None:
    assert (tower.width, tower.extra, tower.patches) == (256, 35, 49)
    trunk = tower.visual.trunk
    with torch.no_grad():
        last, middle = trunk.forward_intermediates(torch.randn(1, 3, 224, 224), indices=[2, 0], intermediates_only=True)
    assert last.shape == middle.shape == (1, 256, 7, 7) and not torch.equal(last, middle)


def test_photographs_are_described_by_the_names_of_their_likeliest_classes() -> None:
    names = to_torch(ClassTokens())
    for parameter in names.parameters():
        torch.nn.init.normal_(parameter)
    torch.nn.init.zeros_(names.kind_of)
    names.kind_of[[3, 7], 5] = 1
    probabilities = torch.zeros(2, 1000)
    probabilities[0, [7, 3, 9]] = torch.tensor([0.8, 0.15, 0.05])
    probabilities[1, [9, 7]] = torch.tensor([0.3, 0.2])
    with torch.no_grad():
        how, *rest = names(probabilities)[0].split((1, 4, 4, 2))
        expected = (names.how[:1], names.table[7], names.table[3], names.kinds[5])
        for found, wanted in zip((how, *rest), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=0.01, rtol=0.01)
        how, first, second, kind = names(probabilities)[1].split((1, 4, 4, 2))
        torch.testing.assert_close(how, names.how[1:2], atol=0.02, rtol=0.02)  # "perhaps", and of no kind
        assert torch.equal(first, names.table[9]) and torch.equal(second, names.table[7]) and kind.abs().max() < 1e-4


def spots(rows: int, columns: int, classes: int, peaks: list[tuple]) -> torch.Tensor:
    """Logits that find (row, column) spots with the given classes and no other."""
    logits = torch.full((1, rows, columns, 1 + classes), -9.0)
    for (y, x), *chosen in peaks:
        logits[0, y, x, 0] = 3
        for index in chosen:
            logits[0, y, x, 1 + index] = 50
    return logits


def test_shapes_come_in_reading_order_and_absent_ones_are_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    things, places = to_torch(ShapeDetector()), to_torch(PositionTokens())
    for parameter in (*things.parameters(), *places.parameters()):
        torch.nn.init.normal_(parameter)
    colors = torch.randn(12, 256)
    shapes = [((2, 11), 1, 4, 7), ((2, 3), 2, 0, 9), ((7, 6), 0, 11, 1)]  # place, size, color, shape
    logits = spots(14, 14, 25, [(at, size, 3 + color, 15 + shape) for at, size, color, shape in shapes])
    monkeypatch.setattr(things, "logits", lambda features: logits)
    with torch.no_grad():
        found = things(torch.zeros(1, 49, 256), colors, places)[0]
        region = (places.rows[0] + places.columns[0], places.rows[0] + places.columns[1], places.center)
        for slot, (number, words) in enumerate(zip((1, 0, 2), region, strict=True)):
            (y, x), size, color, shape = shapes[number]
            at = torch.tensor([(y + 0.5) / 7 - 1, (x + 0.5) / 7 - 1]) @ places.axes
            expected = things.thing + things.sizes[size] + colors[color] + things.names[shape] + words + at
            torch.testing.assert_close(found[slot], expected, atol=0.1, rtol=0.02)
        assert not found[3:].any()


def test_a_heat_that_spots_share_is_one_thing_between_them() -> None:
    logits = torch.full((1, 14, 28, 3), -9.0)
    logits[0, 5, 8, 0], logits[0, 5, 9, 0], logits[0, 11, 20, 0] = -0.4, -0.5, -3
    found, where, rest = find_peaks(TORCH, logits, 4)
    assert found.tolist() == [[True, False, False, False]] and rest.shape == (1, 4, 2)  # the third is too cold
    torch.testing.assert_close(where[0, 0], torch.tensor([5.5, 9.0 / 2]), atol=0.05, rtol=0)


def test_lines_are_read_letter_by_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    lines, places = to_torch(TextReader()), to_torch(PositionTokens())
    for parameter in (lines.first, lines.later, *places.parameters()):
        torch.nn.init.normal_(parameter)
    # "NO" with the O a little lower, and under it "5"; letters may be one spot apart.
    logits = spots(14, 28, 62, [((3, 12), 14), ((2, 9), 13), ((10, 20), 57)])
    monkeypatch.setattr(lines, "logits", lambda cells, features: logits)
    seen = torch.zeros(1, 49, GATHERED), torch.zeros(1, 49, 256)
    tints = torch.zeros(1, 14, 14, 12)
    tints[0, 2, 4, 3] = tints[0, 3, 6, 3] = tints[0, 10, 10, 8] = 0.9
    colors = torch.randn(12, 256)
    with torch.no_grad():
        found = lines(*seen, tints, colors, places)[0].view(2, 8, 256)
        first, second = (torch.tensor([y / 7 - 1, x / 7 - 1]) @ places.axes for y, x in ((3, 5.5), (10.5, 10.25)))
        expected = [lines.first[13], lines.later[14], *[torch.zeros(256)] * 5]
        expected.append(lines.text + colors[3] + places.rows[0] + first)
        torch.testing.assert_close(found[0], torch.stack(expected), atol=0.1, rtol=0.02)
        expected = [lines.first[57], *[torch.zeros(256)] * 6]
        expected.append(lines.text + colors[8] + places.rows[1] + places.columns[1] + second)
        torch.testing.assert_close(found[1], torch.stack(expected), atol=0.1, rtol=0.02)
        monkeypatch.setattr(lines, "logits", lambda cells, features: torch.full_like(logits, -9.0))
        assert not lines(*seen, tints, colors, places).any()


def test_photographs_and_drawings_have_slots_of_their_own(tower) -> None:
    account = tower.visual.trunk.account
    labels = torch.zeros(2, 49, 4, 74)
    labels[0, ..., PHOTO] = 1
    labels[1, ..., 25 + 6] = 1
    shares = torch.zeros(2, WORDS)
    shares[:, 700], shares[:, 3] = 0.9, 0.4
    with torch.no_grad():
        account.words.table.copy_(torch.randn(WORDS, 256))
        account.words.sure.fill_(1.0)
        photo, drawing = account(
            torch.rand(2, 1000),
            shares,
            torch.randn(2, 49, GATHERED),
            torch.randn(2, 49, 256),
            labels.flatten(2),
        )
    torch.testing.assert_close(photo[:2], torch.stack((account.medium[0], photo[1])))
    assert photo[1:12].abs().amax(-1).all() and photo[12:19].abs().max() < 1e-6
    torch.testing.assert_close(photo[19:21], account.words.table[[700, 3]] + torch.tensor([[0.9], [0.4]]))
    torch.testing.assert_close(drawing[0], account.medium[1])
    assert drawing[1:12].abs().max() < 1e-6
    torch.testing.assert_close(drawing[12], account.colors[6])


def test_cells_are_gathered_where_they_are() -> None:
    maps = [torch.zeros(1, 224 // s, 224 // s, channels) for channels, s in ((40, 8), (112, 16), (320, 32))]
    maps[0][:, 4 * 2 + 1, 4 * 5 + 3] = 1  # stride 8, in cell (2, 5)
    maps[2][:, 6, 0] = 2
    cells = to_torch(Lite0()).gather(maps)[0].view(7, 7, GATHERED)
    assert cells[2, 5].sum() == 40 and cells[6, 0].sum() == 640 and cells.sum() == 680


def test_letters_are_looked_for_where_the_stem_saw_them() -> None:
    torch.manual_seed(0)
    lines = to_torch(TextReader())
    gather = to_torch(Lite0()).gather
    maps = [torch.randn(1, 224 // s, 224 // s, channels) for channels, s in ((40, 8), (112, 16), (320, 32))]
    features = torch.randn(1, 49, 256)
    with torch.no_grad():
        before = lines.logits(gather(maps), features)
        maps[0][0, 8:10, 20] *= -1  # stride 8, rows 8 and 9: spot (4, 20)
        moved = (lines.logits(gather(maps), features) - before).abs().amax(-1)[0]
        spots = (moved > 1e-4).nonzero()
        assert moved.shape == (14, 28) and moved[4, 20] > 1e-3
        assert (spots - torch.tensor([4, 20])).abs().amax() == 3  # three convolutions of 3 x 3
        maps[0][0, 8:10, 20] *= -1
        maps[1][0, 6, 3] *= -1
        moved = (lines.logits(gather(maps), features) - before).abs().amax(-1)[0]
        assert moved[6, 6:8].min() > 1e-3 and not moved[:3].any() and not moved[:, 10:].any()


@pytest.mark.parametrize(("side", "stride"), [(7, 2), (8, 2), (9, 1)])
def test_same_padding_is_tensorflows(side: int, stride: int) -> None:
    from timm.layers import create_conv2d

    ours = ConvSame(2, 3, 5, stride)
    theirs = create_conv2d(2, 3, 5, stride=stride, padding="same", bias=True)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 2, side, side)
    torch.testing.assert_close(ours(x.permute(0, 2, 3, 1)), theirs(x).permute(0, 2, 3, 1))


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="224 pixels a side, not 336"):
        build_tower(SPEC, image_size=336)
    with pytest.raises(ConfigError, match="no pretrained weights of its own"):
        build_tower(TowerConfig(model=HYBRID, pretrained="openai"), image_size=224)
