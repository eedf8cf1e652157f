"""lm-eval's `hf` runs on folders as trainings write them, and on a decoder's own, with the likelihoods of the model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from mobillama_v import MobiLlamaForCausalLM, MobiLlamaVForConditionalGeneration
from mobillama_v.hf.configuration import MobiLlamaConfig


@pytest.fixture(params=["whole model", "decoder"])
def folder(request: pytest.FixtureRequest, nano_like: Path, tmp_path: Path) -> Path:
    describe_folder = pytest.importorskip("mobillama_v.hf.folder").describe_folder
    whole, alone = tmp_path / "whole", tmp_path / "alone"
    shutil.copytree(nano_like, whole)
    describe_folder(whole)
    if request.param == "whole model":
        return whole
    model = MobiLlamaVForConditionalGeneration.from_pretrained(nano_like)
    decoder = MobiLlamaForCausalLM(MobiLlamaConfig(**dataclasses.asdict(model.config.spec.decoder)))
    decoder.model.load_state_dict(model.language_model.state_dict())
    decoder.lm_head.load_state_dict(model.lm_head.state_dict())
    decoder.save_pretrained(alone)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(whole / name, alone / name)
    return alone


def test_transformers_knows_the_special_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, about = AutoTokenizer.from_pretrained(folder), json.loads((folder / "config.json").read_text())
    decoder = about.get("text_config", about)
    for name in ("bos", "eos", "pad"):
        assert getattr(tokenizer, f"{name}_token_id") == decoder[f"{name}_token_id"], name


def test_likelihoods_are_the_models(folder: Path) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    evaluated = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2)
    pairs = [("What is this?", " A red square."), ("Is it", " blue?")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for (context, text), (found, _) in zip(pairs, evaluated.loglikelihood(requests, disable_tqdm=True), strict=True):
        before, after = evaluated.tok_encode(context), evaluated.tok_encode(context + text)
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([after])).logits[0].log_softmax(-1)
        expected = sum(float(scores[i - 1, after[i]]) for i in range(len(before), len(after)))
        assert found == pytest.approx(expected, abs=1e-3)
    (said,) = evaluated.generate_until(
        [Instance("generate_until", {}, ("What", {"until": ["\n"], "max_gen_toks": 4}), 0)], disable_tqdm=True
    )
    assert isinstance(said, str)
