"""Weights that are damaged: refused when they are read, or the answer ends with an error. No answer is just empty."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mobillama_v import load
from mobillama_v.assistant import Assistant
from mobillama_v.backends.native import library
from mobillama_v.backends.native.packed_format import FILE, read, write
from mobillama_v.backends.native.torch_convert import pack
from mobillama_v.errors import CheckpointError
from mobillama_v.hub import find_model, read_spec
from mobillama_v.model.decoder import Decoder
from mobillama_v.prompt import user

NANO = find_model("nano")
PICTURE = Path(__file__).parents[1] / "demo" / "examples" / "shapes.png"
NORM, MATRIX = "language_model.layers.1.input_layernorm.weight", "language_model.layers.1.self_attn.o_proj.weight"
TOWER = "projector.linear_1.weight"
native = pytest.mark.skipif(bool(library.missing()), reason=f"no native library: {library.missing()}")


def damaged(folder: Path, name: str, value: float) -> str:
    """A copy of nano with one number changed."""
    for file in ("config.json", "tokenizer.json"):
        (folder / file).write_bytes((NANO / file).read_bytes())
    tensors = {each: tensor.float() for each, tensor in load_file(NANO / "model.safetensors").items()}
    tensors[name].view(-1)[3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def describe(assistant: Assistant) -> None:
    assistant.ask([PICTURE], "Describe the image.")


@pytest.mark.parametrize("engine", ["torch", "numpy", pytest.param("native", marks=native)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_norms_that_are_not_finite_are_refused(engine: str, value: float, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"layers\.1\.(input_layernorm|attention_norm).* not finite"):
        load(damaged(tmp_path, NORM, value), engine=engine)


@pytest.mark.parametrize(("engine", "name"), [("torch", MATRIX), ("torch", TOWER), ("numpy", TOWER), ("auto", TOWER)])
def test_matrices_that_are_not_finite_end_the_answer(engine: str, name: str, tmp_path: Path) -> None:
    assistant = load(damaged(tmp_path, name, math.nan), engine=engine)
    with pytest.raises(CheckpointError, match="computed numbers that are not finite: its weights are damaged"):
        describe(assistant)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # by which numpy says the same
@pytest.mark.parametrize("engine", ["numpy", pytest.param("native", marks=native)])
def test_an_answer_that_overflows_ends(engine: str, tmp_path: Path) -> None:
    """The native engine's 8-bit products take finite numbers alone: what is none must not become one on the way."""
    spec, folder = read_spec(NANO).decoder, Path(damaged(tmp_path, NORM, 0.0))
    network = load(str(NANO), engine="torch").network
    packed = pack(network.language_model, network.lm_head, spec, 8)
    packed.tensors["layers.1.ffn_norm"][:] = 3e38
    write(packed, folder)
    kept = {name: tensor for name, tensor in load_file(NANO / "model.safetensors").items() if "language" not in name}
    save_file({k: v for k, v in kept.items() if k != "lm_head.weight"}, folder / "model.safetensors")
    assistant = load(str(folder), engine=engine)
    with pytest.raises(CheckpointError, match="not finite"):
        describe(assistant)
    with pytest.raises(CheckpointError, match="not finite"):
        assistant.score([([PICTURE], [user("Is it red?", images=1)])], "yes")


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("name", ["embed_tokens", "lm_head", "feed_forward.0.down", "layers.1.ffn_norm"])
def test_packed_numbers_that_are_not_finite_are_refused(bits: int, name: str, tmp_path: Path) -> None:
    spec = read_spec(NANO).decoder
    torch.manual_seed(0)
    head = torch.nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
    write(pack(Decoder(spec), head, spec, bits, search=False), tmp_path)
    path = tmp_path / FILE
    read(tmp_path, spec)
    whole = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:start])
    begin, end = (start + at for at in header[name]["data_offsets"])
    shape = header[name]["shape"]
    at = end - (shape[-1] if header[name]["dtype"] == "U8" else 4)  # the last tile's first scale, or the last number
    whole[at : at + 4] = b"\x00\xfe\xc0\x7f"  # NaN as fp16, and as fp32
    path.write_bytes(whole)
    assert begin < at
    with pytest.raises(CheckpointError, match=f"damaged .{name} holds numbers that are not finite"):
        read(tmp_path, spec)
