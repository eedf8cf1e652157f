"""Small models without torch: the tower over numpy against the one in torch, and what falls back to torch."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from mobillama_v.backends import select
from mobillama_v.backends.native import library
from mobillama_v.backends.numpy.layers import NUMPY, Tensors, to_numpy, widened
from mobillama_v.backends.numpy.model import NumpyVisionEncoder
from mobillama_v.backends.select import select_backend
from mobillama_v.config import ModelConfig, ProjectorConfig
from mobillama_v.errors import CheckpointError
from mobillama_v.generate import Sampling
from mobillama_v.hub import find_model, read_spec
from mobillama_v.loading import load
from mobillama_v.model.vision.parts import Conv, Part
from mobillama_v.model.vision.parts_torch import TORCH, to_torch
from mobillama_v.model.vision.structured_tokens import PositionTokens, TextReader, find_peaks
from mobillama_v.projector import PROJECTORS
from nano.scenes import STYLES, draw, sample_scene

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=f"no native library: {library.missing()}")
RED = Image.new("RGB", (300, 200), (200, 30, 30))
NAMES = ("config.json", "tokenizer.json", "model.safetensors")


def copied(source: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    for name in NAMES:
        shutil.copyfile(source / name, target / name)
    return target


def is_light(folder: Path) -> bool:
    return isinstance(load(str(folder)).vision, NumpyVisionEncoder)


def pictures() -> list[Image.Image]:
    """Drawings of all kinds, plain pictures and a noisy one."""
    drawn = [draw(sample_scene(random.Random(seed), style)) for style in STYLES for seed in range(3)]
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    return [*drawn, RED, Image.linear_gradient("L").convert("RGB"), Image.fromarray(noise)]


def agree(got: np.ndarray, expected: np.ndarray) -> None:
    """fp32 either way: sums in another order, which no peak of a heat map is near enough to notice."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("which", ["nano", "random"])
def test_the_tower_sees_what_torchs_sees(which: str, nano_like: Path) -> None:
    folder = find_model("nano") if which == "nano" else nano_like
    light = load(str(folder), device="cpu")
    assert isinstance(light.vision, NumpyVisionEncoder)
    network = light.network
    seen = pictures()
    for picture in seen:
        pixels = light.spec.image(picture)
        with torch.inference_mode():
            expected = network.get_image_features(torch.from_numpy(pixels)[None])[0].numpy()
        got = light.vision.encode_image(pixels)
        assert got.shape == (84, light.spec.decoder.hidden_size) and got.dtype == np.float32
        agree(got, expected)


@pytest.mark.parametrize(("select", "layer"), [("patch", -1), ("patch", -2), ("cls_patch", -1)])
@pytest.mark.parametrize("kind", [name for name, each in PROJECTORS.items() if each.portable])
def test_other_settings_of_tower_and_projector(
    select: str, layer: int, kind: str, nano_like: Path, tmp_path: Path
) -> None:
    folder = copied(nano_like, tmp_path / "other")
    config = json.loads((folder / "config.json").read_text())
    factor = 7 if PROJECTORS[kind].merges else 1
    config["tower"] |= {"select": select, "feature_layer": layer}
    config["projector"] = {"type": kind, "factor": factor}
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    state = {name: each for name, each in state.items() if not name.startswith("projector.")}
    torch.manual_seed(3)
    made = ProjectorConfig(kind, factor).build(tower_width=256, decoder_width=32)
    state |= {f"projector.{name}": each for name, each in made.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    light, plain = load(str(folder)), load(str(folder), engine="torch", device="cpu")
    assert isinstance(light.vision, NumpyVisionEncoder)
    assert light.vision.tokens_per_image == plain.vision.tokens_per_image
    assert plain.vision.tokens_per_image == 35 * (select == "cls_patch") + 49 // factor**2
    agree(light.encode_image(RED).features, plain.encode_image(RED).features.numpy())
    assert light.ask([RED], "What?", Sampling(4)).text == plain.ask([RED], "What?", Sampling(4)).text


def test_gelu_is_exact_to_fp32() -> None:
    x = np.linspace(-9, 9, 20001, dtype=np.float32)
    exact = np.array([each * 0.5 * math.erfc(-each / math.sqrt(2)) for each in x.tolist()])
    assert np.abs(NUMPY.gelu(x) - exact).max() < 1e-6


def test_fp16_becomes_the_same_fp32() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)  # all of them, infinities and NaNs too
    np.testing.assert_array_equal(widened(halves), halves.astype(np.float32))
    finite = halves[np.isfinite(halves)].reshape(-1, 2)
    bits = widened(finite.T).view(np.int32)
    np.testing.assert_array_equal(bits, finite.T.astype(np.float32).view(np.int32))


