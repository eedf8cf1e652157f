"""Making the hybrid tower.

Its blocks learn what is where from drawn scenes' cell labels, its class part starts from words. Afterwards the tower
is frozen: both training stages read its features from a cache.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobillama_v.model.vision.hybrid_lite0 import HybridTrunk
from mobillama_v.model.vision.lite0 import CLASSES, GRID
from mobillama_v.model.vision.structured_tokens import KIND_SLOTS, KINDS, SLOTS, WIDTH, StructuredTokens, WordTokens
from mobillama_v.tokenization import TextTokenizer
from nano import classes
from nano.figures import SHAPES
from nano.grid import CELLS, LABEL_NAMES
from nano.recognize import LETTERS, SIZES
from nano.scenes import COLOR_NAMES
from nano.stemcache import StemCache

_PART = CELLS // GRID  # label cells along one side of a grid cell
_PHOTO = len(LABEL_NAMES)  # one more label: the picture is a photograph
_WEIGHTS = {"character": 5.0, "shape": 2.0, "center": 3.0}
_NEAR_ZERO, _JITTER = 0.1, 0.01
_AXIS = 0.5  # root mean square of the finer scale of places, beside 1 of a word
_LEARNING_RATE, _WEIGHT_DECAY, _WARM_UP = 1e-3, 0.02, 0.03


class CellProbe(nn.Module):
    """Reads the labels of a grid cell's four label cells from its patch feature; thrown away after the pretraining."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, _PART * _PART * (len(LABEL_NAMES) + 1))

    def forward(self, patches: Tensor) -> Tensor:
        """Map [N,P,D] to logits [N,P,4,labels+1]."""
        return self.linear(self.norm(patches)).unflatten(-1, (_PART * _PART, -1))


def targets(labels: np.ndarray) -> Tensor:
    """Arrange cell labels [N,14,14,L] as the probe gives them, [N,P,4,L+1]; they are of drawings."""
    images = len(labels)
    x = labels.reshape(images, GRID, _PART, GRID, _PART, -1).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(images, GRID * GRID, _PART * _PART, -1)
    return F.pad(torch.from_numpy(np.ascontiguousarray(x)).float(), (0, 1))


def pretrain(
    trunk: HybridTrunk,
    cache: StemCache,
    scenes: list[str],
    labels: np.ndarray,
    photos: list[str],
    *,
    epochs: int,
    batch_size: int = 64,
    seed: int = 0,
    state: Path | None = None,
) -> CellProbe:
    """Train everything of ``trunk`` above the stem to tell the labels of each cell; photographs carry one label.

    Args:
        scenes: names of drawn pictures in ``cache``, with their labels uint8 [N,14,14,L].
        photos: names of photographs in ``cache``.
        state: a file in which each finished epoch is kept, so that a killed run goes on from there.
    """
    torch.manual_seed(seed)
    probe = CellProbe()
    learned = nn.ModuleList([trunk.blocks, trunk.patch_embed.norm, trunk.patch_embed.fc1, trunk.patch_embed.fc2, probe])
    parameters = [*learned.parameters(), trunk.pos_embed]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, betas=(0.9, 0.98), weight_decay=_WEIGHT_DECAY, fused=True)
    rows = np.array([cache.row[name] for name in [*scenes, *photos]])
    steps = len(rows) // batch_size
    first = 0
    if state is not None and state.exists():
        kept = torch.load(state, weights_only=True)
        first = kept["epoch"]
        for module, values in ((trunk, kept["trunk"]), (probe, kept["probe"]), (optimizer, kept["optimizer"])):
            module.load_state_dict(values)  # type: ignore[attr-defined]
    weight = _label_weights()
    for epoch in range(first, epochs):
        order = np.random.default_rng((seed, epoch)).permutation(len(rows))
        began, total = time.time(), 0.0
        for step in range(steps):
            chosen = np.sort(order[step * batch_size : (step + 1) * batch_size])
            optimizer.param_groups[0]["lr"] = _learning_rate(epoch * steps + step, epochs * steps)
            cells = torch.from_numpy(cache.cells[rows[chosen]]).float()
            patches = trunk.mix(trunk.patch_embed.embed(cells))
            wanted = _batch_targets(chosen, labels)
            loss = F.binary_cross_entropy_with_logits(probe(patches), wanted, weight, reduction="sum")
            loss = loss / wanted.shape[:3].numel()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            total += float(loss.detach())
            if step % 50 == 49:
                rate = (step + 1) * batch_size / (time.time() - began)
                where = f"epoch {epoch + 1} of {epochs}, step {step + 1} of {steps}"
                print(f"tower: {where}, loss {total / (step + 1):.3f}, {rate:.0f} pictures/s", flush=True)
        if state is not None:
            _keep(state, epoch + 1, trunk, probe, optimizer)
    return probe


