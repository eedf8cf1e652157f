"""Words that describe a photograph, found by one layer over what the stem's classifier reads.

The words of all captions of a photograph are its labels ("What Value Do Explicit High Level Concepts Have in Vision to
Language Problems?", Wu et al., arXiv 1506.01144). The decoder learns from words that another half of the photographs
taught to find: of photographs that a layer has learnt from itself, it would be surer than it is of new ones.

Shapes: N photographs, W words, F values of the stem's last map, averaged over the picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobillama_v.model.vision.hybrid_lite0 import HybridTrunk
from mobillama_v.model.vision.structured_tokens import WORDS
from nano.caption_metrics import words
from nano.human_data import Captioned
from nano.stemcache import StemCache

_BATCH, _EPOCHS, _RATE, _DECAY, _DROPOUT = 256, 12, 1.5e-3, 0.05, 0.5
_SILENT = frozenset(
    """
    a an the of in on at to with and while is are his her their its by for as from into over through near that who this
    it he she they be been being has have had there some other another one up out off down them him or no not wearing
    looking what how many where which
    """.split()
)


def vocabulary(captioned: Sequence[Captioned]) -> list[str]:
    """The WORDS words that most captions use."""
    counts = Counter(word for each in captioned for text in each.captions for word in set(words(text)))
    return [word for word, _ in counts.most_common() if word not in _SILENT and word.isalpha()][:WORDS]


def labels(captioned: Sequence[Captioned], vocabulary: Sequence[str]) -> Tensor:
    """How surely each word is there [N,W]: 1 where three of a photograph's captions use it."""
    index = {word: i for i, word in enumerate(vocabulary)}
    found = torch.zeros(len(captioned), len(vocabulary))
    for row, each in zip(found, captioned, strict=True):
        for text in each.captions:
            for word in {*words(text)} & index.keys():
                row[index[word]] += 1 / 3
    return found.clamp(max=1)


@torch.inference_mode()
def pooled(trunk: HybridTrunk, cache: StemCache) -> Tensor:
    """The stem's last map, averaged, of every picture of a cache, [N,F]."""
    stem: Any = trunk.patch_embed.stem
    parts = torch.split(torch.arange(len(cache.names)), 64)
    return torch.cat([stem.last_map(torch.from_numpy(cache.cells[part.numpy()]).float()).mean(1) for part in parts])


def fit(seen: Sequence[Tensor], wanted: Tensor, seed: int) -> nn.Linear:
    """A layer from averaged maps to words.

    Args:
        seen: averaged maps [N,F] of the photographs, and of their mirror images.
        wanted: see :func:`labels`.
        seed: of the order, and of what is dropped.
    """
    torch.manual_seed(seed)
    values, wanted = torch.cat(tuple(seen)), wanted.repeat(len(seen), 1)
    mean, deviation = values.mean(0), values.std(0) + 1e-3
    values = (values - mean) / deviation
    layer = nn.Linear(values.shape[1], wanted.shape[1])
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(wanted.mean(0).clamp(1e-4, 0.9).logit())
    optimizer = torch.optim.AdamW(layer.parameters(), lr=_RATE, weight_decay=_DECAY, fused=True)
    steps = _EPOCHS * -(-len(values) // _BATCH)
    for step in range(steps):
        if step % (steps // _EPOCHS) == 0:
            order = torch.randperm(len(values)).split(_BATCH)
        chosen = order[step % (steps // _EPOCHS)]
        optimizer.param_groups[0]["lr"] = _RATE * (1 - step / steps)
        scores = layer(F.dropout(values[chosen], _DROPOUT))
        loss = F.binary_cross_entropy_with_logits(scores, wanted[chosen], reduction="sum") / len(chosen)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():  # of the values as they are
        layer.weight.div_(deviation)
        layer.bias.sub_(layer.weight @ mean)
    return layer


def learn(trunk: HybridTrunk, caches: Sequence[StemCache], captioned: Sequence[Captioned], seed: int) -> list[str]:
    """Give the tower its layer of words, and each cache the probabilities that its photographs get from the other half.

    Args:
        trunk: whose layer it is.
        caches: the stem's views of the photographs, plain and mirrored, in the order of ``captioned``.
        captioned: the photographs.
        seed: of halves and training.

    Returns:
        The words.
    """
    chosen = vocabulary(captioned)
    seen = [pooled(trunk, cache) for cache in caches]
    wanted = F.pad(labels(captioned, chosen), (0, WORDS - len(chosen)))
    shares = [np.zeros((len(captioned), WORDS), np.float16) for _ in caches]
    halves = np.random.default_rng(seed).permutation(len(captioned)) % 2
    for half in (0, 1):
        learnt, other = torch.from_numpy(halves == half), halves != half
        layer = fit([values[learnt] for values in seen], wanted[learnt], seed)
        with torch.no_grad():
            for found, values in zip(shares, seen, strict=True):
                found[other] = layer(values[torch.from_numpy(other)]).sigmoid().half().numpy()
    trunk.photo_words.load_state_dict(fit(seen, wanted, seed).state_dict())
    for cache, found in zip(caches, shares, strict=True):
        np.save(cache.words_file, found)
    return chosen