def in_both(part: Part) -> tuple[Any, Any]:
    """A part in torch with random weights, and in numpy with the same ones."""
    module = to_torch(part)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tensors = Tensors({name: each.detach().numpy() for name, each in module.named_parameters()})
    ours = to_numpy(part, tensors)
    assert not tensors.left
    return module, ours


@pytest.mark.parametrize("groups", [1, 6])
@pytest.mark.parametrize(("side", "kernel", "stride"), [(7, 5, 2), (8, 3, 2), (8, 5, 2), (9, 5, 1), (224, 3, 2)])
def test_convolutions_are_padded_as_torchs(side: int, kernel: int, stride: int, groups: int) -> None:
    class Convolution(Part):
        def __init__(self) -> None:
            self.conv = Conv(6, 6, kernel, stride, groups=groups)

    torch.manual_seed(0)
    x = torch.randn(2, side, side + 1, 6)
    theirs, ours = in_both(Convolution())
    np.testing.assert_allclose(ours.conv(x.numpy()), theirs.conv(x).detach().numpy(), atol=2e-5)


def test_peaks_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(4)
    for rows, columns, most in ((14, 14, 6), (14, 28, 14)):
        logits = 4 * torch.randn(3, rows, columns, 5, generator=generator)
        expected = find_peaks(TORCH, logits, most)
        for mine, theirs in zip(find_peaks(NUMPY, logits.numpy(), most), expected, strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-5, atol=1e-5)
    cold = np.full((1, 14, 14, 3), -200, np.float32)  # beyond fp32's exponentials
    assert not find_peaks(NUMPY, cold, 6)[0].any()


