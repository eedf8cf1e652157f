"""The loss monitor: a training that has gone wrong ends, and says what it had just learned from.

A loss that is not finite ends it at once. A single high loss does not: a batch may be hard, and gradients are clipped.
Three in succession are a spike, each above twice the median of the last 100 steps *and* ``factor`` times as far above
it as their 90th percentile. The percentile keeps kinds of batches apart from spikes (text alone loses more than
pictures), the factor of two those late trainings whose losses hardly differ any more. Nothing is judged before 50
steps are known, so the steep descent of a start is none.
"""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mobillama_v import distributed
from mobillama_v.errors import DataError
from mobillama_v.train.data.check import write_records

SUSPECTS = "suspect-records.jsonl"
"""In an output folder: what the last steps of a training that ended itself were made of, a record a line."""
WINDOW, FEWEST, IN_SUCCESSION = 100, 50, 3  # steps


class LossMonitor:
    """Judges the loss of one step after the other; the last ``losses`` of a training that goes on may be given."""

    def __init__(self, factor: float | None, losses: Iterable[float] = ()) -> None:
        self.factor = factor
        self.losses = deque(losses, WINDOW)
        self.high = 0
        """How many steps in succession have had a high loss by now."""

    def wrong(self, loss: float) -> str | None:
        """What is wrong after a step with this loss, if anything."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        limit = self.limit()
        self.losses.append(loss)
        self.high = self.high + 1 if loss > limit else 0
        if self.high < IN_SUCCESSION:
            return None
        return f"the loss has been above {limit:.3g} for {self.high} steps and is {loss:.3g}"

    def limit(self) -> float:
        """The loss above which the next step's is high."""
        if self.factor is None or len(self.losses) < FEWEST:
            return math.inf
        middle, upper = np.quantile(list(self.losses), [0.5, 0.9])
        return float(max(2 * middle, middle + self.factor * (upper - middle)))


@dataclass(frozen=True)
class Pass:
    """One forward pass of one process: its part of the step's loss, and the samples it was made on."""

    step: int
    device: int
    number: int
    loss: float
    samples: Sequence[int]


def stop(wrong: str, passes: list[Pass], name: Callable[[int], dict[str, object]], output: Path) -> DataError:
    """The error that ends a training; the records of ``passes``, of all processes, are written down.

    Args:
        wrong: what is wrong.
        passes: of this process, in its last steps.
        name: of a sample: what tells a user which record it is.
        output: folder of the training.
    """
    found = sorted(
        (each for some in distributed.all_gather(passes) for each in some), key=lambda p: (p.step, p.number, p.device)
    )
    lines = [
        {
            "step": each.step,
            "device": each.device,
            "pass": each.number,
            "loss": each.loss if math.isfinite(each.loss) else None,
            **name(sample),
        }
        for each in found
        for sample in each.samples
    ]
    path = output / SUSPECTS
    distributed.on_rank0(lambda: write_records(path, (json.dumps(line, ensure_ascii=False) for line in lines)))
    step = found[-1].step
    return DataError(
        f"{wrong} at step {step}; look at the records of the last steps in {path}, or lower the learning rates: the "
        "last good checkpoint is kept, and --resume goes on from it."
    )
