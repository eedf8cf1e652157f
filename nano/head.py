"""The last step of nano's training: its head alone learns again, to say names and to keep everything else.

What the decoder has found out about a picture stays as it is; only which token it means is learnt anew. That is a
logistic regression over hidden states that are computed once, so it takes minutes. Averaging two models leaves rows of
rare tokens out of place: before this step nano named 55 of 152 kept-out photographs, after it 139.

Shapes: N tokens that are learnt, D width, V vocabulary.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nano.branches import collate, run_decoder
from nano.human_train import Learner
from nano.mixture import VISUAL_TOKENS, Mixture

KEPT = ("captions", "rooms")
"""Kinds whose answers stay as they are: the decoder knows those of its training photographs by heart."""
MIX = {"classes": 0.50, "captions": 0.19, "rooms": 0.09, "reading": 0.10, "drawings": 0.08, "text": 0.03}
MIX |= {"easy-vqa": 0.01}
_BATCH, _ROWS = 16, 2048
_RATE, _KEEPING, _NEAR = 1e-3, 5.0, 1e-4


@dataclass(frozen=True)
class States:
    """Hidden states [N,D] before the head, the tokens [N] that are to follow, and which [N] are of :data:`KEPT`."""

    hidden: Tensor
    targets: Tensor
    kept: Tensor


@torch.inference_mode()
def states(learner: Learner, mixture: Mixture, stems: dict[str, Any], *, batches: int, seed: int) -> States:
    """What the decoder makes of samples of :data:`MIX`."""
    decoder, found = learner.model.language_model, list[tuple[Tensor, Tensor, Tensor]]()
    for number in range(batches):
        rng = random.Random(f"head:{seed}:{number}")
        names = rng.choices(list(MIX), list(MIX.values()), k=_BATCH)
        samples = [mixture.kinds[name](rng) for name in names]
        batch = collate(
            [(VISUAL_TOKENS * (each.picture is not None), each.branches) for each in samples], len(learner.prefix)
        )
        embeds = decoder.embed_tokens(batch.ids).clone()
        embeds[batch.pictures, :VISUAL_TOKENS] = learner.visual(samples, stems)
        hidden = run_decoder(decoder, learner.prefix, embeds, batch.positions, batch.mask).flatten(0, 1)
        kept = torch.tensor([name in KEPT for name in names])[batch.owners]
        found.append((hidden[batch.sources].half(), batch.targets, kept))
    return States(*(torch.cat(part) for part in zip(*found, strict=True)))


def refit(head: Tensor, seen: States, *, epochs: int, seed: int) -> Tensor:
    """A head [V,D] that says the tokens that follow, and where states are kept what ``head`` says, by KL divergence.

    Args:
        head: to begin with; it is not changed.
        seen: to learn from.
        epochs: passes over it.
        seed: of the order.

    Returns:
        The new head, in fp32.
    """
    before = head.detach().float()
    fitted = before.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([fitted], eps=1e-7, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(seen.targets), generator=generator).split(_ROWS) for _ in range(epochs)]
    parts = [part for order in orders for part in order]
    for number, part in enumerate(parts):
        optimizer.param_groups[0]["lr"] = _RATE * max(0.02, 1 - number / len(parts))
        hidden, kept = seen.hidden[part].float(), seen.kept[part]
        loss = F.cross_entropy(hidden[~kept] @ fitted.T, seen.targets[part][~kept], reduction="sum")
        wanted = (hidden[kept] @ before.T).softmax(-1)
        loss = loss + _KEEPING * F.kl_div((hidden[kept] @ fitted.T).log_softmax(-1), wanted, reduction="sum")
        optimizer.zero_grad()
        (loss / len(part) + _NEAR * (fitted - before).pow(2).sum()).backward()
        optimizer.step()
    return fitted.detach()
