"""Start folders: every part is in them as it was given, and a training starts from them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import tiny
from mobillama_v.cli.main import app
from mobillama_v.config import ProjectorConfig, TowerConfig
from mobillama_v.errors import CheckpointError, ConfigError, ModelNotFoundError
from mobillama_v.hub import read_spec
from mobillama_v.interop.init_checkpoint import write_initial_model
from mobillama_v.model.vlm import load_network
from mobillama_v.tokenization import TextTokenizer
from mobillama_v.train.build import load_start


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A published decoder: transformers' Llama with one network in all layers, half precision, and a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**tiny.DECODER | {"vocab_size": 400}))
    for layer in model.model.layers:
        layer.mlp.load_state_dict(model.model.layers[0].mlp.state_dict())
    model.half().save_pretrained(tmp_path / "decoder")
    tiny.save_nano_like(tmp_path / "nano")
    (tmp_path / "nano" / "tokenizer.json").rename(tmp_path / "decoder" / "tokenizer.json")
    return tmp_path / "decoder"


@pytest.fixture
def tower(tower_name: str, tmp_path: Path) -> TowerConfig:
    """A tower with weights in a file, as open_clip saves them."""
    import open_clip

    torch.manual_seed(5)
    path = tmp_path / "clip.pt"
    torch.save(open_clip.create_model(tower_name).state_dict(), path)
    return TowerConfig(model=tower_name, pretrained=str(path))


def test_a_training_starts_from_it(decoder: Path, tower: TowerConfig, tmp_path: Path) -> None:
    out = tmp_path / "start"
    made = write_initial_model(out, decoder=str(decoder), tower=tower, projector=ProjectorConfig())
    assert made.spec.decoder.ffn_sharing == "all"
    assert made.spec.image.size == tiny.IMAGE_SIZE
    model = load_start(out, seed=1)
    assert TextTokenizer.of_decoder(out / "tokenizer.json", model.config.spec.decoder).vocab_size <= 400
    state = model.state_dict()
    theirs = load_file(decoder / "model.safetensors")
    clip = torch.load(tower.pretrained, weights_only=True)
    for name, tensor in state.items():
        if name.startswith("vision_tower.visual."):
            torch.testing.assert_close(tensor, clip[name.removeprefix("vision_tower.")], rtol=0, atol=0)
        elif name.startswith("language_model.feed_forward."):
            source = theirs[name.replace("language_model.feed_forward", "model.layers.0.mlp")]
            torch.testing.assert_close(tensor, source.float(), rtol=0, atol=0)
        elif name.startswith("language_model."):
            source = theirs[name.replace("language_model", "model")]
            torch.testing.assert_close(tensor, source.float(), rtol=0, atol=0)
    assert torch.equal(state["lm_head.weight"], theirs["lm_head.weight"].float())
    assert load_file(out / "model.safetensors")["lm_head.weight"].dtype == torch.float16
    projector = [tensor for name, tensor in state.items() if name.startswith("projector.") and tensor.dim() == 2]
    assert all(tensor.std().item() == pytest.approx(0.02, rel=0.2) for tensor in projector)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    origin = json.loads((out / "origin.json").read_text())
    assert origin["decoder"] == str(decoder)
    with pytest.raises(ConfigError, match="there already"):
        write_initial_model(out, decoder=str(decoder), tower=tower, projector=ProjectorConfig())


def test_a_random_decoder_is_made_by_the_seed(tower_name, decoder, tmp_path, monkeypatch) -> None:
    from mobillama_v import presets

    spec = dataclasses.replace(presets.PRESETS["nano"].decoder, vocab_size=400, hidden_size=32, num_hidden_layers=2)
    monkeypatch.setitem(presets.PRESETS, "small", presets.Preset("small", "for this test", spec))
    options = {"decoder": "random:small", "tower": TowerConfig(model=tower_name), "projector": ProjectorConfig()}
    vocabulary = decoder / "tokenizer.json"
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_initial_model(tmp_path / name, **options, tokenizer=vocabulary, seed=seed)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["lm_head.weight"], c["lm_head.weight"])
    with pytest.raises(CheckpointError, match="without a tokenizer"):
        write_initial_model(tmp_path / "d", **options)
    assert not (tmp_path / "d").exists()


def test_what_cannot_be_is_said_before_anything_is_written(decoder, tower, tower_name, tmp_path) -> None:
    from tokenizers import Tokenizer, models

    projector, out = ProjectorConfig(), tmp_path / "out"
    with pytest.raises(ModelNotFoundError, match="no checkpoint 'nothing'"):
        write_initial_model(out, decoder="nothing", tower=tower, projector=projector)
    with pytest.raises(ConfigError, match="no model 'vit'"):
        write_initial_model(out, decoder=str(decoder), tower=TowerConfig(model="vit"), projector=projector)
    with pytest.raises(ConfigError, match="no pretrained weights 'none'"):
        write_initial_model(out, decoder=str(decoder), tower=TowerConfig(tower_name, "none"), projector=projector)
    big = Tokenizer(models.WordLevel({str(i): i for i in range(401)}, unk_token="0"))  # the decoder has 400
    big.save(str(tmp_path / "big.json"))
    with pytest.raises(CheckpointError, match="has 401 tokens and the decoder 400 embeddings"):
        write_initial_model(
            out, decoder=str(decoder), tower=tower, projector=projector, tokenizer=tmp_path / "big.json"
        )
    assert not out.exists()


def test_the_command(decoder: Path, tower: TowerConfig, tmp_path: Path) -> None:
    import typer

    from mobillama_v.cli.init import init

    app = typer.Typer()
    app.command()(init)
    place = tmp_path / "new" / "out"
    args = [str(place), "--decoder", str(decoder), "--tower", f"{tower.model}:{tower.pretrained}"]
    result = CliRunner().invoke(app, [*args, "--projector", "avg_pool_mlp", "--factor", "2"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "one feed-forward network for all" in result.output
    assert load_start(place, seed=0).tokens_per_image == 4
    result = CliRunner().invoke(app, [str(tmp_path / "old"), *args[1:], "--ffn", "fold"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("--ffn fold is now called average") == 1


def test_the_tower_may_be_that_of_a_model(decoder: Path, nano_like: Path, tmp_path: Path) -> None:
    out = tmp_path / "start"
    result = CliRunner().invoke(app, ["init", str(out), "--decoder", str(decoder), "--tower", str(nano_like)])
    assert result.exit_code == 0, result.output
    ours, theirs = read_spec(out), read_spec(nano_like)
    assert (ours.tower, ours.image) == (theirs.tower, theirs.image)
    state, source = (load_network(each, read_spec(each)).state_dict() for each in (out, nano_like))
    towers = [name for name in state if name.startswith("vision_tower.")]
    assert towers and all(torch.equal(state[name], source[name]) for name in towers)
    for option, value, message in (
        ("--feature-layer", "-2", "--feature-layer is for towers of open_clip"),
        ("--image-mode", "pad", "was trained with pictures of 'squash', not 'pad'"),
    ):
        arguments = ["init", str(tmp_path / "no"), "--decoder", str(decoder), "--tower", str(nano_like), option, value]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1, result.stderr
