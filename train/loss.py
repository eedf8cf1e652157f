"""What the loss of an optimizer step is divided by.

A step takes A forward passes (``train.gradient_accumulation``) on each of W ranks. With s[r,a] the summed cross
entropy of pass a on rank r over its supervised tokens, and n[r,a] the number of these, the loss of the step is ::

    sum over r, a of s[r,a]  /  N        N = sum over r, a of n[r,a]

so every supervised token weighs the same, wherever it is. Three places share the work:

1. :func:`supervised_tokens` gives N, summed over passes and ranks.
2. The model divides the sum of one pass by N (:func:`mobillama_v.hf.modeling.supervised_loss`).
3. :func:`scaled_loss` multiplies by W, because DDP and DeepSpeed average gradients over ranks and do not add them.
   The gradients of the A passes are added as they are.

transformers does the same where ``average_tokens_across_devices`` is set. It is written out here because a wrong
divisor shows in no error, only in a worse model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mobillama_v import distributed
from mobillama_v.prompt import IGNORE_INDEX


def supervised_tokens(batches: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
    """N of one optimizer step: its supervised tokens, over all forward passes and all ranks.

    Every rank must call it, since they exchange their counts.

    Args:
        batches: those of this rank, with ``labels`` [B,T], whose first token is never supervised.
        device: of the ranks' backend.

    Returns:
        An int64 scalar on ``device``, the same on every rank; 1 at least, so that a step of none divides by no zero.
    """
    count = sum((batch["labels"] != IGNORE_INDEX).sum() for batch in batches)
    total = torch.as_tensor(count, device=device).clone()
    if distributed.world_size() > 1:
        dist.all_reduce(total)
    return total.clamp(min=1)


def scaled_loss(loss: Tensor) -> Tensor:
    """The loss of one forward pass, already divided by N, for gradients that are averaged over ranks."""
    return loss * distributed.world_size()
