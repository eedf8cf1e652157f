"""What the hybrid tower tells a language model in words.

A small decoder takes very long to find out how to look at feature vectors, but knows at once what to do with words. So
the tower names what it detects, in vectors that start from the decoder's own embeddings (a concept bottleneck, Koh et
al., arXiv 2007.04612), and puts them before its patch features, as YOLOS puts detection tokens beside the patches (Fang
et al., arXiv 2106.00666):

- of a **photograph**: how sure the stem's classifier is, the names of its two likeliest classes, and their kind: ConSE,
  which embeds an image by its class names (Norouzi et al., arXiv 1312.5650);
- of a **drawing**: the background's color; every shape with size, color, name and place; and every line of text, letter
  by letter. Shapes and letters are the peaks of heat maps (Objects as Points, Zhou et al., arXiv 1904.07850).

Shapes: N images, G grid side, P = G*G patches, D width, L labels of a cell, C = 2G cells along a side (4 in a patch).
Places are measured in cells, from 0 to C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobillama_v.model.vision.hybrid_lite0_sizes import (
    APART,
    BACKGROUND_LABELS,
    CHARACTERS,
    CLASSES,
    COLOR_LABELS,
    COLORS,
    FEATURE_SHARE,
    FINE,
    FOUND,
    GRID,
    KIND_SLOTS,
    KINDS,
    LABELS,
    LETTER_CHANNELS,
    LETTERS,
    LINES,
    MEDIUM,
    PARTS,
    PHOTO,
    RANKS,
    SHAPES,
    SLOTS,
    STEEP,
    STEEPER,
    SURE,
    THING_KINDS,
    THINGS,
    UNSURE,
    WIDTH,
)


class LabelTokens(nn.Module):
    """The patch part in words: what each cell shows, as label probabilities x learned vectors, and where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.labels = nn.Linear(WIDTH, PARTS * LABELS)
        self.table = nn.Parameter(torch.zeros(PARTS * LABELS, WIDTH))
        self.place = nn.Parameter(torch.zeros(1, GRID * GRID, WIDTH))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map the last block's output [N,P,D] to the patch part [N,P,D], standardized features [N,P,D] and label
        probabilities [N,P,4*L]."""
        features = self.norm(x)
        told = self.labels(features).sigmoid()
        return FEATURE_SHARE * features + told @ self.table + self.place, features, told


class ClassTokens(nn.Module):
    """The likeliest classes in words. ``table`` [1000,SLOTS,D] holds their names; unused slots of a name are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(CLASSES, SLOTS, WIDTH))
        self.how = nn.Parameter(torch.zeros(3, WIDTH))
        self.kinds = nn.Parameter(torch.zeros(KINDS, KIND_SLOTS, WIDTH))
        self.kind_of = nn.Parameter(torch.zeros(CLASSES, KINDS), requires_grad=False)

    def forward(self, probabilities: Tensor) -> Tensor:
        """Map class probabilities [N,1000] to [N,1+RANKS*SLOTS+KIND_SLOTS,D]: how sure, names, kind."""
        top, classes = probabilities.topk(RANKS, dim=-1)
        sure, unsure = ((STEEP * (top[:, 0] - bound)).sigmoid() for bound in (SURE, UNSURE))
        how = torch.stack((sure, (1 - sure) * unsure, (1 - sure) * (1 - unsure)), dim=-1) @ self.how
        mass, kind = (probabilities @ self.kind_of).max(-1)
        kinds = self.kinds[kind] * (STEEP * (mass - SURE)).sigmoid()[:, None, None]
        return torch.cat((how[:, None], self.table[classes].flatten(1, 2), kinds), dim=1)


