"""Which engine answers, packed folders from the command line, and an install without a compiler."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mobillama_v.backends import select
from mobillama_v.backends.native import library
from mobillama_v.backends.native.packed_format import FILE
from mobillama_v.backends.numpy.decoder import NumpyEngine
from mobillama_v.backends.select import BackendPlan, select_backend
from mobillama_v.backends.torch import TorchEngine
from mobillama_v.cli.main import app
from mobillama_v.config import DecoderConfig
from mobillama_v.errors import CheckpointError, ConfigError
from mobillama_v.generate import Sampling
from mobillama_v.hub import read_spec
from mobillama_v.loading import load

ROOT = Path(__file__).parents[2]
SHORT = Sampling(max_new_tokens=12)
RED = Image.new("RGB", (300, 200), (200, 30, 30))
SMALL, LARGE = DecoderConfig(97, 64, 96, 2, 4, 4), DecoderConfig()
ODD = dataclasses.replace(SMALL, hidden_size=48)
native_only = pytest.mark.skipif(bool(library.missing()), reason="no native library")


def call(*arguments: object):
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def packed(nano_like: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "q8"
    result = call("quantize", nano_like, "--bits", 8, out)
    assert result.exit_code == 0, result.stderr
    return out


def test_where_there_is_a_compiler_there_is_a_library() -> None:
    """Else most tests of the engine would be left out, and a build that fails would look like one that passes."""
    assert not (shutil.which("c++") and library.missing()), library.missing()


def plan(folder: Path, decoder: DecoderConfig | None = None, *, packed: bool = False, **arguments: Any) -> BackendPlan:
    """For the model in a folder, as if its decoder had another shape or were packed."""
    config = read_spec(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "choose_device", lambda name: name)
        patch.setattr(select, "is_packed", lambda _: packed)
        patch.setattr(select, "read_bits", lambda _: 8)
        changed = dataclasses.replace(config, decoder=decoder or config.decoder)
        return select_backend(changed, folder, **{"device": "cpu", **arguments})


@native_only
def test_native_is_for_cpus_and_for_packed_or_small_models(nano_like: Path) -> None:
    for found, expected in (
        (plan(nano_like), ("numpy", "native", "16 bit, native", "it is small")),
        (plan(nano_like, SMALL, device="auto"), ("numpy", "native", "16 bit, native", "it is small")),
        (plan(nano_like, LARGE), ("torch", "torch", "float32", "it is large and not packed")),
        (plan(nano_like, LARGE, packed=True), ("numpy", "native", "8 bit, native", "it is packed")),
        (plan(nano_like, LARGE, engine="native"), ("torch", "native", "8 bit, native", "asked for")),
        (plan(nano_like, LARGE, engine="native", bits=4), ("torch", "native", "4 bit, native", "asked for")),
        (plan(nano_like, SMALL, packed=True, device="cuda:1"), ("torch", "torch", "bfloat16", "the device is cuda:1")),
        (plan(nano_like, SMALL, packed=True, engine="torch"), ("torch", "torch", "float32", "asked for")),
        (plan(nano_like, SMALL, engine="numpy"), ("numpy", "numpy", "16 bit, numpy", "asked for")),
        (plan(nano_like, LARGE, engine="numpy"), ("torch", "numpy", "8 bit, numpy", "asked for")),
        (plan(nano_like, SMALL, dtype=torch.float16), ("torch", "native", "16 bit, native", "it is small")),
    ):
        assert (found.vision, found.decoder, found.precision, found.why) == expected
        assert all(part in found.describe() for part in (found.vision, found.decoder, found.why, found.device))
    odd = plan(nano_like, ODD, packed=True)
    assert odd.decoder == "numpy" and odd.why == "its kernels want heads whose width is a multiple of 8, and this " + (
        "model's are 12 wide"
    )
    with pytest.raises(ConfigError, match="heads whose width is a multiple of 8, and this model's are 12 wide"):
        plan(nano_like, ODD, engine="native")
    with pytest.raises(ConfigError, match="runs on a CPU and the device is cuda"):
        plan(nano_like, SMALL, engine="native", device="cuda")
    with pytest.raises(ConfigError, match="the numpy engine cannot be used: it runs on a CPU and the device is cuda"):
        plan(nano_like, SMALL, engine="numpy", device="cuda")
    with pytest.raises(ConfigError, match="engine 'abacus' is unknown; choose auto, native, numpy or torch"):
        plan(nano_like, SMALL, engine="abacus")


def test_verbose_says_what_answers(nano_like: Path, tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    command = ("describe", tmp_path / "red.png", "-m", nano_like, "--max-new-tokens", 2, "--device", "cpu")
    for more, said in (((), ""), (("-v", "--engine", "torch"), "decoder: torch (float32, asked for), vision: torch")):
        result = call(*command, *more)
        assert result.exit_code == 0 and result.stderr.startswith(said) and result.stderr.count("\n") == bool(more)


def test_without_a_library_numpy_answers_and_says_so_once(
    nano_like: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    missing = "it was not built for want of a C++ compiler; install one and this package again"
    monkeypatch.setattr(library, "missing", lambda: missing)
    select._tell.cache_clear()
    for _ in range(2):
        assert isinstance(load(str(nano_like), device="cpu").engine, NumpyEngine)
    assert plan(nano_like, LARGE).why == "it is large and not packed"
    assert plan(nano_like, LARGE, packed=True).decoder == "torch"  # which has threads
    monkeypatch.setitem(sys.modules, "torch", None)
    assert plan(nano_like, LARGE, packed=True).decoder == "numpy"
    monkeypatch.undo()
    monkeypatch.setattr(library, "missing", lambda: missing)
    assert plan(nano_like, ODD, packed=True).why.startswith("its kernels want")  # which a library would not change
    assert [record.getMessage() for record in caplog.records] == [
        f"note: {each} answers; the native engine, which decodes faster, is not here (it was not built for want of a "
        "C++ compiler; install one and this package again)."
        for each in ("numpy", "torch")
    ]
    with pytest.raises(ConfigError, match="cannot be used: it was not built for want of a C\\+\\+ compiler; install"):
        load(str(nano_like), device="cpu", engine="native")


@native_only
def test_engines_give_the_same_answers(nano_like: Path) -> None:
    native, plain = load(str(nano_like), device="cpu"), load(str(nano_like), device="cpu", engine="torch")
    assert isinstance(plain.engine, TorchEngine) and not isinstance(native.engine, TorchEngine)
    prompts = [([RED], "What is this?"), ([], "How many dogs?"), ([RED, RED], "Why?")]
    assert [each.text for each in native.ask_batch(prompts, SHORT)] == [
        each.text for each in plain.ask_batch(prompts, SHORT)
    ]


@native_only
def test_float_weights_are_packed_to_the_bits_that_are_asked_for(nano_like: Path, packed: Path) -> None:
    titles = [load(str(nano_like), device="cpu", engine="native", bits=bits).engine.title for bits in (4, 8, None)]
    assert [title.split(" bit")[0] for title in titles] == ["native 4", "native 8", "native 16"]
    for name, engine, bits, message in (
        (nano_like, "native", 5, "packed to 4, 8 or 16 bits, not 5"),
        (nano_like, "torch", 8, "is not packed to 8 bits: torch answers; choose the native engine"),
        (packed, "native", 4, "is not packed to 4 bits: it is packed already"),
    ):
        with pytest.raises(ConfigError, match=message):
            load(str(name), device="cpu", engine=engine, bits=bits)


@native_only
def test_a_packed_folder_is_a_model_folder(packed: Path, nano_like: Path) -> None:
    """The native engine, and torch with the packed numbers, give nearly the logits of the model that was packed."""
    native, plain = load(str(packed), device="cpu"), load(str(packed), device="cpu", engine="torch")
    original = load(str(nano_like), device="cpu", engine="torch")
    logits = []
    for each in (native, plain, original):
        logits.append(each.engine.prefill([each._row([RED], "What is this?").prompt], 1)[1])
    spread = float(logits[2].std())
    assert np.abs(logits[1] - logits[2]).max() < 0.1 * spread  # 8 bits instead of 16
    assert np.abs(logits[0] - logits[2]).max() < 0.2 * spread  # and 8-bit activations
    assert sorted(path.name for path in packed.iterdir()) == [
        "config.json", "model.safetensors", FILE, "tokenizer.json"
    ]  # fmt: skip
    picture = packed.parent / "red.png"
    RED.save(picture)
    for engine in ("native", "torch"):
        result = call("describe", picture, "-m", packed, "--engine", engine, "--max-new-tokens", 8, "--device", "cpu")
        assert result.exit_code == 0 and result.stdout.strip(), result.stderr


def test_quantize_refuses(packed: Path, nano_like: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ((nano_like, tmp_path / "new", "--bits", 5), "--bits is 5 and must be 4 or 8"),
        ((nano_like, tmp_path), "is there already"),
        ((nano_like, tmp_path / "no" / "new"), "there is no folder"),
        ((packed, tmp_path / "new"), "is packed already"),
        ((tmp_path / "nothing", tmp_path / "new"), "there is no model"),
    ):
        result = call("quantize", *arguments)
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_quantize_leaves_nothing_where_it_cannot_write(
    nano_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    result = call("quantize", nano_like, tmp_path / "new")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "cannot be written (No space left on device); choose another place" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_packed_folder_is_refused(packed: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors", FILE):
        shutil.copyfile(packed / name, tmp_path / name)
    with (tmp_path / FILE).open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(CheckpointError, match="is damaged"):
        load(str(tmp_path), device="cpu")
    config = json.loads((packed / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copyfile(packed / FILE, tmp_path / FILE)
    with pytest.raises(CheckpointError, match=r"lacks layers\.2\.qkv"):
        load(str(tmp_path), device="cpu")


@pytest.mark.slow
@pytest.mark.skipif(int(version("setuptools").split(".")[0]) < 77, reason="setuptools here is older than the build's")
@pytest.mark.parametrize("compiler", [False, True])
def test_a_wheel_installs_where_there_is_no_compiler(compiler: bool, nano_like: Path, tmp_path: Path) -> None:
    """From an index of this project alone; built with a compiler it holds the library and fits its platform."""
    if compiler and shutil.which("c++") is None:
        pytest.skip("no C++ compiler here")
    source, index, target = tmp_path / "source", tmp_path / "index", tmp_path / "target"
    keep = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__", "*.so", "weights", "runs")
    shutil.copytree(ROOT, source, ignore=keep)
    without = os.environ | {"PATH": str(tmp_path)}
    pip, alone = [sys.executable, "-m", "pip"], ["-q", "--no-deps", "--no-index"]
    for command, env in (
        (["wheel", *alone, "--no-build-isolation", "-w", index, source], os.environ if compiler else without),
        (["install", *alone, "--only-binary", ":all:", "-f", index, "--target", target, "mobillama-v"], without),
    ):
        done = subprocess.run([*pip, *map(str, command)], capture_output=True, text=True, env=env, timeout=600)
        assert done.returncode == 0, done.stderr
    (wheel,) = index.iterdir()
    assert "-py3-none-" in wheel.name and wheel.name.endswith("-any.whl") == (not compiler)
    built = [path.name for path in (target / "mobillama_v" / "backends" / "native").glob("_native*")]
    assert len(built) == (1 if compiler else 0)
    picture = tmp_path / "red.png"
    RED.save(picture)
    code = "import sys; from mobillama_v.cli.main import main; sys.argv[0] = 'mobillama-v'; main()"
    command = [sys.executable, "-c", code, "describe", str(picture), str(picture), "-m", str(nano_like)]
    done = subprocess.run(
        [*command, "--max-new-tokens", "4", "--device", "cpu"],
        capture_output=True, text=True, env=without | {"PYTHONPATH": str(target)}, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("red.png") == 2, done.stderr
    assert done.stderr.count("note: numpy answers") == (0 if compiler else 1), done.stderr
