"""Teaching the tower to find shapes and letters, from drawn scenes: what its structured tokens say of drawings.

The trunk below is trained by :mod:`nano.tower` and frozen here.
"""

from __future__ import annotations

import string
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mobillama_v.model.vision.hybrid_lite0 import HybridTrunk
from mobillama_v.model.vision.lite0 import GRID
from mobillama_v.model.vision.structured_tokens import SHAPE_CLASSES, WIDTH, StructuredTokens
from nano import figures
from nano.figures import SHAPES
from nano.scenes import COLOR_NAMES, SIDE, Scene, clear_size
from nano.stemcache import StemCache

SIZES = (None, "small", "large")
LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits

_MIDDLE_WEIGHT = 3.0  # of the few spots that hold a middle
_LEARNING_RATE, _WEIGHT_DECAY, _WARM_UP = 1e-3, 0.02, 0.05


@dataclass(frozen=True)
class Targets:
    """What is to be found in N scenes, int64 [M,2+K]: scene, spot, and the K classes of each thing."""

    rows: Tensor
    kinds: tuple[int, ...]
    """How many classes each of the K has."""

    def of(self, chosen: Tensor, scenes: int) -> Tensor:
        """The rows of ``chosen`` ones of so many ``scenes``, which are numbered anew."""
        number = torch.full((scenes,), -1)
        number[chosen] = torch.arange(len(chosen))
        rows = self.rows.clone()
        rows[:, 0] = number[rows[:, 0]]
        return rows[rows[:, 0] >= 0]


def shapes_of(scenes: Iterable[Scene]) -> Targets:
    """Middles of shapes over 14 x 14 spots, with size, color and name."""
    rows = []
    for index, scene in enumerate(scenes):
        for thing in scene.shapes:
            kinds = [SIZES.index(clear_size(thing)), COLOR_NAMES.index(thing.color), SHAPES.index(thing.shape)]
            rows.append([index, _spot(*thing.center, 2 * GRID, 2 * GRID), *kinds])
    return Targets(_table(rows, 5), SHAPE_CLASSES)


def letters_of(scenes: Iterable[Scene]) -> Targets:
    """Middles of letters over 14 x 28 spots: letters may stand closer beside each other than 16 pixels."""
    rows = []
    for index, scene in enumerate(scenes):
        for number, thing in enumerate(scene.things):
            if thing.kind == "word":
                boxes = figures.lettering(thing.text, scene.key(number), thing.box).boxes
                for letter, (left, top, right, bottom) in zip(thing.text, boxes, strict=True):
                    spot = _spot((left + right) / 2, (top + bottom) / 2, 4 * GRID, 2 * GRID)
                    rows.append([index, spot, LETTERS.index(letter)])
    return Targets(_table(rows, 3), (len(LETTERS),))


def _table(rows: list[list[int]], columns: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, columns)


def _spot(x: float, y: float, columns: int, rows: int) -> int:
    row, column = min(rows - 1, int(y / SIDE * rows)), min(columns - 1, int(x / SIDE * columns))
    return row * columns + column


@torch.inference_mode()
def patch_features(trunk: HybridTrunk, cache: StemCache, names: list[str], batch_size: int = 64) -> Tensor:
    """Standardized features of the last block, float16 [N,P,D], of pictures in a stem's cache."""
    rows = [cache.row[name] for name in names]
    found = torch.empty(len(rows), GRID * GRID, WIDTH, dtype=torch.float16)
    for first in range(0, len(rows), batch_size):
        cells = torch.from_numpy(cache.cells[rows[first : first + batch_size]]).float()
        found[first : first + batch_size] = trunk.cell_words.norm(trunk.mix(trunk.patch_embed.embed(cells)))
    return found


def learn_structured_tokens(
    tokens: StructuredTokens, cells: np.ndarray, features: Tensor, scenes: list[Scene], *, epochs: int, seed: int = 0
) -> None:
    """Train the finders of shapes and of letters, above a frozen trunk.

    Args:
        tokens: they are changed.
        cells: gathered stem values of the scenes' pictures, [N,P,GATHERED].
        features: standardized features of the last block, [N,P,D].
        scenes: what the pictures show.
        epochs: passes over them.
        seed: of the weights and the order.
    """
    torch.manual_seed(seed)
    things, lines = tokens.things, tokens.lines
    learned = [*things.fc1.parameters(), *things.fc2.parameters()]
    everything = np.arange(len(scenes))
    learn("shapes", things.logits, learned, [features], everything, shapes_of(scenes), epochs=epochs, seed=seed)
    # Pictures without words teach what is no letter; a few of them are enough.
    written = {index for index, scene in enumerate(scenes) if scene.words}
    chosen = np.array(sorted(written | set(range(0, len(scenes), 8))))
    learned = [each for name, each in lines.named_parameters() if name not in ("first", "later", "text")]
    learn("letters", lines.logits, learned, [cells, features], chosen, letters_of(scenes), epochs=epochs, seed=seed)


def learn(
    what: str,
    finder: Callable[..., Tensor],
    learned: list[Tensor],
    inputs: list[Any],
    pictures: np.ndarray,
    wanted: Targets,
    *,
    epochs: int,
    batch_size: int = 64,
    seed: int = 0,
) -> None:
    """Train ``learned``, the weights of a ``finder`` of rows of ``inputs`` [N,...], on ``pictures``."""
    optimizer = torch.optim.AdamW(learned, lr=_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY, fused=True)
    batch_size = min(batch_size, len(pictures))
    steps = len(pictures) // batch_size
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, _LEARNING_RATE, total_steps=epochs * steps, pct_start=_WARM_UP
    )
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(pictures)
        began, total = time.time(), 0.0
        for step in range(steps):
            chosen = np.sort(order[step * batch_size : (step + 1) * batch_size])
            seen = [torch.as_tensor(each[chosen]).float() for each in inputs]
            rows = wanted.of(torch.from_numpy(chosen), len(inputs[0]))
            loss = finding_loss(finder(*seen), rows, wanted.kinds)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += float(loss.detach())
            if step % 50 == 49:
                rate = (step + 1) * batch_size / (time.time() - began)
                where = f"epoch {epoch + 1} of {epochs}, step {step + 1} of {steps}"
                print(f"{what}: {where}, loss {total / (step + 1):.3f}, {rate:.0f}/s", flush=True)


def finding_loss(logits: Tensor, rows: Tensor, kinds: tuple[int, ...]) -> Tensor:
    """Of a finder's logits [N,rows,columns,1+sum(kinds)]: heat everywhere, classes where something is.

    Args:
        logits: see above.
        rows: :class:`Targets` of these scenes.
        kinds: how many classes each of their columns has.

    Returns:
        The sum of the cross entropies, a mean over scenes.
    """
    logits = logits.flatten(1, 2)
    scene, spot = rows[:, 0], rows[:, 1]
    middles = torch.zeros(logits.shape[:2])
    middles[scene, spot] = 1
    weight = torch.tensor(_MIDDLE_WEIGHT)
    heat = F.binary_cross_entropy_with_logits(logits[..., 0], middles, reduction="sum", pos_weight=weight)
    told = logits[scene, spot, 1:].split(kinds, dim=-1)
    classes = [F.cross_entropy(each, rows[:, 2 + i], reduction="sum") for i, each in enumerate(told)]
    return (heat + torch.stack(classes).sum()) / len(logits)