class PositionTokens(nn.Module):
    """Words of the nine regions, and a finer scale: how far down and to the right, along two vectors of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Parameter(torch.zeros(2, WIDTH)), nn.Parameter(torch.zeros(2, WIDTH))
        self.center = nn.Parameter(torch.zeros(WIDTH))
        self.axes = nn.Parameter(torch.zeros(2, WIDTH))

    def forward(self, where: Tensor) -> Tensor:
        """Map places [...,2], down and to the right, to the sum of their words [...,D]: "top left", "center"."""
        first, last = ((STEEPER * (bound - where / (2 * GRID))).sigmoid() for bound in (1 / 3, 2 / 3))
        ends = torch.stack((first, 1 - last), dim=-1)  # [...,2,2]
        words = ends[..., 0, :] @ self.rows + ends[..., 1, :] @ self.columns
        middle = (last - first).prod(-1, keepdim=True) * self.center
        return words + middle + (where / GRID - 1) @ self.axes


def find_peaks(logits: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The hottest peaks of a heat map, each with what else is said there.

    Args:
        logits: of all spots, [N,rows,columns,1+K]: the heat of a middle, then K others.
        most: how many.

    Returns:
        Whether there is something [N,most], where [N,most,2], and the other logits there [N,most,K].
    """
    rows, columns = logits.shape[1:3]
    heat = logits[..., 0].sigmoid()
    around = F.unfold(heat[:, None], 3, padding=1).unflatten(2, (rows, columns))  # [N,9,rows,columns]
    peak = heat == around.amax(1)
    score, spots = torch.where(peak, around.sum(1), 0.0).flatten(1).topk(most, dim=-1)
    shares = around.flatten(2).gather(2, spots[:, None].expand(-1, 9, -1))
    shares = F.normalize(shares, p=1, dim=1).transpose(1, 2)  # [N,most,9]
    off = torch.stack((shares @ _DOWN.to(shares), shares @ _RIGHT.to(shares)), dim=-1)
    where = torch.stack((spots // columns, spots % columns), dim=-1) + 0.5 + off
    where = where * (2 * GRID / torch.tensor([rows, columns], dtype=where.dtype, device=where.device))
    there = logits.flatten(1, 2).gather(1, spots[..., None].expand(-1, -1, logits.shape[-1]))
    return score > FOUND, where, there[..., 1:]


_DOWN = torch.tensor([-1.0] * 3 + [0.0] * 3 + [1.0] * 3)
_RIGHT = torch.tensor([-1.0, 0.0, 1.0] * 3)


class ShapeDetector(nn.Module):
    """Shapes, told in reading order."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, PARTS * (1 + sum(THING_KINDS)))
        self.sizes = nn.Parameter(torch.zeros(3, WIDTH))
        self.names = nn.Parameter(torch.zeros(SHAPES, WIDTH))
        self.thing = nn.Parameter(torch.zeros(WIDTH))

    def logits(self, features: Tensor) -> Tensor:
        """Map standardized features [N,P,D] to logits of all cells [N,C,C,1+25]."""
        return over_picture(self.fc2(F.gelu(self.fc1(features))).unflatten(-1, (2, 2, 1 + sum(THING_KINDS))))

    def forward(self, features: Tensor, colors: Tensor, places: PositionTokens) -> Tensor:
        """Map standardized features [N,P,D] and the colors' words [12,D] to [N,THINGS,D].

        Shapes beyond the ones found are zero.
        """
        found, where, kinds = find_peaks(self.logits(features), THINGS)
        sizes, tints, names = (each.softmax(-1) for each in kinds.split(THING_KINDS, dim=-1))
        told = self.thing + sizes @ self.sizes + tints @ colors + names @ self.names + places(where)
        third = (where[..., 0] * 3 / (2 * GRID)).floor()
        order = (third * 2 * GRID + where[..., 1] + torch.where(found, 0, 9 * GRID)).argsort(dim=-1, stable=True)
        told = told * found[..., None]
        return told.gather(1, order[..., None].expand_as(told))


class TextReader(nn.Module):
    """Lines of text, told letter by letter.

    Letters are small: they are found by convolutions over the stem's maps of strides 8 and 16 and the patches'
    features, over spots of 16 x 8 pixels, since letters may stand closer beside each other than a cell is wide.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm8, self.norm16 = nn.LayerNorm(FINE), nn.LayerNorm(MEDIUM)
        self.fine = nn.Conv2d(FINE, LETTER_CHANNELS, 3, (2, 1), padding=1)
        self.medium, self.coarse = nn.Linear(MEDIUM, LETTER_CHANNELS), nn.Linear(WIDTH, LETTER_CHANNELS)
        self.conv1 = nn.Conv2d(LETTER_CHANNELS, LETTER_CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(LETTER_CHANNELS, 2 * LETTER_CHANNELS, 3, padding=1)
        self.out = nn.Linear(2 * LETTER_CHANNELS, 1 + CHARACTERS)
        self.first = nn.Parameter(torch.zeros(CHARACTERS, WIDTH))
        self.later = nn.Parameter(torch.zeros(CHARACTERS, WIDTH))
        self.text = nn.Parameter(torch.zeros(WIDTH))

    def logits(self, cells: Tensor, features: Tensor) -> Tensor:
        """Map gathered stem values [N,P,GATHERED] and standardized features [N,P,D] to logits [N,C,2C,1+62]."""
        fine, medium, _ = cells.split((16 * FINE, 4 * MEDIUM, cells.shape[-1] - 16 * FINE - 4 * MEDIUM), dim=-1)
        fine = self.norm8(over_picture(fine.unflatten(-1, (4, 4, FINE)))).permute(0, 3, 1, 2)
        medium = self.medium(self.norm16(over_picture(medium.unflatten(-1, (2, 2, MEDIUM)))))
        coarse = self.coarse(features).unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
        x = self.fine(fine) + medium.permute(0, 3, 1, 2).repeat_interleave(2, 3)
        x = x + coarse.repeat_interleave(2, 2).repeat_interleave(4, 3)
        x = F.relu(self.conv2(F.relu(self.conv1(F.relu(x)))))
        return self.out(x.permute(0, 2, 3, 1))

    def forward(self, cells: Tensor, features: Tensor, tints: Tensor, colors: Tensor, places: PositionTokens) -> Tensor:
        """Map gathered stem values [N,P,GATHERED] and standardized features [N,P,D] to [N,LINES*LINE_SLOTS,D].

        Args:
            cells: see above.
            features: see above.
            tints: probabilities of colors in each cell, [N,C,C,12].
            colors: their words, [12,D].
            places: words of places.
        """
        found, where, letters = find_peaks(self.logits(cells, features), LINES * LETTERS)
        line = found.long() * (1 + (where[..., 0] > _between(found, where[..., 0])[:, None]))  # 1, 2, or 0 for nothing
        order = (torch.where(found, line, 3) * 2 * GRID + where[..., 1]).argsort(dim=-1, stable=True)
        line, where = line.gather(1, order), where.gather(1, order[..., None].expand_as(where))
        shares = letters.softmax(-1).gather(1, order[..., None].expand_as(letters))
        row, column = where.long().clamp(0, 2 * GRID - 1).unbind(-1)
        tint = tints.flatten(1, 2).gather(1, (row * 2 * GRID + column)[..., None].expand(-1, -1, COLORS))
        told = []
        for number in range(1, LINES + 1):
            mine = line == number
            place = mine.cumsum(-1) - 1
            slot = F.one_hot(torch.where(mine & (place < LETTERS), place, LETTERS), LETTERS + 1)[..., :LETTERS]
            spelled = slot.to(shares).transpose(1, 2) @ shares  # [N,LETTERS,CHARACTERS]
            weights = F.normalize(mine.to(where), p=1, dim=-1)[:, None]
            color = F.normalize((weights @ tint) ** 4, p=1, dim=-1) @ colors
            right = torch.where(mine, where[..., 1], -torch.inf).amax(-1)
            left = torch.where(mine, where[..., 1], torch.inf).amin(-1)
            written = mine.any(-1)
            across = torch.where(written, (left + right) / 2, 0.0)
            middle = torch.stack(((weights @ where[..., :1])[:, 0, 0], across), dim=-1)
            line_words = (self.text + color[:, 0] + places(middle)) * written[:, None]
            told += [spelled[:, :1] @ self.first, spelled[:, 1:] @ self.later, line_words[:, None]]
        return torch.cat(told, dim=1)


def _between(found: Tensor, down: Tensor) -> Tensor:
    """Where one line ends and the next begins [N]: the widest gap between letters' middles [N,K], if wide enough."""
    down = torch.where(found, down, torch.inf).sort(dim=-1).values
    gaps = (down[:, 1:] - down[:, :-1]).nan_to_num(0.0, posinf=0.0)  # inf - inf, and inf - a middle
    widest, index = gaps.max(-1)
    return torch.where(widest > APART, down.gather(1, index[:, None])[:, 0] + widest / 2, torch.inf)


class StructuredTokens(nn.Module):
    """Everything that is told in words before the patches; photographs and drawings have slots of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.class_names = ClassTokens()
        self.things, self.lines, self.places = ShapeDetector(), TextReader(), PositionTokens()
        self.medium = nn.Parameter(torch.zeros(2, WIDTH))
        self.colors = nn.Parameter(torch.zeros(COLORS, WIDTH))

    def forward(self, probabilities: Tensor, cells: Tensor, features: Tensor, told: Tensor) -> Tensor:
        """Tell a picture in words, [N,TOLD,D].

        Args:
            probabilities: of the stem's classes, [N,1000].
            cells: what the stem's maps say about each patch, [N,P,GATHERED].
            features: standardized ones of the last block, [N,P,D].
            told: label probabilities, [N,P,4*L].
        """
        shown = over_picture(told.unflatten(-1, (2, 2, LABELS)))
        labels = shown.mean((1, 2))
        photo = (STEEP * (labels[:, PHOTO] - 0.5)).sigmoid()[:, None, None]
        ground = F.normalize(labels[:, BACKGROUND_LABELS] ** 4, p=1, dim=-1) @ self.colors
        medium = photo * self.medium[0] + (1 - photo) * self.medium[1]
        seen = self.class_names(probabilities)
        things = self.things(features, self.colors, self.places)
        lines = self.lines(cells, features, shown[..., COLOR_LABELS], self.colors, self.places)
        found = (ground[:, None], things, lines)
        return torch.cat((medium, photo * seen, (1 - photo) * torch.cat(found, dim=1)), dim=1)


def over_picture(x: Tensor) -> Tensor:
    """Arrange values of the spots of each patch [N,P,rows,columns,V] over the picture, [N,G*rows,G*columns,V]."""
    images, _, rows, columns, values = x.shape
    x = x.reshape(images, GRID, GRID, rows, columns, values).transpose(2, 3)
    return x.reshape(images, GRID * rows, GRID * columns, values)
