"""Trainings on the tiny model: what changes, what a kill costs, and what accumulation does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from mobillama_v.errors import CheckpointError, DataError, ImageError, RecipeError
from mobillama_v.train.build import Setup
from mobillama_v.train.data.preprocess import KEPT
from mobillama_v.train.recipe import ModulesSection, Recipe
from mobillama_v.train.recipe_files import load_recipe
from mobillama_v.train.run import run
from trainings import on_corpus

STAGES = {"nano-align": {"projector"}, "nano-instruct": {"projector", "language_model", "lm_head"}}

# Runs the command in a process that kills itself: at the log of a step, or with a checkpoint written but unnamed.
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import tiny
tiny.register_tower(Path({towers!r}))
from mobillama_v.train import checkpoints
from mobillama_v.train.monitor import log
from mobillama_v.train.__main__ import main
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
on_log, publish = log.Progress.on_log, checkpoints.publish
if {where!r} == "step":
    log.Progress.on_log = lambda p, a, s, *r, **k: die() if s.global_step == {step} else on_log(p, a, s, *r, **k)
else:
    checkpoints.publish = lambda written, t: die() if written.name == "checkpoint-{step}" else publish(written, t)
sys.argv = ["train", *{args!r}]
main()
"""


SETTINGS = (
    "train.batch_size=4",
    "train.max_steps=12",
    "train.save_steps=3",
)


def overrides(start: Path, corpus: Path, output: Path, *more: str) -> list[str]:
    records = f"data.json=[{corpus / 'pictures.json'}, {{path: {corpus / 'text.jsonl'}, repeat: 2}}]"
    return on_corpus(start, corpus, output, records, *more, settings=SETTINGS)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def trace(output: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in metrics(output)]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_changes_what_its_recipe_says_and_nothing_else(stage, start_folder, corpus, tmp_path) -> None:
    final = run(load_recipe(stage, overrides(start_folder, corpus, tmp_path / "run")))
    before, after = weights(start_folder), weights(final)
    learned = changed(before, after)
    assert {name.split(".")[0] for name in learned} == STAGES[stage]
    assert learned == {name for name in before if name.split(".")[0] in STAGES[stage]}


def test_the_tower_learns_where_a_recipe_says_so(start_folder, corpus, tmp_path) -> None:
    args = overrides(start_folder, corpus, tmp_path / "run", "data.features=null", "train.max_steps=2")
    final = run(load_recipe("nano-instruct", [*args, "train.modules={tower: 1e-3}"]))
    learned = changed(weights(start_folder), weights(final))
    assert learned
    assert {name.split(".")[0] for name in learned} == {"vision_tower"}


def test_parts_learn_at_their_own_rates_and_only_matrices_decay(start_folder, corpus, tmp_path) -> None:
    from mobillama_v.train.build import parameter_groups

    modules = ModulesSection(projector=1e-3, decoder=1e-5, embeddings=1e-6)
    setup = Setup.of(load_recipe("nano-instruct", overrides(start_folder, corpus, tmp_path / "run")))
    groups = parameter_groups(setup.model, modules, 0.1)
    names = {parameter: name for name, parameter in setup.model.named_parameters()}
    seen = {}
    for group in groups:
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if parameter.dim() >= 2 else 0.0)
            assert names[parameter] not in seen
            seen[names[parameter]] = group["lr"]
    wanted = {name for name in names.values() if not name.startswith("vision_tower")}
    assert seen.keys() == wanted
    assert {lr for name, lr in seen.items() if name.startswith("projector")} == {1e-3}
    assert {name for name, lr in seen.items() if lr == 1e-6} == {"lm_head.weight", "language_model.embed_tokens.weight"}
    assert {lr for name, lr in seen.items() if not name.startswith("projector")} == {1e-5, 1e-6}
    hidden = {names[parameter] for group in groups if group["hidden"] for parameter in group["params"]}
    assert "projector.linear_1.weight" in hidden and "language_model.layers.0.self_attn.q_proj.weight" in hidden
    assert not any("embed" in name or "head" in name or "norm" in name or "bias" in name for name in hidden)


