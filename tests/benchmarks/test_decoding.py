"""The bench of engines: all backends run the same weights, and the figures follow from the seconds."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import decoding
from benchmarks.__main__ import app
from mobillama_v.backends.native import library
from mobillama_v.backends.native.packed_format import write
from mobillama_v.backends.native.torch_convert import pack
from mobillama_v.cli.bench import spread
from mobillama_v.config import DecoderConfig
from mobillama_v.errors import ConfigError
from mobillama_v.hub import read_spec
from mobillama_v.model.decoder import Decoder


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.slow
@pytest.mark.skipif(bool(library.missing()), reason="no native library")
def test_all_backends_side_by_side(nano_like: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "bench.json"
    arguments = ["--prompts", "9,30,9", "--new", 6, "--turns", 2, "--threads", 1, "-o", output]
    code, out, err = call("decoder", "-m", nano_like, *arguments)
    assert code == 0, err
    facts = json.loads(output.read_text())
    assert list(facts["backends"]) == ["native 4 bit", "native 8 bit", "torch fp32", "transformers fp32"]
    for name, backend in facts["backends"].items():
        peak, torchs = backend["peak_rss_bytes"], facts["backends"]["torch fp32"]["peak_rss_bytes"]
        assert name in out and torchs > 5e7
        assert (1e7 < peak < torchs / 2) if name.startswith("native") else peak > 5e7  # it is without torch
        for length, each in backend["prompts"].items():
            seconds = backend["seconds"][length]
            assert len(seconds["prefill"]) == len(seconds["decode"]) == 2
            assert each["decode_tokens_per_second"] == pytest.approx(spread([5 / one for one in seconds["decode"]]))
            assert each["prefill_tokens_per_second"]["most"] == pytest.approx(int(length) / min(seconds["prefill"]))
    assert facts["backends"]["transformers fp32"]["prompts"]["30"]["tokens_as_torch"] == 6  # the same model
    native = facts["backends"]["native 8 bit"]
    assert native["cached_bytes"] > 0 and native["roof_reached"] == pytest.approx(
        native["prompts"]["9"]["decode_tokens_per_second"]["median"] / native["roof_tokens_per_second"]
    )
    assert facts["turns"] == 2
    assert "llama.cpp Q8_0 flash unmapped" in facts["not_measured"]  # for want of it, or for the model's sizes
    for reason in set(facts["not_measured"].values()):
        backends = [backend for backend, why in facts["not_measured"].items() if why == reason]
        assert f"Not measured: {', '.join(backends)}: {reason}." in out.splitlines()


def test_a_backend_that_is_named_twice_is_measured_once(nano_like: Path, tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    backends = "torch fp32,torch fp32" if library.missing() else "torch fp32, native 4 bit,torch fp32"
    arguments = ["--prompts", 9, "--new", 3, "--turns", 2, "--threads", 1, "-o", output]
    code, _, err = call("decoder", "-m", nano_like, "--backends", backends, *arguments)
    assert code == 0, err
    found = json.loads(output.read_text())["backends"]
    assert {name: len(each["seconds"]["9"]["decode"]) for name, each in found.items()} == dict.fromkeys(found, 2)
    assert {name for name, each in found.items() if "roof_reached" in each} == set(found) - {"torch fp32"}


@pytest.mark.skipif(bool(library.missing()), reason="no native library")
def test_a_native_worker_never_imports_torch(tmp_path: Path) -> None:
    """It is measured as llama.cpp is, with no memory in the process but its own."""
    spec = DecoderConfig(64, 32, 48, 2, 4, 4, 64)
    head = torch.nn.Linear(spec.hidden_size, spec.vocab_size, bias=False)
    (tmp_path / "8").mkdir()
    write(pack(Decoder(spec), head, spec, 8), tmp_path / "8")
    (tmp_path / "spec.json").write_text(json.dumps(dataclasses.asdict(spec)))
    code = """
import runpy, sys
runpy.run_module("benchmarks.decoder_worker", run_name="__main__")
print([name for name in ("torch", "transformers", "open_clip") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "native 8 bit", tmp_path, "1", "64"],
        input=json.dumps({"prompt": [3, 4, 5], "new": 4}),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=decoding.ROOT,
    )
    assert done.returncode == 0, done.stderr
    facts, answer, imported = done.stdout.splitlines()
    assert json.loads(facts)["streamed_bytes"] > 0 and len(json.loads(answer)["tokens"]) == 4
    assert imported == "[]"


def test_a_native_backend_needs_the_library(nano_like: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "missing", lambda: "it was not built; install a compiler and this package again")
    code, _, err = call("decoder", "-m", nano_like, "--backends", "torch fp32,native 8 bit")
    assert code == 2 and err.count("\n") == 1
    assert "native 8 bit cannot be measured here: it was not built; install a compiler" in err


@pytest.mark.slow
def test_a_worker_that_ends_is_told(nano_like: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch fp32 has ended before it was measured"):
        decoding.measure(
            ["torch fp32"], tmp_path, {9: [3] * 9}, layers=1, new=3, turns=1, threads=1
        )  # with nothing to load
    decoding.write_weights(str(nano_like), read_spec(nano_like).decoder, tmp_path, ["torch fp32"])
    worker = decoding.Worker("torch fp32", tmp_path, 1, 12)
    worker.process.kill()
    worker.process.wait()
    try:
        with pytest.raises(ConfigError, match="torch fp32 has ended"):
            worker.ask([3] * 9, 3)
    finally:
        worker.end()


def test_mistakes_are_told(nano_like: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["--prompts", "many"], "is not a list of numbers"),
        (["--prompts", "0"], "is not a list of numbers"),
        (["--backends", "abacus"], "there is no backend 'abacus'"),
        (["-m", nano_like, "--prompts", 600], "do not fit the model's context of 512"),
        (["-m", tmp_path / "nothing"], "there is no model"),
    ):
        code, _, err = call("decoder", *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, err
