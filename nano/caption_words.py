"""The tower learns to find the words of captions: the step before a decoder learns to look at photographs.

Every patch is scored against the decoder's own embeddings of about a thousand words, and a picture holds a word where
some patch does ("From Captions to Visual Concepts and Back", Fang et al., arXiv 1411.4952, with a soft maximum over the
patches). A projector that starts as the identity then hands words to the decoder. A picture costs an eighth of what it
costs with the decoder behind it.

Shapes: N pictures, P patches, D width, W words.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobillama_v.model.vision.hybrid_lite0 import HybridTrunk
from mobillama_v.model.vision.structured_tokens import LABELS, PARTS, PHOTO
from mobillama_v.train.muon import Muon
from nano.caption_metrics import words
from nano.human_data import Asked, Captioned
from nano.human_train import Learner, average_gradients, pictures
from nano.mixture import Sample

_PHOTOS, _ROOMS, _DRAWINGS = 32, 4, 14  # pictures of a step
_RARE = {"captions": 1 / 1200, "rooms": 1 / 880}  # words in a smaller share of the texts are not looked for
_SCALE = 0.06  # of the product of a patch and a word, to begin with
_SHARE, _KEEP_DRAWINGS = 0.1, 30.0  # weights of the words' loss, and of how far drawings' features are off
_SILENT = frozenset(
    """
    a an the of in on at to with and while is are his her their its by for as from into over through near that who this
    it he she they be been being has have had there some other another one up out off down them him or no not wearing
    looking what how many where which
    """.split()
)


def vocabulary(captioned: Sequence[Captioned], asked: Sequence[Asked]) -> list[str]:
    """Words that captions or people's questions say often enough to be looked for."""
    told = Counter(word for each in captioned for text in each.captions for word in set(words(text)))
    rooms = Counter(word for each in asked for word in words(each.answer))
    captions = sum(len(each.captions) for each in captioned)
    often = [word for word, count in told.most_common() if count >= _RARE["captions"] * captions]
    often += [word for word, count in rooms.most_common() if count >= _RARE["rooms"] * len(asked)]
    return [word for word in dict.fromkeys(often) if word not in _SILENT and word.isalpha()]


def said(texts: Sequence[str], index: dict[str, int]) -> np.ndarray:
    """How surely each word is there [W]: 1 where three of a photograph's texts say it."""
    found = np.zeros(len(index), np.float32)
    for text in texts:
        for word in set(words(text)):
            if word in index:
                found[index[word]] += 1 / 3
    return np.minimum(1, found)


class WordScores(nn.Module):
    """Logits of words [N,W] from standardized patch features [N,P,D]."""

    def __init__(self, embeddings: Tensor, prior: Tensor) -> None:
        super().__init__()
        centered = embeddings - embeddings.mean(0)
        self.register_buffer("words", centered / centered.pow(2).mean(-1, keepdim=True).sqrt())
        self.scale = nn.Parameter(torch.tensor(_SCALE))
        self.bias = nn.Parameter(prior.clamp(1e-4, 0.9).logit() - 1)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        scores = F.dropout(features, 0.1, self.training) @ self.words.T * self.scale
        return scores.logsumexp(1) - math.log(features.shape[1]) + self.bias


def _learnt(trunk: HybridTrunk) -> list[nn.Parameter]:
    """The tower's parameters that learn, made ready to."""
    embed = trunk.patch_embed
    parts = (trunk.blocks, embed.norm, embed.fc1, embed.fc2, trunk.cell_words.norm)
    learnt = [trunk.pos_embed, *(parameter for part in parts for parameter in part.parameters())]
    for parameter in learnt:
        parameter.requires_grad_(True)
    return learnt


def _not_a_photo(labels: Tensor) -> Tensor:
    """Cross-entropy of the label "photograph" in every cell of photographs' label probabilities [N,P,4*L]."""
    return -labels.unflatten(-1, (PARTS, LABELS))[..., PHOTO].clamp(1e-6, 1 - 1e-6).log().mean()


