"""The loss monitor: it ends a training whose loss diverges, and names the records of the last steps.

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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from mobillama_v import distributed
from mobillama_v.errors import DataError
from mobillama_v.train.data.check import write_records

SUSPECTS = "suspect-records.jsonl"
"""In an output folder: what the last steps of a training that ended itself were made of, a record a line."""
WINDOW, FEWEST, IN_SUCCESSION = 100, 50, 3  # steps


class LossMonitor:
    """Checks the loss of every step; ``losses`` are the last ones of a training that is resumed."""

    def __init__(self, factor: float | None, losses: Iterable[float] = ()) -> None:
        self.factor = factor
        self.losses = deque(losses, WINDOW)
        self.high = 0
        """How many steps in succession have had a high loss by now."""

    def wrong(self, loss: float) -> str | None:
        """Add the loss of a step; why the training has to end, or None."""
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


def divergence_error(reason: str, rows: list[dict[str, Any]], output: Path) -> DataError:
    """The error that ends a training, once the records of its last steps are written down.

    Args:
        reason: what is wrong.
        rows: of this process, one for each record in its last steps: ``step``, ``device``, ``pass``, ``loss`` (of the
            forward pass; None where it is not finite), and what names the record.
        output: folder of the training.
    """
    found = [row for each in distributed.all_gather(rows) for row in each]
    found.sort(key=lambda row: (row["step"], row["pass"], row["device"]))
    path = output / SUSPECTS
    distributed.on_rank0(lambda: write_records(path, (json.dumps(row, ensure_ascii=False) for row in found)))
    return DataError(
        f"{reason} at step {found[-1]['step']}; look at the records of the last steps in {path}, or lower the learning "
        "rates: the last good checkpoint is kept, and --resume goes on from it."
    )
