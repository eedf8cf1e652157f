"""LoRA: what learns, what a checkpoint holds, and what a kill costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mobillama_v.errors import CheckpointError, MissingExtraError, RecipeError
from mobillama_v.train import lora
from mobillama_v.train.build import freeze_all_but, load_start
from mobillama_v.train.recipe import LORA_TARGETS, LoraSection
from mobillama_v.train.recipe_files import load_recipe
from mobillama_v.train.run import run
from trainings import on_corpus

pytest.importorskip("peft")


SETTINGS = (
    "data.features=null",
    "train.lora={rank: 4, alpha: 8, dropout: 0.1}",
    "train.modules={projector: 1e-3, decoder: 1e-2}",
    "train.batch_size=4",
    "train.global_batch_size=null",
    "train.precision=fp32",
    "train.deepspeed=null",
    "train.dataloader_workers=0",
    "train.max_steps=6",
    "train.save_steps=2",
    "train.save_total_limit=9",
)
overrides = partial(on_corpus, settings=SETTINGS)


@pytest.fixture(scope="module")
def trained(start_folder: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("lora") / "run"
    run(load_recipe("lora", overrides(start_folder, corpus, output)))
    return output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def frozen(start: Path):
    model = load_start(start, seed=0)
    freeze_all_but(model, {"decoder": 1.0})
    return model


def test_targets_and_projector_change_and_nothing_else(trained: Path, start_folder: Path) -> None:
    before, after = weights(start_folder), weights(trained / "final")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {n for n in before if n.startswith("projector.") or n.split(".")[-2] in LORA_TARGETS}


def test_the_shared_network_has_one_adapter_which_all_layers_apply(start_folder: Path) -> None:
    model = frozen(start_folder)
    lora.add_adapters(model, LoraSection(rank=2, dropout=0.0, targets=("gate_proj",)))
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert names == [f"language_model.feed_forward.gate_proj.lora_{side}.default.weight" for side in "AB"]
    calls = []
    module = model.language_model.feed_forward.gate_proj.lora_B["default"]
    module.register_forward_hook(lambda *_: calls.append(1))
    model(input_ids=torch.arange(5)[None])
    assert len(calls) == len(model.language_model.layers)


@pytest.mark.parametrize("targets", [LORA_TARGETS, ("q_proj", "up_proj")])
def test_merging_is_what_the_adapters_compute(start_folder: Path, targets: tuple[str, ...]) -> None:
    section = LoraSection(rank=3, alpha=5.0, dropout=0.1, targets=targets)
    model = load_start(start_folder, seed=0).eval()
    lora.add_adapters(model, section)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zeros at first
            torch.nn.init.normal_(parameter, std=0.2)
    plain = load_start(start_folder, seed=0).eval()
    ids = torch.arange(20)[None]
    untouched = plain(input_ids=ids).logits
    plain.load_state_dict(lora.merged(model.eval().state_dict(), section), strict=True)
    torch.testing.assert_close(plain(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(untouched, plain(input_ids=ids).logits, atol=1e-2)


def test_peft_loads_the_adapter_folder(trained: Path, start_folder: Path) -> None:
    from peft import PeftModel

    base = load_start(start_folder, seed=0).eval()
    model = PeftModel.from_pretrained(base, str(trained / "final" / lora.ADAPTER)).eval()
    whole = load_start(trained / "final", seed=0).eval()
    batch = {"input_ids": torch.arange(30)[None], "image_mask": torch.zeros(1, 30, dtype=torch.bool)}
    batch["image_mask"][:, 2 : 2 + whole.tokens_per_image] = True
    batch["pixel_values"] = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model(**batch).logits, whole(**batch).logits, atol=1e-5, rtol=1e-4)


def test_a_resumed_training_ends_as_one_that_was_not_stopped(
    trained: Path, start_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    again = tmp_path / "run"
    shutil.copytree(trained, again)
    shutil.rmtree(again / "final")
    for step in (4, 6):
        shutil.rmtree(again / f"checkpoint-{step}")
    final = run(load_recipe("lora", overrides(start_folder, corpus, again)), resume=True)
    assert losses(again) == losses(trained)
    one, other = weights(final), weights(trained / "final")
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_adapters_that_do_not_fit_are_named(trained: Path, start_folder: Path, tmp_path: Path) -> None:
    model = frozen(start_folder)
    lora.add_adapters(model, LoraSection(rank=2))
    with pytest.raises(CheckpointError, match="mis-shaped"):
        lora.load_adapters(model, trained / "checkpoint-2")
    with pytest.raises(CheckpointError, match="no checkpoint of a LoRA training"):
        lora.load_adapters(model, tmp_path)


def test_a_folder_loads_without_its_base(trained: Path, corpus: Path, tower_name: str) -> None:
    from mobillama_v import load
    from mobillama_v.generate import Sampling

    assistant = load(str(trained / "checkpoint-4"), engine="torch")
    assert assistant.ask([corpus / "images" / "0.png"], "What?", Sampling(max_new_tokens=2)).finish_reason


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.modules.decoder=null", "needs train.modules.decoder"),
        ("train.modules.embeddings=1e-4", "embeddings=null"),
        ("train.lora.rank=0", "rank must be at least 1"),
        ("train.lora.dropout=1", "from 0 to 1"),
        ("train.lora.targets=[q_proj, lm_head]", "not lm_head"),
        ("train.lora.targets=[]", "not none"),
        ("train.lora.rang=3", "did you mean 'rank'"),
    ],
)
def test_what_is_wrong_is_named(override: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load_recipe("lora", [override])


def test_without_peft_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch, start_folder: Path) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"mobillama-v\[lora\]"):
        lora.add_adapters(load_start(start_folder, seed=0), LoraSection())


def test_keys_lists_those_of_lora() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mobillama_v", "train", "lora", "--keys"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert {"train.lora", "train.lora.rank", "train.lora.targets"} <= {
        line.split()[0] for line in done.stdout.splitlines()
    }


def test_the_recipe_works_on_a_cpu_as_it_stands(nano_like: Path, corpus: Path, tmp_path: Path) -> None:
    data = (f"data.json={corpus / 'pictures.json'}", f"data.image_root={corpus / 'images'}")
    recipe = load_recipe("lora", [f"model.start={nano_like}", *data, f"output={tmp_path / 'run'}", "train.max_steps=1"])
    final = run(recipe)
    start = json.loads((nano_like / "config.json").read_text())
    assert json.loads((final / "config.json").read_text())["image"] == start["image"]
    before, after = weights(nano_like), weights(final)
    assert before.keys() == after.keys() and all(torch.isfinite(each).all() for each in after.values())