def test_the_learning_rate_that_is_told_is_the_largest(start_folder, corpus, tmp_path) -> None:
    more = ("train.modules={projector: 1e-4, decoder: 1e-3, embeddings: 5e-4}", "train.max_steps=3")
    more += ("train.schedule=constant", "train.warmup_ratio=0")
    run(load_recipe("nano-instruct", overrides(start_folder, corpus, tmp_path / "run", *more)))
    assert [entry["lr"] for entry in metrics(tmp_path / "run")] == [1e-3] * 3


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "where", "step"), [("nano-align", "step", 8), ("nano-instruct", "save", 9)])
def test_a_killed_training_resumed_ends_as_one_that_was_not(
    stage, where, step, start_folder, corpus, tmp_path, tmp_path_factory
) -> None:
    whole = run(load_recipe(stage, overrides(start_folder, corpus, tmp_path / "whole")))
    args = overrides(start_folder, corpus, tmp_path / "killed")
    code = KILLED.format(
        tests=str(Path(tiny.__file__).parent),
        towers=str(tmp_path_factory.mktemp("towers")),
        where=where,
        step=step,
        args=[stage, *args],
    )
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    died = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    output = tmp_path / "killed"
    assert sorted(path.name for path in output.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    assert not (output / "final").exists()
    recipe = load_recipe(stage, args)
    with pytest.raises(CheckpointError, match="--resume"):
        run(recipe)
    final = run(recipe, resume=True)
    assert not changed(weights(whole), weights(final))
    assert trace(output) == trace(tmp_path / "whole")
    assert [each for each, _ in trace(output)] == list(range(1, 13))
    assert not (output / ".partial").exists()


def test_resuming_is_refused_with_another_recipe_or_other_data(start_folder, corpus, tmp_path) -> None:
    args = overrides(start_folder, corpus, tmp_path / "run", "train.max_steps=3")
    run(load_recipe("nano-align", args))
    with pytest.raises(CheckpointError, match=r"differs in train\.modules\.projector, train\.seed;"):
        run(load_recipe("nano-align", [*args, "train.modules.projector=2e-3", "train.seed=1"]), resume=True)
    data = tmp_path / "copy.json"
    data.write_text((corpus / "pictures.json").read_text())
    args = overrides(start_folder, corpus, tmp_path / "run2", "train.max_steps=3", f"data.json={data}")
    run(load_recipe("nano-align", args))
    data.write_text(data.read_text().replace("red", "pink"))
    with pytest.raises(CheckpointError, match="other data"):
        run(load_recipe("nano-align", args), resume=True)


def test_one_by_eight_is_eight_by_one(start_folder, corpus, tmp_path) -> None:
    """The orders of summation and the padding differ, so the losses agree to fp32 rounding (measured: 2e-7)."""
    common = ("train.max_steps=4", "train.weight_decay=0.1")
    for name, sizes in (("8x1", (8, 1)), ("1x8", (1, 8))):
        sizes_args = (f"train.batch_size={sizes[0]}", f"train.gradient_accumulation={sizes[1]}")
        run(load_recipe("nano-instruct", overrides(start_folder, corpus, tmp_path / name, *common, *sizes_args)))
    for (step, loss), (other_step, other) in zip(trace(tmp_path / "8x1"), trace(tmp_path / "1x8"), strict=True):
        assert step == other_step
        assert loss == pytest.approx(other, rel=1e-5)


def test_checkpointing_bf16_and_workers_give_the_same_losses(start_folder, corpus, tmp_path) -> None:
    losses = {}
    for name, more in (
        ("plain", ()),
        ("ckpt", ("train.gradient_checkpointing=true",)),
        ("bf16", ("train.precision=bf16",)),
        ("workers", ("train.dataloader_workers=1",)),
    ):
        run(load_recipe("nano-instruct", overrides(start_folder, corpus, tmp_path / name, "train.max_steps=3", *more)))
        losses[name] = [loss for _, loss in trace(tmp_path / name)]
    assert losses["ckpt"] == pytest.approx(losses["plain"], rel=1e-6)
    assert losses["bf16"] == pytest.approx(losses["plain"], rel=2e-2)  # bf16 holds 8 bits
    assert losses["bf16"] != losses["plain"]
    assert losses["workers"] == losses["plain"]


def test_the_loss_falls_and_the_folder_describes_itself(start_folder, corpus, tmp_path, capsys) -> None:
    from mobillama_v import MobiLlamaVForConditionalGeneration

    more = ("data.template=plain", "train.max_steps=60", "train.save_total_limit=1", "train.save_steps=25")
    more += (
        "train.optimizer=adamw",
        "train.modules={projector: 1.0e-3, decoder: 1.0e-3}",
        "train.group_by_length=true",
    )
    final = run(load_recipe("nano-instruct", overrides(start_folder, corpus, tmp_path / "run", *more)))
    losses = [loss for _, loss in trace(tmp_path / "run")]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])  # measured: 0.82
    names = {path.name for path in final.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "recipe.yaml"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-60"]
    assert MobiLlamaVForConditionalGeneration.from_pretrained(final).config.template == "plain"
    assert isinstance(load_recipe(str(final / "recipe.yaml")), Recipe)
    out = capsys.readouterr().out
    assert "\r" not in out
    assert "projector" in out
    assert "step 60/60" in out


def test_a_start_folder_without_weights_is_made_by_the_seed(start_folder, corpus, tmp_path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (bare / name).write_bytes((start_folder / name).read_bytes())
    states = [
        Setup.of(
            load_recipe("nano-text", overrides(bare, corpus, tmp_path / "o", f"train.seed={seed}"))
        ).model.state_dict()
        for seed in (1, 1, 2)
    ]
    assert not changed(states[0], states[1])
    assert "language_model.embed_tokens.weight" in changed(states[0], states[2])


def test_what_a_start_folder_lacks_is_named(start_folder, corpus, tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        Setup.of(load_recipe("nano-text", overrides(tmp_path, corpus, tmp_path / "o")))
    with pytest.raises(RecipeError, match="max_length is 257"):
        Setup.of(load_recipe("nano-text", overrides(start_folder, corpus, tmp_path / "o", "data.max_length=257")))


def test_a_loss_that_is_not_finite_ends_the_training(start_folder, corpus, tmp_path) -> None:
    args = overrides(start_folder, corpus, tmp_path / "run", "train.modules.decoder=1e30", "train.max_grad_norm=0")
    with pytest.raises(DataError, match="lower the learning rates"):
        run(load_recipe("nano-instruct", args))


def test_a_damaged_image_is_one_sentence_from_a_worker_too(start_folder, corpus, tmp_path) -> None:
    root = tmp_path / "images"
    root.mkdir()
    for path in (corpus / "images").iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    (root / "5.png").write_bytes((root / "5.png").read_bytes()[:50])
    more = (f"data.json={corpus / 'pictures.json'}", f"data.image_root={root}", "data.features=null")
    more += ("data.check_images=exists",)  # else it would be found before there are workers
    for workers in (0, 1):
        args = overrides(start_folder, corpus, tmp_path / f"run{workers}", *more, f"train.dataloader_workers={workers}")
        with pytest.raises(ImageError, match=r"5\.png") as caught:
            run(load_recipe("nano-align", args))
        assert "\n" not in str(caught.value)
        assert "Traceback" not in str(caught.value)


def test_the_command_plans_and_names_mistakes(start_folder, corpus, tmp_path) -> None:
    import typer
    from typer.testing import CliRunner

    from mobillama_v.cli.train import train

    app = typer.Typer()
    app.command()(train)
    args = overrides(start_folder, corpus, tmp_path / "run")
    result = CliRunner().invoke(app, ["nano-align", *args, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "steps    12 of 4 x 1 samples" in result.output
    assert "40 samples, 24 images" in result.output
    assert not (tmp_path / "run").exists()
    wrong = subprocess.run(
        [sys.executable, "-m", "mobillama_v.train", "nano-align", "train.epoch=1"],
        capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.count("\n") == 1
    assert "did you mean 'epochs'" in wrong.stderr


def test_bad_records_stop_a_training_before_its_first_step_or_are_left_out(
    start_folder, corpus, tmp_path, capsys
) -> None:
    root = tmp_path / "images"
    shutil.copytree(corpus / "images", root)
    (root / "5.png").write_bytes((root / "5.png").read_bytes()[:50])
    (root / "7.png").unlink()
    records = json.loads((corpus / "pictures.json").read_text())
    records[1]["conversations"][1]["value"] = " "
    records[2]["conversations"].reverse()
    records.append(records[4] | {"id": "again"})
    records.append(records[3] | {"id": "\ud800", "conversations": []})
    data = tmp_path / "spoiled.json"
    data.write_text(json.dumps(records))
    bad = {
        "p1": "empty answer",
        "p2": "roles out of order",
        "p5": "unreadable image",
        "p7": "missing image",
        "again": "exact duplicate",
        "\ud800": "roles out of order",
    }
    more = [f"data.json={data}", f"data.image_root={root}", "data.features=null", "data.duplicates=refuse"]
    args = overrides(start_folder, corpus, tmp_path / "run", *more, "train.max_steps=2")
    with pytest.raises(DataError, match=r"6 of 26 records .*data\.skip_bad=true"):
        run(load_recipe("nano-align", args))
    out = capsys.readouterr().out
    assert "step" not in out
    listed = [json.loads(line) for line in (tmp_path / "run" / "bad-records.jsonl").read_text().splitlines()]
    assert {each["record"]: each["kind"] for each in listed} == bad
    assert all(each["reason"] in out for each in listed)
    assert run(load_recipe("nano-align", [*args, "data.skip_bad=true"])).is_dir()
    out = capsys.readouterr().out
    assert "without 6 bad records" in out
    assert "20 samples, 20 images" in out
    with pytest.raises(DataError, match="4 of 26 records"):
        Setup.of(load_recipe("nano-align", [*args, "data.duplicates=keep", "data.empty_answers=skip"]))
    kept = Setup.of(load_recipe("nano-align", [*args, "data.skip_bad=true", "data.duplicates=keep"])).samples
    assert kept.notes[KEPT] == 1, kept.notes
    assert [name for _, name in kept.records] == [f"p{i}" for i in range(24) if f"p{i}" not in bad] + ["again"]


def test_pictures_are_checked_though_their_features_are_stored(start_folder, corpus, tmp_path) -> None:
    root = tmp_path / "images"
    shutil.copytree(corpus / "images", root)
    recipe = load_recipe("nano-align", overrides(start_folder, corpus, tmp_path / "run", f"data.image_root={root}"))
    Setup.of(recipe).dataset()
    (root / "5.png").write_bytes((root / "5.png").read_bytes()[:50])
    (root / "7.png").unlink()
    with pytest.raises(DataError, match=r"2 of 32 records cannot .*1 unreadable image, 1 missing image"):
        Setup.of(recipe)
