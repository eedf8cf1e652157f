"""What a training says while it runs: a line on stdout and a line in ``metrics.jsonl``, every few steps."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mobillama_v.errors import DataError
from mobillama_v.train import ranks
from mobillama_v.train.check import replacing


class Progress(TrainerCallback):
    """Prints and records the trainer's logs, on the first process; whole lines, so that they read as well in a file.

    ``tokens`` is a running count that the trainer adds to.
    """

    def __init__(self, output: Path, *, resumed_step: int) -> None:
        self.path, self.tokens = output / "metrics.jsonl", 0
        if ranks.is_first():
            self._forget_after(resumed_step)
        self._since = self._started = time.monotonic()
        self._steps_before = 0

    def _forget_after(self, step: int) -> None:
        """Drop what was recorded of steps that a resumed training does again."""
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True) if self.path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        with replacing(self.path) as file:
            file.writelines(kept)

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        # A resumed state brings the steps of the recipe that was killed; the current one's count.
        state.logging_steps, state.save_steps = args.logging_steps, args.save_steps
        self._since = self._started = time.monotonic()
        self._steps_before = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """One line.

        Raises:
            DataError: the loss is not finite.
        """
        if not logs or "loss" not in logs:
            return
        if ranks.is_first():
            self._write(state, logs)
        if not math.isfinite(logs["loss"]):
            raise DataError(
                f"the loss is {logs['loss']} at step {state.global_step}; lower the learning rates or look at the data."
            )

    def _write(self, state: Any, logs: dict[str, float]) -> None:
        now = time.monotonic()
        tokens, self.tokens = int(self.tokens) * ranks.size(), 0
        speed, self._since = tokens / max(now - self._since, 1e-9), now
        entry = {
            "step": state.global_step,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "tokens_per_second": round(speed, 1),
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        steps = state.global_step - self._steps_before
        left = (state.max_steps - state.global_step) * (now - self._started) / max(steps, 1)
        norm = "" if entry["grad_norm"] is None else f"  grad {entry['grad_norm']:.2f}"
        print(
            f"step {state.global_step}/{state.max_steps}  loss {entry['loss']:.4f}  lr {entry['lr']:.2e}{norm}  "
            f"{speed:,.0f} tokens/s  {_clock(left)} left",
            flush=True,
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
