"""The curves of a training as a picture, from its ``metrics.jsonl``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mobillama_v.errors import DataError
from mobillama_v.plots import pyplot, save
from mobillama_v.train.monitor.log import METRICS

_SMOOTHED = 50  # lines of progress, from which on a running mean is drawn over the loss


def read_metrics(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The logged steps of a training and its validations, in order.

    Raises:
        DataError: no metrics there, or a line that is none.
    """
    path = run / METRICS
    entries = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise ValueError(f"line {number} names no step")
            entries.append(entry)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); give the output folder of a training.") from error
    steps = [entry for entry in entries if "loss" in entry]
    if not steps:
        raise DataError(f"{path} holds no step yet; wait for the training's first line of progress.")
    return steps, [entry for entry in entries if "validation_loss" in entry]


def draw(run: Path, path: Path) -> None:
    """Draw loss, learning rate and tokens a second, with validations where there are any, to a PNG.

    Raises:
        MissingExtraError: matplotlib is not installed.
        DataError: no metrics.
        ConfigError: the file cannot be written.
    """
    plot = pyplot("train plot", "plot")
    steps, validations = read_metrics(run)
    figure, (loss, rate, speed) = plot.subplots(
        3, sharex=True, figsize=(9, 8), layout="constrained", height_ratios=(3, 1, 1)
    )
    at = [entry["step"] for entry in steps]
    mark = "." if len(at) == 1 else None
    losses = [entry["loss"] for entry in steps]
    smooth = len(losses) >= _SMOOTHED
    loss.plot(at, losses, marker=mark, label="training", color="tab:blue", lw=1, alpha=0.35 if smooth else 1)
    if smooth:
        loss.plot(at, _running_mean(losses), label="training, running mean", color="tab:blue", lw=1.5)
    loss.set_ylabel("loss (nats a token)")
    handles = loss.get_lines()
    if validations:
        when = [entry["step"] for entry in validations]
        held_out = [entry["validation_loss"] for entry in validations]
        handles += loss.plot(when, held_out, "o-", ms=3, color="tab:orange", label="validation")
        if all("validation_exact_match" in entry for entry in validations):
            share = loss.twinx()
            exact = [100 * entry["validation_exact_match"] for entry in validations]
            handles += share.plot(when, exact, "s--", ms=3, lw=1, color="tab:green", label="exact match")
            share.set_ylim(0, 100)
            share.set_ylabel("exact match (%)")
    loss.legend(handles=list(handles), loc="best")
    rate.plot(at, [entry["lr"] for entry in steps], marker=mark, color="tab:purple", lw=1)
    rate.set_ylabel("learning rate")
    speed.plot(at, [entry["tokens_per_second"] for entry in steps], marker=mark, color="tab:gray", lw=1)
    speed.set_ylabel("tokens a second")
    speed.set_ylim(bottom=0)
    speed.set_xlabel("optimizer steps")
    figure.suptitle(run.resolve().name)
    save(figure, path)


def _running_mean(values: list[float]) -> list[float]:
    """Exponential, over about a twentieth of all values, without the pull of the first one."""
    keep = 1 - min(1.0, 20 / len(values))
    mean = weight = 0.0
    out = []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        out.append(mean / weight)
    return out
