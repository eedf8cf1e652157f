"""Dry runs: the flagship's plan before anything is there, and stats that follow what they should."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest

from mobillama_v.errors import RecipeError
from mobillama_v.presets import preset
from mobillama_v.train.planner import plan
from mobillama_v.train.planner.gpus import GPUS, gpu
from mobillama_v.train.planner.memory import BatchShape, Counts, adapter_parameters, estimate
from mobillama_v.train.recipe import LoraSection
from mobillama_v.train.recipe_files import load_recipe

SPEC = preset("mobillama-0.8b").spec
LOAD = BatchShape(rows=16, length=2048, supervised=6400, images=16)


def dry_run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mobillama_v", "train", *args, "--dry-run"], capture_output=True, text=True
    )


@pytest.mark.parametrize("recipe", ["align-558k", "instruct-665k", "lora"])
def test_a_flagship_has_a_plan_before_anything_is_there(recipe: str) -> None:
    done = dry_run(recipe, "--gpu", "A100 80GB")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[0] in ("1", "8", "32")]
    assert [row[0] for row in rows] == ["1", "8", "32"]
    peaks, hours = [float(row[-3]) for row in rows], [float(row[-1]) for row in rows]
    assert peaks == sorted(peaks, reverse=True)
    assert hours[0] == pytest.approx(8 * hours[1], rel=0.1)
    assert "assumed" in done.stdout and "312 TFLOP/s" in done.stdout
    assert ("one adapter of the shared feed-forward network" in done.stdout) == (recipe == "lora")


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (("nano-instruct",), "leaves model.start open"),
        (("instruct-665k", "--gpu", "a1000"), "no GPU 'a1000'"),
        (("instruct-665k", "--gpu", "l4", "--gpus", "1,x"), "--gpus must be numbers"),
        (("instruct-665k", "--gpu", "l4", "--gpus", "3"), "no multiple"),
        (("instruct-665k", "--gpus", "8"), "need a kind of GPU"),
        (("instruct-665k", "model.start=nowhere"), "nowhere"),
    ],
)
def test_what_is_wrong_is_one_sentence(args: tuple[str, ...], problem: str) -> None:
    done = dry_run(*args)
    assert done.returncode == 2
    assert problem in done.stderr and "Traceback" not in done.stderr


def test_parameters_are_those_of_the_model() -> None:
    train = load_recipe("instruct-665k").train
    counts = Counts.of(SPEC, train)
    assert counts.learning == {"projector": counts.all["projector"], "decoder": counts.all["decoder"]}
    lora = load_recipe("lora").train
    hidden, inner, layers, rank = 2560, 10240, 22, 128
    assert lora.lora is not None
    wanted = rank * (layers * 4 * 2 * hidden + 3 * (hidden + inner))  # the network's are there once
    assert adapter_parameters(SPEC.decoder, lora.lora) == wanted == Counts.of(SPEC, lora).learning["decoder"]
    per_layer = dataclasses.replace(SPEC.decoder, ffn_sharing="none")
    assert adapter_parameters(per_layer, LoraSection()) > wanted


def test_each_stage_of_zero_takes_less() -> None:
    train = load_recipe("instruct-665k").train
    kinds = [None, "zero1", "zero2", "zero3", "zero3-offload"]
    states = {
        kind: estimate(SPEC, dataclasses.replace(train, deepspeed=kind), LOAD, devices=8, accumulation=1)
        for kind in kinds
    }
    held = [states[kind].weights + states[kind].gradients + states[kind].states for kind in kinds]
    assert held == sorted(held, reverse=True) and len(set(held)) == len(held)
    learning = sum(Counts.of(SPEC, train).learning.values())
    assert states["zero2"].states == pytest.approx(12 * learning / 8, rel=1e-6)


def test_recomputing_and_fewer_logits_save_memory_and_cost_time() -> None:
    recipe = load_recipe("instruct-665k")
    keep = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, gradient_checkpointing=False))
    one, other = (estimate(SPEC, r.train, LOAD, devices=8, accumulation=1) for r in (recipe, keep))
    assert one.activations < other.activations / 3
    fewer = dataclasses.replace(LOAD, supervised=64)
    assert estimate(SPEC, keep.train, fewer, devices=8, accumulation=1).logits * 100 == other.logits
    stats = plan.assumed_stats(recipe)
    useful, done = plan.floating_point_operations(recipe, SPEC, stats, 1000)
    assert plan.floating_point_operations(keep, SPEC, stats, 1000) == (useful, useful)
    assert 1.2 < done / useful < 4 / 3


def test_the_largest_batch_of_packs_is_their_budget() -> None:
    recipe = load_recipe("instruct-665k", ["train.pack_tokens=14000", "train.global_batch_size=null"])
    stats = plan.assumed_stats(recipe)  # 900 tokens, of which 200 are learned and 400 at most
    batch = plan.largest(recipe, stats, recipe.train.batch_size)
    assert batch == BatchShape(1, 14000, 16 * 400, 16, packed=True)
    assert plan.packed_samples(recipe.train, stats) == 15
    row = dataclasses.replace(batch, packed=False)
    less, more = (estimate(SPEC, recipe.train, each, devices=8, accumulation=1) for each in (batch, row))
    assert more.activations - less.activations > 14000**2  # a mask over the row, which packs do not have
    assert less.logits == more.logits
    known = dataclasses.replace(stats, pack=BatchShape(1, 14000, 77, 9, packed=True))
    assert plan.largest(recipe, known, 16) == known.pack
    text = plan.describe_gpus(recipe, SPEC, stats, gpu("a100-80gb"), [1, 8], 0.4)
    assert [line.split()[1:4] for line in text.splitlines()[2:4]] == [["14000", "x", "1"]] * 2
    steps = [int(line.split()[4].replace(",", "")) for line in text.splitlines()[2:4]]
    assert steps == [math.ceil(665_298 / 15), math.ceil(665_298 / (15 * 8))]


def test_gpus_are_found_however_they_are_written() -> None:
    assert gpu("RTX 4090") is gpu("rtx4090") is GPUS["rtx-4090"]
    with pytest.raises(RecipeError, match="choose one of"):
        gpu("t4")


def test_the_size_and_hours_of_stored_features_are_planned(tmp_path) -> None:
    store = f"data.features={tmp_path / 'features'}"
    done = dry_run("align-558k", store, "--gpu", "a100-80gb", "--gpus", "1,8", "--mfu", "0.4")
    assert done.returncode == 0, done.stderr
    size = 558_128 * 576 * 1024 * 2 / 1e9  # LLaVA-1.5's tower: 576 patches of width 1024, in half precision
    assert f"features up to {size:,.1f} GB" in done.stdout and f"{size:,.0f}" == "658"
    shape = SPEC.tower_shape()
    hours = 2 * shape.parameters * 577 * 558_128 / (312e12 * 0.4) / 3600
    assert f"features, once: {hours:,.1f} on 1, {hours / 8:,.1f} on 8 hours" in done.stdout
    assert plan.describe_features(SPEC, str(tmp_path), 36_000, 0.5).endswith("; 5.0 hours on this machine, once")
    assert "not enough" in plan.describe_features(SPEC, str(tmp_path), 10**15)
