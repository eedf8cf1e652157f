"""A format is one class and one line in the registry: a toy one is exported to and imported from by the commands."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import tiny
from mobillama_v.cli.main import app
from mobillama_v.config import DecoderConfig, ModelConfig
from mobillama_v.errors import CheckpointError, ConfigError
from mobillama_v.hub import read_spec
from mobillama_v.interop import formats
from mobillama_v.interop.formats import FFN, Exporter, ImportedDecoder, Importer, import_decoder
from mobillama_v.model.vlm import VisionLanguageModel


class ToyExporter(Exporter):
    help = """Write a model as a toy.

    It is for this test.
    """
    suffix = ".toy"
    types = ("f16", "f32")
    default_type = "f32"

    def check(self, spec: ModelConfig, kind: str) -> None:
        if kind not in self.types:
            raise ConfigError(f"a toy has no type {kind!r}.")

    def write(
        self, path: Path, network: VisionLanguageModel, spec: ModelConfig, *, kind: str, folder: Path
    ) -> tuple[str, ...]:
        path.write_text(f"{kind} {tuple(network.lm_head.weight.shape)} {folder.name}")
        return ("A toy has no norms.",)


class ToyImporter(Importer):
    title = "toys"

    def detect(self, config: dict[str, Any]) -> bool:
        return config.get("model_type") == "toy"

    def load(self, folder: Path, config: dict[str, Any], *, ffn: FFN) -> ImportedDecoder:
        spec = DecoderConfig(**tiny.DECODER)
        return ImportedDecoder(spec, {}, torch.zeros(spec.vocab_size, spec.hidden_size), (ffn,))


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("toys")
    module.__dict__.update(ToyExporter=ToyExporter, ToyImporter=ToyImporter)
    monkeypatch.setitem(sys.modules, "toys", module)
    monkeypatch.setitem(formats.EXPORTERS, "toy", "toys:ToyExporter")
    monkeypatch.setattr(formats, "IMPORTERS", [*formats.IMPORTERS, "toys:ToyImporter"])


def export(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_a_registered_exporter_is_a_command(toys: None, nano_like: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.toy"
    result = export("toy", nano_like, out)
    assert result.exit_code == 0, result.output
    decoder = read_spec(nano_like).decoder
    assert out.read_text() == f"f32 ({decoder.vocab_size}, {decoder.hidden_size}) {nano_like.name}"
    assert result.stdout.startswith("A toy has no norms.\n")
    assert list(tmp_path.iterdir()) == [out]
    result = export("toy", nano_like, tmp_path / "other.toy", "--type", "f8")
    assert (result.exit_code, result.stderr) == (2, "error: a toy has no type 'f8'.\n")
    shown = export("--help").stdout
    assert "toy" in shown and "gguf" in shown
    assert "f16 or f32" in " ".join(export("toy", "--help").stdout.split())


def test_a_format_that_is_not_registered_is_no_command(nano_like: Path, tmp_path: Path) -> None:
    assert export("toy", nano_like, tmp_path / "model.toy").exit_code == 2


def test_the_importer_is_the_one_that_knows_the_configuration(toys: None, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "toy"}))
    assert import_decoder(tmp_path, ffn="average").notes == ("average",)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match=r"type 'gpt2'; what can be imported: Llama, .*, toys"):
        import_decoder(tmp_path)
