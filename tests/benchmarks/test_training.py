"""The bench of trainings: all methods learn the same from the same records, and the figures follow from the seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import training as bench
from benchmarks.__main__ import app
from benchmarks.synthetic_mix import CONTEXT, PROFILE, VISUAL, draw, grouped_batches, items, random_batches
from mobillama_v.train.monitor.memory_profile import peak_memory

SMALL = ("--samples", "12", "--batch-size", "4", "--turns", "2", "--images", "2")


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_bench_train_measures_all_methods(nano_like: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "bench.json"
    code, out, err = call("train", "-m", nano_like, *SMALL, "-o", output)
    assert code == 0, err
    facts = json.loads(output.read_text())
    assert "simulated" in facts["records"] and "simulated" in out
    methods = facts["instruct"]
    assert list(methods) == [bench.RANDOM, bench.GROUPED, bench.PACKED]
    for name, method in methods.items():
        assert name in out and len(method["seconds"]) == 2
        speeds = sorted(12 / seconds for seconds in method["seconds"])
        assert method["samples_per_second"] == pytest.approx(
            {"median": sum(speeds) / 2, "least": speeds[0], "most": speeds[1]}
        )
    assert methods[bench.PACKED]["padding"] == pytest.approx(0, abs=1e-9) and methods[bench.RANDOM]["padding"] > 0.1
    assert 0 < methods[bench.PACKED]["activation_bytes"] < methods[bench.RANDOM]["activation_bytes"]
    ratios = [a / b for a, b in zip(methods[bench.RANDOM]["seconds"], methods[bench.PACKED]["seconds"], strict=True)]
    assert facts["packed_is_faster"][bench.RANDOM]["most"] == pytest.approx(max(ratios))
    assert facts["largest_difference_of_losses"] < 1e-4
    assert list(facts["align"]) == [bench.EVERY_STEP, bench.CACHED]


def test_methods_that_do_not_learn_the_same_are_an_error(nano_like: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.synthetic_mix.grouped_batches", lambda mix, size: grouped_batches(mix, size)[1:])
    code, out, _ = call("train", "-m", nano_like, *SMALL, "--gradient-checkpointing")
    assert code == 1 and "losses   differ" in out


def test_the_simulated_mix_has_its_profile() -> None:
    assert sum(source.thousands for source in PROFILE) == 665
    mix = draw(4000, per_image=VISUAL, seed=1)
    assert mix.images.mean() == pytest.approx(624 / 665, abs=0.02)
    assert mix.lengths.max() == CONTEXT and mix.lengths[mix.images].min() > VISUAL
    assert (mix.learnt < mix.lengths - VISUAL * mix.images).all() and mix.learnt.min() >= 1
    small = draw(4000, per_image=64, seed=1)
    assert small.lengths.mean() == pytest.approx(mix.lengths.mean() / 9, rel=0.02)
    assert draw(4000, per_image=64, seed=1).lengths.tolist() == small.lengths.tolist()

    some = draw(9, per_image=4, seed=0)
    made = items(some, per_image=4, vocabulary=50, features=torch.zeros(1, 5, 8), seed=0)
    assert [len(item["input_ids"]) for item in made] == some.lengths.tolist()
    assert [int((item["labels"] >= 0).sum()) for item in made] == some.learnt.tolist()
    assert [int(item["image_mask"].sum()) for item in made] == (4 * some.images).tolist()
    assert ["image_features" in item for item in made] == some.images.tolist()


def test_batches_hold_every_record_once_and_llavas_are_of_one_kind() -> None:
    mix = draw(128, per_image=VISUAL, seed=2)
    for batches in (random_batches(mix, 16, seed=0), grouped_batches(mix, 16)):
        assert sorted(record for batch in batches for record in batch) == list(range(128))
        assert max(map(len, batches)) <= 16
    grouped = grouped_batches(mix, 16)
    assert all(len(set(mix.images[batch])) == 1 for batch in grouped)
    pictures = [mix.lengths[batch].sum() for batch in grouped if mix.images[batch[0]]]
    assert np.ptp(pictures) < 0.1 * np.mean(pictures)


def test_the_peak_is_that_of_what_is_held_at_once() -> None:
    def work() -> None:
        torch.zeros(1 << 18)
        both = [torch.zeros(1 << 18), torch.zeros(1 << 18)]
        del both

    assert peak_memory(work) == pytest.approx(2 * 4 * (1 << 18), rel=0.01)
