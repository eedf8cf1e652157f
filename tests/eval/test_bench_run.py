"""The bench of engines: all ways run the same weights, and the figures follow from the seconds."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from mobillama_v import plots
from mobillama_v.backends.native import library
from mobillama_v.backends.native.packed_format import write
from mobillama_v.backends.native.torch_convert import pack
from mobillama_v.cli.main import app
from mobillama_v.config import DecoderConfig
from mobillama_v.errors import ConfigError
from mobillama_v.eval import bench_run
from mobillama_v.eval.bench_run import as_dict
from mobillama_v.model.decoder import Decoder


def call(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.skipif(bool(library.missing()), reason="no native library")
def test_all_ways_side_by_side(nano_like: Path, tmp_path: Path) -> None:
    output, plot = tmp_path / "new" / "bench.json", tmp_path / "plot" / "bench"
    arguments = ["--prompts", "9,30,9", "--new", 6, "--turns", 2, "--threads", 1, "-o", output, "--plot", plot]
    code, out, err = call("bench", "run", "-m", nano_like, *arguments)
    assert code == 0, err
    facts = json.loads(output.read_text())
    assert list(facts["ways"]) == ["native 4 bit", "native 8 bit", "torch fp32", "transformers fp32"]
    for name, way in facts["ways"].items():
        peak, torchs = way["peak_rss_bytes"], facts["ways"]["torch fp32"]["peak_rss_bytes"]
        assert name in out and torchs > 5e7
        assert (1e7 < peak < torchs / 2) if name.startswith("native") else peak > 5e7  # it is without torch
        for length, each in way["prompts"].items():
            seconds = way["seconds"][length]
            assert len(seconds["prefill"]) == len(seconds["decode"]) == 2
            low, high = each["decode_range"]
            assert low == pytest.approx(5 / max(seconds["decode"])) and high == pytest.approx(
                5 / min(seconds["decode"])
            )
            assert low <= each["decode_tokens_per_second"] <= high
    assert facts["ways"]["transformers fp32"]["prompts"]["30"]["tokens_as_torch"] == 6  # the same model
    native = facts["ways"]["native 8 bit"]
    assert native["cached_bytes"] > 0 and native["roof_reached"] == pytest.approx(
        native["prompts"]["9"]["decode_tokens_per_second"] / native["roof_tokens_per_second"]
    )
    assert facts["turns"] == 2
    assert "llama.cpp Q8_0 flash unmapped" in facts["not_measured"]  # for want of it, or for the model's sizes
    for reason in set(facts["not_measured"].values()):
        ways = [way for way, why in facts["not_measured"].items() if why == reason]
        assert f"Not measured: {', '.join(ways)}: {reason}." in out.splitlines()
    with Image.open(plot) as image:
        assert image.format == "PNG" and image.width > 500


def test_a_way_is_measured_once_and_the_roof_is_drawn_wherever_it_is(
    nano_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A way that is named twice is one; only native ways have a roof, and they need not come first."""
    facts: dict[str, Any] = {}
    drawn: list[Any] = []
    monkeypatch.setattr(bench_run, "as_dict", lambda *a, **k: facts.update(as_dict(*a, **k)) or facts)
    pyplot = plots.pyplot("--plot", "bench")
    monkeypatch.setattr(pyplot, "close", drawn.append)
    ways = "torch fp32,torch fp32" if library.missing() else "torch fp32, native 4 bit,torch fp32"
    arguments = ["--prompts", 9, "--new", 3, "--turns", 2, "--threads", 1, "--plot", tmp_path / "bench.png"]
    code, _, err = call("bench", "run", "-m", nano_like, "--ways", ways, *arguments)
    assert code == 0, err
    assert [len(way["seconds"]["9"]["decode"]) for way in facts["ways"].values()] == [2] * len(facts["ways"])
    legend = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert ("roof" in legend) == (not library.missing())


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
runpy.run_module("mobillama_v.eval.bench_native", run_name="__main__")
print([name for name in ("torch", "transformers", "open_clip") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "native 8 bit", tmp_path, "1"],
        input=json.dumps({"prompt": [3, 4, 5], "new": 4}), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    facts, answer, imported = done.stdout.splitlines()
    assert json.loads(facts)["streamed_bytes"] > 0 and len(json.loads(answer)["tokens"]) == 4
    assert imported == "[]"


def test_a_native_way_needs_the_library(nano_like: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "missing", lambda: "it was not built; install a compiler and this package again")
    code, _, err = call("bench", "run", "-m", nano_like, "--ways", "torch fp32,native 8 bit")
    assert code == 2 and err.count("\n") == 1
    assert "the native engine is not here to be measured: it was not built; install a compiler" in err


def test_a_worker_that_ends_is_told(nano_like: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torch fp32 has ended before it was measured"):
        bench_run.measure(
            ["torch fp32"], tmp_path, {9: [3] * 9}, layers=1, new=3, turns=1, threads=1
        )  # with nothing to load
    worker = bench_run._Worker("torch fp32", tmp_path, 1, 12)
    worker._process.wait()
    try:
        with pytest.raises(ConfigError, match="torch fp32 has ended"):
            worker.ask([3] * 9, 3)
    finally:
        worker.end()


def test_mistakes_are_told(nano_like: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (["--prompts", "many"], "is not a list of numbers"),
        (["--prompts", "0"], "is not a list of numbers"),
        (["--ways", "abacus"], "there is no way 'abacus'"),
        (["-m", nano_like, "--prompts", 600], "do not fit the model's context of 512"),
        (["-m", tmp_path / "nothing"], "there is no model"),
    ):
        code, _, err = call("bench", "run", *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, err
