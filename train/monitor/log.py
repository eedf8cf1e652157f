"""The log of a training: every few steps, a line on stdout and a line in ``metrics.jsonl``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from mobillama_v import distributed
from mobillama_v.train.data.check import replacing

METRICS = "metrics.jsonl"
"""In an output folder: the metrics of a training, an object a line."""


def drop_lines_after(step: int, path: Path) -> None:
    """Drop the lines of a file about steps that a resumed training does again."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    with replacing(path) as file:
        file.writelines(kept)


class Progress(TrainerCallback):
    """Prints and records the trainer's logs, on the first process; whole lines, so that they read as well in a file.

    ``tokens`` is a running count that the trainer adds to.
    """

    def __init__(self, output: Path, *, resumed_step: int) -> None:
        self.path, self.tokens, self.resumed_step = output / METRICS, 0, resumed_step
        if distributed.rank() == 0:
            drop_lines_after(resumed_step, self.path)
        self._since = self._started = time.monotonic()
        self._steps_before = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        # A resumed state brings the steps of the recipe that was killed; the current one's count.
        state.logging_steps, state.save_steps, state.eval_steps = args.logging_steps, args.save_steps, args.eval_steps
        self._since = self._started = time.monotonic()
        self._steps_before = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Log one line; the trainer's other reporters come after this one and get the tokens per second too."""
        if not logs or distributed.rank() != 0:
            return
        if "loss" in logs:
            self._write_training(state, logs)
        elif "eval_loss" in logs:
            self._write_validation(state, logs)

    def _write_validation(self, state: Any, logs: dict[str, float]) -> None:
        self._since += logs["eval_seconds"]  # in which nothing was learned
        found = {name.replace("eval_", "validation_"): value for name, value in logs.items() if name != "epoch"}
        self._append({"step": state.global_step, **found})
        exact = f"  exact match {logs['eval_exact_match']:.1%}" if "eval_exact_match" in logs else ""
        print(
            f"step {state.global_step}/{state.max_steps}  validation loss {logs['eval_loss']:.4f}{exact}  "
            f"{logs['eval_seconds']:.0f} s",
            flush=True,
        )

    def _append(self, entry: dict[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def _write_training(self, state: Any, logs: dict[str, float]) -> None:
        now = time.monotonic()
        tokens, self.tokens = int(self.tokens) * distributed.world_size(), 0
        speed, self._since = tokens / max(now - self._since, 1e-9), now
        entry = {
            "step": state.global_step,
            "loss": logs["loss"],
            "lr": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "tokens_per_second": round(speed, 1),
        }
        logs["tokens_per_second"] = entry["tokens_per_second"]
        self._append(entry)
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
