"""TensorBoard and Weights & Biases are told what metrics.jsonl is, below the output and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mobillama_v.errors import MissingExtraError, RecipeError
from mobillama_v.train.monitor import reporters
from mobillama_v.train.recipe_files import load_recipe
from mobillama_v.train.run import run
from trainings import on_corpus

SETTINGS = (
    "data.features=null",
    "train.batch_size=4",
    "train.max_steps=2",
    "train.save_steps=1",
    "validation.answers=2",
    "validation.max_new_tokens=2",
)


def overrides(start: Path, corpus: Path, output: Path, *more: str) -> list[str]:
    records = f"data.json={corpus / 'pictures.json'}"
    return on_corpus(
        start, corpus, output, records, f"validation.json={corpus / 'text.jsonl'}", *more, settings=SETTINGS
    )


def test_what_is_asked_for_and_not_installed_is_one_sentence(start_folder, corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(reporters.importlib.util, "find_spec", lambda name: None)
    recipe = load_recipe("nano-align", overrides(start_folder, corpus, tmp_path / "run", "train.report=wandb"))
    with pytest.raises(
        MissingExtraError, match=r"Weights & Biases is not installed; pip install 'mobillama-v\[wandb\]'"
    ):
        reporters.require_reporters(recipe)
    with pytest.raises(RecipeError, match="one of tensorboard, wandb"):
        load_recipe("nano-align", ["train.report=[comet]"])


def test_tensorboard_is_told_every_step_once(start_folder, corpus, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    output = tmp_path / "run"
    run(load_recipe("nano-align", overrides(start_folder, corpus, output, "train.report=tensorboard")))
    events = EventAccumulator(str(output / "tensorboard")).Reload()
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps, tried = ([line for line in lines if key in line] for key in ("loss", "validation_loss"))
    assert len(steps) == 2 and len(tried) == 1
    for tag, key, wanted in (
        ("train/loss", "loss", steps),
        ("train/tokens_per_second", "tokens_per_second", steps),
        ("eval/loss", "validation_loss", tried),
        ("eval/exact_match", "validation_exact_match", tried),
    ):
        assert [(event.step, event.value) for event in events.Scalars(tag)] == [
            (line["step"], pytest.approx(line[key], rel=1e-6)) for line in wanted
        ]


def test_wandb_writes_offline_below_the_output(start_folder, corpus, tmp_path, monkeypatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "run"
    run(load_recipe("nano-align", overrides(start_folder, corpus, output, "train.report=[wandb]")))
    assert wandb.run is None
    (folder,) = (output / "wandb").glob("offline-run-*")
    (record,) = folder.glob("run-*.wandb")
    text = record.read_bytes()
    assert b"train/loss" in text and b"eval/exact_match" in text
    assert not (tmp_path / "wandb").exists()