def test_lines_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No letter, one line, two lines, more letters than a line has places for."""
    torch.manual_seed(2)
    theirs, mine = in_both(TextReader())
    positions, my_positions = in_both(PositionTokens())
    tints, colors = torch.rand(1, 14, 14, 12), torch.randn(12, 256)
    seen = torch.zeros(1, 49, 1408), torch.zeros(1, 49, 256)
    for letters in (
        [],
        [(3, 12)],
        [(3, 4 + 2 * i) for i in range(9)],
        [(2, 9), (3, 12), (10, 20), (11, 24)],
        [(2, 3 * i) for i in range(8)] + [(10, 3 * i) for i in range(6)],
    ):
        logits = torch.randn(1, 14, 28, 63)
        logits[..., 0] = -9
        for row, column in letters:
            logits[0, row, column, 0] = 4
        monkeypatch.setattr(theirs, "logits", lambda *_, logits=logits: logits)
        monkeypatch.setattr(mine, "logits", lambda *_, logits=logits: logits.numpy())
        with torch.no_grad():
            expected = theirs(*seen, tints, colors, positions).numpy()
        got = mine(*(each.numpy() for each in (*seen, tints, colors)), my_positions)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
        assert expected.any() == bool(letters)


def test_commands_answer_without_torch(nano_like: Path, tmp_path: Path) -> None:
    picture = tmp_path / "red.png"
    RED.save(picture)
    packed = tmp_path / "packed"
    run = [sys.executable, "-m", "mobillama_v"]
    subprocess.run([*run, "quantize", str(nano_like), str(packed), "--bits", "8"], check=True, capture_output=True)
    code = (
        "import sys; from mobillama_v.cli.main import app; app(sys.argv[1:], standalone_mode=False); "
        "print([name for name in ('torch', 'transformers', 'open_clip', 'timm') if name in sys.modules])"
    )
    for arguments, lines in (
        (["describe", str(picture), "-m", str(nano_like), "--temperature", "1", "--seed", "3", "--top-p", "0.9"], ""),
        (["describe", str(picture), "-m", str(packed), "--json"], ""),
        (["chat", str(picture), "-m", str(nano_like), "--max-new-tokens", "5"], "What?\nAnd?\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], input=lines, capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr
        assert len(done.stdout.splitlines()) >= 2


def test_the_network_is_there_when_it_is_asked_for(nano_like: Path) -> None:
    model = load(str(nano_like), device="auto")
    assert model.device == "cpu" and isinstance(model.vision, NumpyVisionEncoder)
    assert model.network is model.network and not model.network.lm_head.weight.is_meta


def test_who_asks_for_torch_gets_it(nano_like: Path) -> None:
    spec = read_spec(nano_like)

    def vision(config: ModelConfig, device: str = "cpu", engine: str = "auto") -> str:
        return select_backend(config, nano_like, device=device, engine=engine).vision

    assert vision(spec, "auto") == vision(spec, "cpu", "native") == "numpy"
    assert vision(spec, "cpu", "torch") == "torch"
    for model, expected in (("ViT-B-32", "native"), ("ViT-B-16-SigLIP", "torch"), ("coca_ViT-B-32", "torch")):
        assert vision(dataclasses.replace(spec, tower=dataclasses.replace(spec.tower, model=model))) == expected
    large = dataclasses.replace(spec.decoder, vocab_size=10**6, hidden_size=512)
    assert vision(dataclasses.replace(spec, decoder=large)) == "torch"
    assert not isinstance(load(str(nano_like), dtype=torch.float32).vision, NumpyVisionEncoder)


def test_files_of_other_kinds_are_torchs(nano_like: Path, tmp_path: Path) -> None:
    """A ``.bin`` is torch's; bfloat16, which numpy lacks, and shards are read."""
    state = load_file(nano_like / "model.safetensors")
    expected = load(str(nano_like)).ask([RED], "What?", Sampling(8)).text
    folder = copied(nano_like, tmp_path / "bf16")
    save_file({name: each.bfloat16() for name, each in state.items()}, folder / "model.safetensors")
    assert is_light(folder)
    light, plain = (load(str(folder), device="cpu", engine=engine) for engine in ("auto", "torch"))
    agree(light.encode_image(RED).features, plain.encode_image(RED).features.numpy())
    assert light.ask([RED], "What?", Sampling(8)).text == plain.ask([RED], "What?", Sampling(8)).text
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert not is_light(folder) and load(str(folder)).ask([RED], "What?", Sampling(8)).text == expected
    (folder / "pytorch_model.bin").unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, some in shards.items():
        save_file({name: state[name] for name in some}, folder / shard)
    index = {"weight_map": {name: shard for shard, some in shards.items() for name in some}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert is_light(folder) and load(str(folder)).ask([RED], "What?", Sampling(8)).text == expected


def test_what_is_left_to_torch_stays_on_the_cpu(
    nano_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU that ``auto`` would find elsewhere is not asked for."""
    monkeypatch.setattr(select, "choose_device", lambda name: pytest.fail(f"{name} was looked for"))
    folder = copied(nano_like, tmp_path / "bin")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert not is_light(folder) and load(str(nano_like), dtype=torch.float32).device == "cpu"
    assert load(str(nano_like), bits=8).backend.startswith("decoder: native (8 bit, it is small), vision: torch")
    assert "it is small; numpy cannot read its files), vision: torch" in load(str(folder)).backend


def test_what_does_not_fit_is_told_as_torch_tells_it(nano_like: Path, tmp_path: Path) -> None:
    state = load_file(nano_like / "model.safetensors")
    folder = copied(nano_like, tmp_path / "broken")
    norm = "vision_tower.visual.trunk.blocks.1.norm1.weight"
    head = "lm_head.weight"
    for change, message in (
        ({norm: None}, f"lacks {norm}"),
        ({"extra": torch.zeros(2)}, "has unknown extra"),
        ({norm: torch.zeros(7)}, f"{norm} is \\[7\\] and must be \\[256\\]"),
        ({head: None}, f"lacks {head}"),
        ({head: torch.full_like(state[head], torch.inf)}, "lm_head holds weights that are not finite"),
    ):
        changed = {name: each for name, each in (state | change).items() if each is not None}
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            load(str(folder))
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(10_000)
    with pytest.raises(CheckpointError, match="is damaged"):
        load(str(folder))


def test_threads_are_those_of_openmps_variable(nano_like: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    three = load(str(nano_like))
    assert three.engine.model.threads == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    one = load(str(nano_like))
    assert one.engine.model.threads == 1
    assert one.ask([RED], "What?", Sampling(8)).text == three.ask([RED], "What?", Sampling(8)).text
