"""The loss monitor: what ends a training, what does not, and what is left of it."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny
from mobillama_v.errors import DataError
from mobillama_v.train.data.features import PATHS
from mobillama_v.train.data.picture_keys import PictureKeys
from mobillama_v.train.monitor.loss_monitor import FEWEST, IN_SUCCESSION, SUSPECTS, LossMonitor
from mobillama_v.train.recipe_files import load_recipe
from mobillama_v.train.run import run
from trainings import on_corpus


def verdicts(monitor: LossMonitor, losses: list[float]) -> list[int]:
    """At which of the losses something was wrong."""
    return [i for i, loss in enumerate(losses) if monitor.wrong(loss) is not None]


def steady(count: int, seed: int = 0) -> list[float]:
    rng = random.Random(seed)
    return [rng.gauss(1.0, 0.1) for _ in range(count)]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_wrong_at_once(loss: float) -> None:
    assert verdicts(LossMonitor(None), [2.0, loss]) == [1]


def test_three_high_losses_in_succession_are_a_spike_and_fewer_are_not() -> None:
    quiet = steady(80)
    assert verdicts(LossMonitor(5.0), [*quiet, 9.0, 9.0, *steady(20, 1), 9.0, 9.0, *steady(5, 2)]) == []
    assert verdicts(LossMonitor(5.0), [*quiet, 9.0, 9.0, 9.0]) == [82]
    monitor = LossMonitor(5.0)
    verdicts(monitor, [*quiet, 9.0, 9.0])
    wrong = monitor.wrong(9.0)
    assert wrong is not None and "for 3 steps" in wrong
    assert verdicts(LossMonitor(None), [*quiet, *[9.0] * 9]) == []


def test_a_jump_counts_only_when_it_is_large_both_ways() -> None:
    assert verdicts(LossMonitor(5.0), [*steady(80), *[1.9] * 9]) == []  # not twice the median
    rng = random.Random(3)
    wide = [rng.choice([0.5, 2.5]) for _ in range(80)]  # two kinds of batches
    assert verdicts(LossMonitor(5.0), [*wide, *[2.5] * 20]) == []


def test_what_trainings_do_raises_no_alarm() -> None:
    """Falling losses of heavy-tailed batches, in which the old ones stay in the window: 5 trainings of 800 steps."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        noise = rng.gamma(8, 1 / 8, 800)  # the mean of eight samples whose losses are exponential
        losses = (0.02 + 9 * np.exp(-np.arange(800) / 80)) * noise
        assert verdicts(LossMonitor(5.0), losses.tolist()) == []


def test_nothing_is_judged_before_enough_is_known_and_a_resumed_monitor_knows_it() -> None:
    start = steady(FEWEST - IN_SUCCESSION)
    assert verdicts(LossMonitor(5.0), [*start, *[9.0] * IN_SUCCESSION]) == []
    before = LossMonitor(5.0)
    verdicts(before, steady(80))
    kept = json.loads(json.dumps(list(before.losses)))
    assert verdicts(LossMonitor(5.0, kept), [9.0] * 3) == [2]


# --- in a training --------------------------------------------------------------------------------------------------


SETTINGS = (
    "train.batch_size=2",
    "train.gradient_accumulation=2",
    "train.max_steps=6",
    "train.save_steps=1",
)


