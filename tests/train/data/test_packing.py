"""Packed samples: each is learned from as if it were alone, and packs are as exact to resume and to name as batches."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mobillama_v.errors import DataError, RecipeError
from mobillama_v.prompt import IGNORE_INDEX
from mobillama_v.train.build import Setup
from mobillama_v.train.data.collate import Collator, PackCollator
from mobillama_v.train.data.sampler import pack, shuffled
from mobillama_v.train.monitor.log import Progress
from mobillama_v.train.monitor.loss_monitor import SUSPECTS, LossMonitor
from mobillama_v.train.recipe_files import load_recipe
from mobillama_v.train.run import run
from mobillama_v.train.trainer import enable_gradient_checkpointing
from trainings import on_corpus

SETTINGS = (
    "train.pack_tokens=700",
    "train.gradient_accumulation=2",
    "train.max_steps=5",
    "train.save_steps=2",
)
overrides = partial(on_corpus, settings=SETTINGS)


def trace(output: Path) -> list[tuple[int, float]]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines)]


@pytest.fixture
def setup(start_folder, corpus, tmp_path) -> Setup:
    made = Setup.of(load_recipe("nano-instruct", overrides(start_folder, corpus, tmp_path / "run")))
    made.model.train()
    made.model.vision_tower.eval()
    return made


def gradients(setup: Setup, batch) -> tuple[float, dict[str, torch.Tensor]]:
    setup.model.zero_grad()
    loss = setup.model(**batch, num_items_in_batch=7).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in setup.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


# --- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_pack_has_the_losses_and_the_gradients_of_its_samples_alone(setup, checkpointing) -> None:
    """Pictures, several turns and text alone, in fp32: sums run in another order, nothing else differs."""
    dataset = setup.dataset()
    items = [dataset[i] for i in (0, 25, 7, 3, 30)]
    assert len({len(item["input_ids"]) for item in items}) > 1
    if checkpointing:
        enable_gradient_checkpointing(setup.model)
    packed = PackCollator()([items])
    assert packed["input_ids"].shape == (1, sum(packed["sample_lengths"]))
    loss, found = gradients(setup, packed)
    padded_loss, wanted = gradients(setup, Collator(pad_id=0)(items))
    assert loss == pytest.approx(padded_loss, rel=1e-6)
    assert found.keys() == wanted.keys() and "projector.linear_1.weight" in found
    for name, grad in found.items():
        torch.testing.assert_close(grad, wanted[name], rtol=1e-4, atol=1e-6, msg=name)
    start = 0
    for item in items:
        alone = setup.model(**Collator(pad_id=0)([item]), num_items_in_batch=1).loss
        end = start + len(item["input_ids"])
        labels = packed["labels"].clone()
        labels[:, :start] = labels[:, end:] = IGNORE_INDEX
        in_pack = setup.model(**{**packed, "labels": labels}, num_items_in_batch=1).loss
        assert float(in_pack.detach()) == pytest.approx(float(alone.detach()), rel=1e-6)
        start = end


def test_a_samples_neighbors_do_not_see_it(setup) -> None:
    dataset = setup.dataset()
    items = [dataset[i] for i in (1, 26, 2)]
    before = PackCollator()([items])
    first, second, _ = before["sample_lengths"]
    ids = before["input_ids"].clone()
    ids[0, first : first + second] = (ids[0, first : first + second] + 1) % 90
    inputs = {name: value for name, value in before.items() if name != "labels"}
    with torch.no_grad():
        one = setup.model(**inputs, output_hidden_states=True).hidden_states[-1]
        other = setup.model(**{**inputs, "input_ids": ids}, output_hidden_states=True).hidden_states[-1]
    same = (one == other).all(-1)[0]
    assert same[:first].all() and same[first + second :].all()
    assert not same[first : first + second].any()


def test_a_blank_image_is_a_sample_of_which_nothing_is_learned(setup) -> None:
    dataset = setup.dataset()
    texts, blank = [dataset[i] for i in (24, 27)], dataset.blank(setup.model.tokens_per_image)
    plain, with_blank = PackCollator()([texts]), PackCollator(blank)([texts])
    assert with_blank["sample_lengths"] == (*plain["sample_lengths"], setup.model.tokens_per_image)
    losses = [gradients(setup, batch)[0] for batch in (plain, with_blank)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert PackCollator(blank)([[dataset[0], *texts]])["image_mask"].sum() == setup.model.tokens_per_image


def test_what_no_pack_can_be_is_refused(setup) -> None:
    dataset = setup.dataset()
    batch = PackCollator()([[dataset[25], dataset[26]]])
    for wrong in ({"sample_lengths": (3, 4)}, {"attention_mask": torch.ones_like(batch["input_ids"])}):
        with pytest.raises(ValueError, match="packed samples fill the only row"):
            setup.model(**{**batch, **wrong})


# --- the order ------------------------------------------------------------------------------------------------------


def test_packs_are_neighbors_of_the_shuffled_order_and_as_many_as_fit() -> None:
    lengths = np.random.default_rng(0).integers(5, 90, 200)
    packs = pack(lengths, tokens=200, seed=3, total=500)
    assert packs.order.tolist() == shuffled(200, total=500, seed=3).tolist()
    assert [sample for i in range(len(packs)) for sample in packs[i]] == packs.order.tolist()
    sizes = [sum(lengths[packs[i]]) for i in range(len(packs))]
    assert max(sizes) == packs.most(lengths) <= 200
    for i in range(len(packs) - 1):
        assert sizes[i] + lengths[packs[i + 1][0]] > 200

    for multiple in (2, 3, 7):
        more = pack(lengths, tokens=200, seed=3, total=500, multiple=multiple)
        assert len(more) == math.ceil(len(packs) / multiple) * multiple
        assert [more[i] for i in range(len(packs) - 1)] == [packs[i] for i in range(len(packs) - 1)]
        assert more.most(lengths) <= 200
    for count in (1, 5, 300):
        counted = pack(lengths, tokens=200, seed=3, total=1, count=count)
        assert len(counted) == count and set(counted.order) <= set(range(200))
    assert pack(lengths, tokens=200, seed=4, total=500).order.tolist() != packs.order.tolist()
    with pytest.raises(RecipeError, match=r"pack_tokens is 80 and the longest sample has \d+ tokens"):
        pack(lengths, tokens=80, seed=0, total=1)


# --- in a training --------------------------------------------------------------------------------------------------


def test_a_steps_loss_is_that_of_its_samples_over_their_supervised_tokens(
    setup, start_folder, corpus, tmp_path, capsys
) -> None:
    args = overrides(start_folder, corpus, tmp_path / "run")
    dataset = setup.dataset()
    assert setup.packs is not None and len(setup.packs) == 10
    batch = Collator(pad_id=0)([dataset[i] for i in (*setup.packs[0], *setup.packs[1])])
    with torch.no_grad():
        wanted = float(setup.model(**batch).loss)  # over the supervised tokens of all rows
    run(load_recipe("nano-instruct", args))
    assert trace(tmp_path / "run")[0] == (1, pytest.approx(wanted, rel=1e-4))  # logs are rounded
    assert "5 of 2 packs of up to 700 tokens" in capsys.readouterr().out


def test_features_checkpointing_and_workers_change_nothing(start_folder, corpus, tmp_path) -> None:
    losses = {}
    for name, more in (
        ("plain", ()),
        ("recomputed", ("train.gradient_checkpointing=true",)),
        ("pixels", ("data.features=null",)),
        ("workers", ("train.dataloader_workers=1",)),
    ):
        run(load_recipe("nano-instruct", overrides(start_folder, corpus, tmp_path / name, "train.max_steps=3", *more)))
        losses[name] = [loss for _, loss in trace(tmp_path / name)]
    assert losses["workers"] == losses["plain"]
    assert losses["recomputed"] == pytest.approx(losses["plain"], rel=1e-6)
    assert losses["pixels"] == pytest.approx(losses["plain"], rel=1e-2)  # the cache holds half precision


def test_a_training_that_broke_off_ends_as_one_that_did_not(start_folder, corpus, tmp_path, monkeypatch) -> None:
    epochs = ("train.max_steps=null", "train.epochs=1.5")
    whole = run(load_recipe("nano-instruct", overrides(start_folder, corpus, tmp_path / "whole", *epochs)))
    steps = [step for step, _ in trace(tmp_path / "whole")]
    assert len(steps) > 4
    log = Progress.on_log

    def broken(self, args, state, *rest, **options):
        if state.global_step == 4:
            raise KeyboardInterrupt
        log(self, args, state, *rest, **options)

    args = overrides(start_folder, corpus, tmp_path / "broken", *epochs)
    with monkeypatch.context() as patched:
        patched.setattr(Progress, "on_log", broken)
        with pytest.raises(KeyboardInterrupt):
            run(load_recipe("nano-instruct", args))
    final = run(load_recipe("nano-instruct", args), resume=True)
    assert trace(tmp_path / "broken") == trace(tmp_path / "whole")
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, final))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_records_that_are_named_are_those_of_the_packs(setup, start_folder, corpus, tmp_path, monkeypatch) -> None:
    wrong, calls = LossMonitor.wrong, []

    def third(self: LossMonitor, loss: float) -> str | None:
        calls.append(loss)
        return wrong(self, math.nan if len(calls) == 3 else loss)

    monkeypatch.setattr(LossMonitor, "wrong", third)
    with pytest.raises(DataError, match="nan at step 3"):
        run(load_recipe("nano-instruct", overrides(start_folder, corpus, tmp_path / "run")))
    lines = [json.loads(line) for line in (tmp_path / "run" / SUSPECTS).read_text().splitlines()]
    for place in range(6):
        named = [line["record"] for line in lines if (line["step"], line["pass"]) == (place // 2 + 1, place % 2 + 1)]
        assert named == [setup.samples.records[sample][1] for sample in setup.packs[place]]


def test_validation_is_that_of_a_training_without_packs(start_folder, corpus, tmp_path) -> None:
    """Of the same weights, those that nothing has been learned by: at a rate that changes no number."""
    more = (f"validation.json={corpus / 'pictures.json'}", "validation.steps=1", "validation.max_new_tokens=2")
    more += ("train.modules={projector: 1e-30}", "train.optimizer=adamw", "train.max_steps=1", "train.batch_size=4")
    found = {}
    for name, tokens in (("packed", "700"), ("padded", "null")):
        args = overrides(start_folder, corpus, tmp_path / name, *more, f"train.pack_tokens={tokens}")
        run(load_recipe("nano-instruct", args))
        told = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        answers = [json.loads(line) for line in (tmp_path / name / "validation" / "answers.jsonl").open()]
        found[name] = [told[-1]["validation_loss"], answers]
    assert found["packed"] == found["padded"]


def test_the_command_plans_packs_and_refuses_what_they_cannot_keep(start_folder, corpus, tmp_path) -> None:
    from typer.testing import CliRunner

    from mobillama_v.cli.train import app

    args = overrides(start_folder, corpus, tmp_path / "run")
    planned = CliRunner().invoke(app, ["nano-instruct", *args, "--dry-run", "--gpu", "l4", "--gpus", "1,2"])
    assert planned.exit_code == 0, planned.output
    assert "steps    5 of 2 packs of up to 700 tokens" in planned.output
    with pytest.raises(RecipeError, match=r"set train\.global_batch_size=null"):
        load_recipe("instruct-665k", ["train.pack_tokens=8192"])
    with pytest.raises(RecipeError, match="raise it, or lower"):
        Setup.of(load_recipe("nano-instruct", [*args, "train.pack_tokens=100"]))