def _batch_targets(chosen: np.ndarray, labels: np.ndarray) -> Tensor:
    drawn = chosen[chosen < len(labels)]
    wanted = torch.zeros(len(chosen), GRID * GRID, _PART * _PART, len(LABEL_NAMES) + 1)
    wanted[: len(drawn)] = targets(labels[drawn])
    wanted[len(drawn) :, ..., _PHOTO] = 1
    return wanted


def _label_weights() -> Tensor:
    weights = [_WEIGHTS.get(name.split(":")[0], 1.0) for name in LABEL_NAMES]
    return torch.tensor([*weights, 1.0])


def _learning_rate(step: int, steps: int) -> float:
    warm = _WARM_UP * steps
    if step < warm:
        return _LEARNING_RATE * (step + 1) / warm
    return _LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


def _keep(state: Path, epoch: int, trunk: HybridTrunk, probe: CellProbe, optimizer: torch.optim.Optimizer) -> None:
    partial = state.with_suffix(".partial")
    kept = {
        "epoch": epoch,
        "trunk": trunk.state_dict(),
        "probe": probe.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(kept, partial)
    partial.replace(state)


def features(
    trunk: HybridTrunk, cells: np.ndarray, probabilities: np.ndarray, shares: np.ndarray | None = None
) -> Tensor:
    """The tower's output [N,E+P,D] from cached cells [N,P,GATHERED] and class probabilities [N,1000].

    Where ``shares`` [N,WORDS] are numbers, they stand in place of the words' probabilities that the tower gives.
    """
    seen = torch.from_numpy(cells).float()
    patches, found, labels = trunk.cell_words(trunk.mix(trunk.patch_embed.embed(seen)))
    last = trunk.patch_embed.stem.last_map(seen)
    words = trunk.words(last)
    if shares is not None:
        words = torch.where(torch.isnan(given := torch.from_numpy(shares).float()), words, given)
    structured = trunk.account(torch.from_numpy(probabilities).float(), words, seen, found, labels)
    patches = patches + trunk.photo_patches(last, seen)
    return torch.cat((structured, patches), dim=1)


@torch.no_grad()
def start_cell_words(trunk: HybridTrunk, probe: CellProbe, cells: np.ndarray, words: Words) -> None:
    """Start the patch part: standardized features, the probe's labels, and words for labels and places.

    Without the first, what all patches have in common outweighs what tells them apart, a hundred times a word's
    embedding; without the words a small language model takes very long to find out how to look.

    Args:
        trunk: pretrained.
        probe: what :func:`pretrain` returned.
        cells: a sample of pictures, [N,P,GATHERED].
        words: embeddings of words.
    """
    patches = trunk.mix(trunk.patch_embed.embed(torch.from_numpy(cells).float())).flatten(0, 1)
    deviation, mean = torch.std_mean(F.layer_norm(patches, (WIDTH,)), dim=0)
    target = trunk.cell_words
    target.norm.weight.copy_(1 / deviation)
    target.norm.bias.copy_(-mean / deviation)
    # The probe reads the plain normalized features; the same function of the standardized ones:
    weight = probe.linear.weight * probe.norm.weight
    target.labels.weight.copy_(weight * deviation)
    target.labels.bias.copy_(probe.linear.bias + probe.linear.weight @ probe.norm.bias + weight @ mean)
    parts = range(_PART * _PART)
    vectors = [words.label(name, column=part % _PART) for part in parts for name in (*LABEL_NAMES, "photo")]
    target.table.copy_(torch.stack(vectors))
    target.place.copy_(torch.stack([words.place(cell // GRID, cell % GRID) for cell in range(GRID * GRID)])[None])


class Words:
    """Embeddings of words from a language model, each scaled to a root mean square of 1."""

    def __init__(self, embeddings: Tensor, tokenizer: TextTokenizer) -> None:
        self._embeddings, self._tokenizer = embeddings.detach(), tokenizer

    def tokens(self, text: str) -> Tensor:
        """One vector a token of ``text``, [tokens,D]."""
        vectors = self._embeddings[self._tokenizer.encode(text)]
        return vectors / vectors.pow(2).mean(-1, keepdim=True).sqrt()

    def word(self, text: str) -> Tensor:
        """One vector [D] for a word inside a sentence."""
        return self.tokens(f" {text}").mean(0)

    def label(self, name: str, *, column: int = 0) -> Tensor:
        """The vector [D] of a label of one of a cell's parts: its word, scaled by how many parts it usually covers.

        Args:
            name: of the label.
            column: of the part. Two letters beside each other in a cell would lose their order: the left one is the
                token that starts a word, the right one the token inside a word.
        """
        kind, _, value = name.partition(":")
        if kind == "character":
            return 2.0 * (self.tokens(value) if column else self.tokens(f" {value}")).mean(0)
        if kind == "background":
            return 0.1 * (self.word("background") + self.word(value))
        if kind == "center":
            return 1.5 * self.word("thing")
        return 0.5 * self.word(value or kind)

    def place(self, row: int, column: int) -> Tensor:
        """The vector [D] of a cell's place, in the words of answers about places."""
        names = [("top", "", "bottom")[(row > 1) + (row > 4)], ("left", "", "right")[(column > 1) + (column > 4)]]
        chosen = [name for name in names if name] or ["center"]
        return 0.5 * torch.stack([self.word(name) for name in chosen]).sum(0)


@torch.no_grad()
def start_structured_tokens(tokens: StructuredTokens, words: Words) -> None:
    """Start all structured tokens from the words that :func:`captions.structured_words` and
    :func:`photos.structured_words` say it with.

    A name of more than SLOTS tokens keeps its last ones, since English puts the noun there. The vectors of the finer
    scale of places are random.
    """

    def fill(table: Tensor, vectors: list[Tensor]) -> None:
        table.copy_(torch.stack(vectors))

    def slots(text: str, count: int) -> Tensor:
        vectors = words.tokens(f" {text}")[-count:]
        return F.pad(vectors, (0, 0, 0, count - len(vectors)))

    names, things, lines, places = tokens.class_names, tokens.things, tokens.lines, tokens.places
    fill(names.table, [slots(classes.name(index), SLOTS) for index in range(CLASSES)])
    fill(names.how, [words.word(each) for each in ("sure", "perhaps", "hardly")])
    fill(names.kinds, [slots(kind, KIND_SLOTS) for kind in classes.kinds()])
    assert len(classes.kinds()) == KINDS
    for column, kind in enumerate(classes.kinds()):
        names.kind_of[list(classes.of_kind(kind)), column] = 1
    fill(tokens.medium, [words.word(each) for each in ("photo", "drawing")])
    fill(tokens.colors, [words.word(each) for each in COLOR_NAMES])
    fill(things.sizes, [torch.zeros(WIDTH), *(words.word(each) for each in SIZES[1:])])
    fill(things.names, [words.word(each) for each in SHAPES])
    things.thing.copy_(words.word("thing"))
    lines.text.copy_(words.word("text"))
    fill(places.rows, [words.word("top"), words.word("bottom")])
    fill(places.columns, [words.word("left"), words.word("right")])
    places.center.copy_(words.word("center"))
    places.axes.copy_(torch.randn(places.axes.shape) * _AXIS)
    fill(lines.first, [words.word(each) for each in LETTERS])
    fill(lines.later, [words.tokens(each if each == each.upper() else f" {each}").mean(0) for each in LETTERS])


@torch.no_grad()
def start_words(target: WordTokens, words: Words, found: Sequence[str]) -> None:
    """Start the words of photographs from the decoder's; rows beyond ``found`` are zero."""
    target.table.zero_()
    target.table[: len(found)] = torch.stack([words.word(each) for each in found])
    target.sure.copy_(words.word("sure"))


@torch.no_grad()
def start_projector(projector: nn.Module, scale: float) -> None:
    """Let an ``mlp2x_gelu`` projector of equal widths start as nearly ``scale`` times the identity.

    Around 0 GELU is x/2: with inputs scaled to that region, words of the tower arrive as words in the decoder, and
    stage 1 starts from there.
    """
    for linear, gain in ((projector.linear_1, _NEAR_ZERO), (projector.linear_2, 2 * scale / _NEAR_ZERO)):
        assert isinstance(linear, nn.Linear)
        linear.weight.copy_(torch.eye(WIDTH) * gain + torch.randn(WIDTH, WIDTH) * gain * _JITTER)
        nn.init.zeros_(linear.bias)