def overrides(start: Path, corpus: Path, output: Path, *more: str) -> list[str]:
    records = f"data.json=[{corpus / 'pictures.json'}]"
    return on_corpus(start, corpus, output, records, *more, settings=SETTINGS)


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_training_that_goes_wrong_names_its_records_and_goes_on_once_that_is_fixed(
    start_folder, corpus, tmp_path, tmp_path_factory
) -> None:
    """The features of one image are spoiled in the store, as by a broken disk; as they were, all is well again."""
    args = overrides(start_folder, corpus, tmp_path / "whole")
    run(load_recipe("nano-align", args))
    (features,) = (tmp_path / "features").glob("*/*.rows")
    (key,) = PictureKeys(tmp_path / "features" / PATHS).of([corpus / "images" / "5.png"])
    keys, whole = features.with_suffix(".keys").read_bytes(), features.read_bytes()
    stored = np.frombuffer(whole, np.float16).reshape(len(keys) // len(key), -1).copy()
    stored[keys.index(key) // len(key)] = np.nan
    features.write_bytes(stored.tobytes())

    output = tmp_path / "spoiled"
    args = overrides(start_folder, corpus, output)
    driver = (
        f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(Path(tiny.__file__).parent)!r})\nimport tiny\n"
        f"tiny.register_tower(Path({str(tmp_path_factory.mktemp('towers'))!r}))\n"
        f"from mobillama_v.train.__main__ import main\nsys.argv = ['train', 'nano-align', *{args!r}]\nmain()\n"
    )
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    said = done.stderr.splitlines()[-1]
    assert said.startswith("error: the loss is nan at step") and SUSPECTS in said
    lines = [json.loads(line) for line in (output / SUSPECTS).read_text().splitlines()]
    last = max(line["step"] for line in lines)
    spoiled = [line for line in lines if line["loss"] is None]
    assert {line["step"] for line in spoiled} == {last}
    assert "p5" in {line["record"] for line in spoiled}
    assert len(spoiled) == 2  # the pass with that record, not the step's other one
    assert [line for line in lines if line["step"] == last and line["loss"] is not None]
    assert {"images", "source", "device", "pass"} <= spoiled[0].keys()
    assert len({line["step"] for line in lines}) == min(last, IN_SUCCESSION)
    done_steps = len(losses(output))
    assert done_steps == last - 1
    assert (output / f"checkpoint-{done_steps}").is_dir() == (done_steps > 0)
    assert not (output / f"checkpoint-{last}").exists()

    features.write_bytes(whole)
    run(load_recipe("nano-align", args), resume=True)
    assert losses(output) == losses(tmp_path / "whole")
    assert not (output / SUSPECTS).exists()


def test_the_records_that_are_named_are_those_of_the_step(start_folder, corpus, tmp_path, monkeypatch) -> None:
    """They are those that the data set was asked for, pass by pass, and each pass has its own loss."""
    from mobillama_v.train.data.dataset import TrainingSet

    items = TrainingSet.__getitem__
    drawn: list[int] = []

    def watched(self: TrainingSet, index: int) -> object:
        drawn.append(index)
        return items(self, index)

    monkeypatch.setattr(TrainingSet, "__getitem__", watched)
    wrong = LossMonitor.wrong
    calls: list[float] = []

    def fourth(self: LossMonitor, loss: float) -> str | None:
        calls.append(loss)
        return wrong(self, math.nan if len(calls) == 4 else loss)

    monkeypatch.setattr(LossMonitor, "wrong", fourth)
    with pytest.raises(DataError, match=r"nan at step 4; .*checkpoint is kept"):
        run(load_recipe("nano-align", overrides(start_folder, corpus, tmp_path / "run")))
    lines = [json.loads(line) for line in (tmp_path / "run" / SUSPECTS).read_text().splitlines()]
    assert [line["step"] for line in lines] == [2] * 4 + [3] * 4 + [4] * 4
    assert [line["pass"] for line in lines] == [1, 1, 2, 2] * 3
    assert [line["record"] for line in lines] == [f"p{index}" for index in drawn[4:16]]
    passes = {(line["step"], line["pass"]): line["loss"] for line in lines}
    for step in (2, 3, 4):
        assert passes[step, 1] + passes[step, 2] == pytest.approx(calls[step - 1], rel=1e-5)


def test_no_checkpoint_is_written_while_the_loss_is_high(start_folder, corpus, tmp_path, monkeypatch) -> None:
    judged = LossMonitor.wrong

    def high(self: LossMonitor, loss: float) -> str | None:
        self.calls = getattr(self, "calls", 0) + 1  # type: ignore[attr-defined]
        return judged(self, loss + {3: 1e6, 4: 1e12}.get(self.calls, 0))  # type: ignore[attr-defined]

    monkeypatch.setattr(LossMonitor, "wrong", high)
    monkeypatch.setattr("mobillama_v.train.monitor.loss_monitor.FEWEST", 2)
    run(load_recipe("nano-align", overrides(start_folder, corpus, tmp_path / "run", "train.save_total_limit=9")))
    kept = sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*"))
    assert kept == [f"checkpoint-{step}" for step in (1, 2, 5, 6)]
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "training.json").read_text())
    assert state["losses"] == pytest.approx(losses(tmp_path / "run")[:2], rel=1e-5)


def test_weights_that_are_not_finite_are_not_saved(start_folder, corpus, tmp_path) -> None:
    """A rate that is too high spoils the weights at a step whose own loss is still fine."""
    more = ("train.modules={projector: 3e38}", "train.optimizer=adamw", "train.warmup_ratio=0", "train.max_grad_norm=0")
    with pytest.raises(DataError, match="lower the learning rates"):
        run(load_recipe("nano-align", overrides(start_folder, corpus, tmp_path / "run", *more, "train.weight_decay=1")))
    assert not list((tmp_path / "run").glob("checkpoint-*"))
