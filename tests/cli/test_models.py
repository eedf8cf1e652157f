"""``mobillama-v models``, as a user runs it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mobillama_v import MobiLlamaVConfig, hub
from mobillama_v.cli import models
from mobillama_v.config import ModelConfig
from mobillama_v.presets import PRESETS


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from mobillama_v.cli.main import main; sys.argv[0] = 'mobillama-v'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "models", *args],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def test_list() -> None:
    done = run("list")
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines if " preset " in line] == list(PRESETS)
    assert len(lines) == len(PRESETS) + len(hub.embedded_models())
    assert [row["name"] for row in json.loads(run("list", "--json").stdout)] == [line.split()[0] for line in lines]


@pytest.mark.parametrize("name", PRESETS)
def test_show_a_preset(name: str) -> None:
    report = models.report_of(name)
    assert report["parameters"] == sum(part["parameters"] for part in report["parts"])
    assert (report["tokens_per_image"] is None) == (name in ("baseline1", "baseline2"))
    assert report["memory_bytes"]["4-bit"] < report["memory_bytes"]["bf16"] < report["memory_bytes"]["fp32"]


def test_show_reads_well_when_piped() -> None:
    done = run("show", "mobillama-0.5b", COLUMNS="80")
    assert done.returncode == 0 and done.stderr == ""
    assert "\x1b" not in done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "attention 369,098,752 43.7%" in lines
    assert "decoder 534,865,920 63.3%" in lines
    assert "visual tokens an image: 576" in lines
    assert any(line.startswith("parameters of the decoder: 0.535B here, 0.5B in ") for line in lines)
    assert any("num_key_value_heads 4" in line for line in lines)


def test_the_paper_and_the_release_disagree_about_0_8b() -> None:
    notes = " ".join(models.report_of("mobillama-0.8b")["notes"])
    assert "2532" in notes and "11,080" in notes


def test_show_json() -> None:
    report = json.loads(run("show", "nano", "--json").stdout)
    assert report["name"] == "nano" and report["kv_cache_bytes_per_token"] == 2 * 6 * 256 * 2
    assert report["memory_bytes"]["bf16"] == 2 * report["parameters"]


def test_show_a_folder(tmp_path: Path) -> None:
    spec = PRESETS["nano"].spec
    assert isinstance(spec, ModelConfig)
    spec = dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, num_hidden_layers=4))
    MobiLlamaVConfig.from_spec(spec).save_pretrained(tmp_path)
    report = json.loads(run("show", str(tmp_path), "--json").stdout)
    assert report["kind"] == "folder" and report["spec"]["decoder"]["num_hidden_layers"] == 4
    assert report["parameters"] == models.report_of("nano")["parameters"] - 2 * (4 * 256 * 256 + 2 * 256)


def test_an_embedded_model_comes_before_the_preset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PRESETS["nano"].spec
    assert isinstance(spec, ModelConfig)
    MobiLlamaVConfig.from_spec(spec).save_pretrained(tmp_path / "nano")
    monkeypatch.setattr(hub, "_EMBEDDED", tmp_path)
    assert models.find_spec("nano") == ("embedded", spec)


@pytest.mark.parametrize(
    ("name", "said"),
    [("mobillama-7b", "there is no model 'mobillama-7b'"), ("/", "'/config.json' is missing")],
)
def test_errors_are_one_sentence_and_exit_code_2(name: str, said: str) -> None:
    done = run("show", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_folder_with_a_bad_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mobillama_v", "speed": 3}')
    done = run("show", str(tmp_path))
    assert done.returncode == 2 and "unknown keys: speed" in done.stderr


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from mobillama_v.cli.models import report_of, list_models; report_of('mobillama-0.8b'); "
        "report_of('nano'); print([m for m in ('torch', 'transformers', 'open_clip') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/")
    assert out.stdout.strip() == "[]"
