"""How long a training is: samples, optimizer steps, and forward passes of a step, over all devices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mobillama_v.train.data.sampler import Packs, pack
from mobillama_v.train.recipe import Recipe


@dataclass(frozen=True)
class StepPlan:
    """How long a training is."""

    samples: int
    """Samples learned from, over all passes."""
    steps: int
    """Optimizer steps."""
    warmup_steps: int
    accumulation: int
    """Forward passes of a step."""
    devices: int
    per_step: int
    """Samples of a step, over all devices; of packs, on average."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        samples: int,
        devices: int = 1,
        *,
        packs: Packs | None = None,
        batch_size: int | None = None,
    ) -> StepPlan:
        """The plan of ``recipe`` for a data set of ``samples``; all devices see as many whole batches, or packs.

        ``batch_size`` stands for that of the recipe: what a pack holds on average, while packs are not known.

        Raises:
            RecipeError: a global batch that the devices cannot share.
        """
        train, accumulation = recipe.train, recipe.accumulation(devices)
        if packs is not None:
            total, steps = len(packs.order), math.ceil(len(packs) / (accumulation * devices))
            per_step = round(total / steps)
        else:
            size = batch_size or train.batch_size
            per_step = size * accumulation * devices
            total = max(1, round(train.epochs * samples)) if train.max_steps is None else train.max_steps * per_step
            if devices > 1:
                total = math.ceil(total / (size * devices)) * size * devices
            steps = math.ceil(total / per_step)
        return cls(total, steps, math.ceil(steps * train.warmup_ratio), accumulation, devices, per_step)


def packs_of(recipe: Recipe, lengths: np.ndarray, devices: int) -> Packs | None:
    """The packs of samples of these lengths, if the recipe packs them; all devices see as many.

    Raises:
        RecipeError: a sample that is longer than a pack.
    """
    train = recipe.train
    if train.pack_tokens is None:
        return None
    return pack(
        lengths,
        tokens=train.pack_tokens,
        seed=train.seed,
        total=max(1, round(train.epochs * len(lengths))),
        count=None if train.max_steps is None else train.max_steps * recipe.accumulation(devices) * devices,
        multiple=devices,
    )
