"""ONNX graphs: onnxruntime gives the model's own logits and answers, or nothing is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import mobillama_v
import tiny
from mobillama_v.cli.main import app
from mobillama_v.generate import Sampling
from mobillama_v.hub import read_spec
from mobillama_v.images import ImageTransform
from mobillama_v.interop import onnx as exporting
from mobillama_v.model.vision import TowerConfig
from mobillama_v.prompt import user

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")


def export(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["export", "onnx", *map(str, arguments)], catch_exceptions=False)


def greedy(folder: Path, features: Any, ids: list[int], mask: list[bool], steps: int) -> list[int]:
    """Tokens that onnxruntime gives, one after the other."""
    sessions = {
        name: onnxruntime.InferenceSession(str(folder / name), providers=["CPUExecutionProvider"])
        for name in (exporting.EMBED, exporting.DECODER)
    }
    decoder = sessions[exporting.DECODER]
    spec = read_spec(folder).decoder
    empty = np.zeros((1, spec.num_key_value_heads, 0, spec.head_dim), np.float32)
    past = {each.name: empty for each in decoder.get_inputs() if each.name.startswith("past")}
    given = sessions[exporting.EMBED].run(None, {"input_ids": np.array([ids])})[0]
    given[0, np.array(mask)] = features
    out: list[int] = []
    at = 0
    while len(out) < steps:
        until = at + given.shape[1]
        fixed = {"attention_mask": np.ones((1, until), np.int64), "position_ids": np.arange(at, until)[None]}
        logits, *present = decoder.run(None, {"inputs_embeds": given, **fixed, **past})
        past, at = dict(zip(past, present, strict=True)), until
        out.append(int(logits[0, -1].argmax()))
        given = sessions[exporting.EMBED].run(None, {"input_ids": np.array([out[-1:]])})[0]
    return out


def assert_answers_alike(folder: Path, out: Path) -> None:
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 40, 3), dtype=np.uint8))
    assistant = mobillama_v.load(str(folder), device="cpu", engine="torch")
    encoded = assistant.encode_messages([user("What is this?", images=1)])
    session = onnxruntime.InferenceSession(str(out / exporting.VISION), providers=["CPUExecutionProvider"])
    features = session.run(None, {"pixel_values": read_spec(folder).image(picture)[None]})[0][0]
    found = greedy(out, features, encoded.input_ids, encoded.image_mask, 12)
    if assistant.spec.decoder.eos_token_id in found:
        found = found[: found.index(assistant.spec.decoder.eos_token_id)]
    assert assistant.ask([picture], "What is this?", Sampling(12)).text == assistant.tokenizer.decode(found).strip()


def test_a_clip_model(tower_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save_nano_like(
        tmp_path / "model",
        tower=TowerConfig(tower_name),
        image=ImageTransform(tiny.IMAGE_SIZE),
        decoder_changes={"num_key_value_heads": 2, "qkv_bias": True, "qk_norm": True, "attention_head_dim": 16},
    )
    result = export(folder, tmp_path / "out")
    assert result.exit_code == 0, result.output
    spec = read_spec(folder).decoder
    weights = onnx.load(tmp_path / "out" / exporting.DECODER).graph.initializer
    sides = {spec.hidden_size, spec.intermediate_size}
    assert sum(set(each.dims) == sides for each in weights) == 3  # gate, up and down, once
    assert_answers_alike(folder, tmp_path / "out")
    monkeypatch.setattr(exporting, "_TOLERANCE", -1.0)
    with pytest.raises(exporting.CheckpointError, match="onnxruntime's logits of the exported model are up to"):
        from mobillama_v.model.vlm import load_network

        exporting.compare(tmp_path / "out", load_network(folder, read_spec(folder)))


@pytest.mark.slow
def test_nano(tmp_path: Path) -> None:
    folder = Path(mobillama_v.__file__).parent / "weights" / "nano"
    result = export("nano", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert_answers_alike(folder, tmp_path / "out")


def test_what_is_missing_is_named(nano_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = export(nano_like, tmp_path / "out", "--type", "f16")
    assert result.exit_code == 2 and "ONNX is written in f32, not f16" in result.stderr
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = export(nano_like, tmp_path / "out")
    assert result.exit_code == 2 and "ONNX needs onnxscript: pip install 'mobillama-v[onnx]'" in result.stderr