def learn_words(
    learner: Learner,
    stems: dict[str, Any],
    captioned: Sequence[Captioned],
    asked: Sequence[Asked],
    old: HybridTrunk,
    *,
    steps: int,
    rate: float,
    seed: int,
    rank: int = 0,
    world: int = 1,
) -> None:
    """Train the tower's blocks; the features of drawings stay near those of ``old``.

    Args:
        learner: whose tower learns.
        stems: the stem's caches by name, see :class:`~nano.mixture.Mixture`.
        captioned: photographs to learn from.
        asked: questions about rooms, whose words are looked for too.
        old: the tower that the training starts from.
        steps: of the optimizer; the rate falls over the last half.
        rate: of the matrices, by Muon.
        seed: of what is drawn.
        rank, world: of the process.
    """
    looked_for = vocabulary(captioned, asked)
    index = {word: i for i, word in enumerate(looked_for)}
    told = {each.image: said(each.captions, index) for each in captioned}
    rooms: dict[str, np.ndarray] = {}
    for each in asked:
        there = said([f"{each.question} {each.answer}"] * 3, index)
        rooms[each.image] = np.maximum(rooms.get(each.image, 0), there)
    embeddings = learner.model.language_model.embed_tokens.weight.detach()
    vectors = [embeddings[learner.tokenizer.encode(f" {word}")].mean(0) for word in looked_for]
    scores = WordScores(torch.stack(vectors), torch.from_numpy(np.mean(list(told.values()), axis=0)))
    trunk = learner.trunk
    tower = _learnt(trunk)
    groups = [
        {"params": [each for each in tower if each.ndim == 2], "hidden": True, "weight_decay": 0.02, "share": 1.0},
        {"params": [each for each in tower if each.ndim != 2], "hidden": False, "weight_decay": 0.0, "share": 0.2},
        {"params": list(scores.parameters()), "hidden": False, "weight_decay": 0.0, "share": 1.0},
    ]
    optimizer = Muon([{**group, "lr": 0.0} for group in groups], betas=(0.9, 0.95))
    parameters, began, drawings = [*tower, *scores.parameters()], time.time(), stems["drawings"].names
    for step in range(1, steps + 1):
        rng = random.Random(f"words:{seed}:{step}:{rank}")
        torch.manual_seed(rng.getrandbits(32))
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * rate * min(1, step / 30, max(0.02, 2.2 * (1 - step / steps)))
        shown = [
            Sample(rng.choice(("flickr8k", "flickr8k-mirrored")), rng.choice(captioned).image, [])
            for _ in range(_PHOTOS)
        ]
        shown += [Sample("daquar", rng.choice(list(rooms)), []) for _ in range(_ROOMS)]
        wanted = [(rooms if each.stem == "daquar" else told)[str(each.picture)] for each in shown]
        shown += [Sample("drawings", rng.choice(drawings), [], drawn=True) for _ in range(_DRAWINGS)]
        cells = torch.from_numpy(pictures(shown, stems)[0]).float()
        _, features, labels = trunk.cell_words(trunk.mix(trunk.patch_embed.embed(cells)))
        photos = len(wanted)
        target = torch.from_numpy(np.stack(wanted))
        missed = F.binary_cross_entropy_with_logits(scores(features[:photos]), target, reduction="none").sum(1).mean()
        with torch.no_grad():
            before = old.cell_words(old.mix(old.patch_embed.embed(cells[photos:])))[1]
        distance = F.mse_loss(features[photos:], before)
        optimizer.zero_grad()
        (_SHARE * missed + _KEEP_DRAWINGS * distance + _not_a_photo(labels[:photos])).backward()
        average_gradients(parameters, world)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 0 and rank == 0:
            pace = (time.time() - began) / step
            text = f"words {float(missed.detach()):.1f} nats, drawings' features off by {float(distance.detach()):.3f}"
            print(f"words: step {step} of {steps}, {pace:.1f} s each: {text}", flush=True)
