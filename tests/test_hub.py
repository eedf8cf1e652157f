"""Names to folders; what is not there is answered with what is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mobillama_v import hub
from mobillama_v.errors import CheckpointError, ConfigError, ModelNotFoundError
from mobillama_v.hub import find_model, read_spec


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation that has the embedded models nano and giant."""
    for name in ("nano", "giant"):
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "_EMBEDDED", tmp_path / "weights")
    return tmp_path / "weights"


def test_embedded_before_a_folder_of_that_name(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model("nano") == embedded / "nano"
    assert find_model("./nano").samefile(tmp_path / "nano")


def test_unknown_names_get_a_suggestion_and_the_choices(embedded: Path) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"'Nani'; did you mean 'nano'\?.*giant \(embedded\), nano \(embedded\)"
    ):
        find_model("Nani")
    with pytest.raises(ModelNotFoundError) as caught:
        find_model("zzz")
    assert "did you mean" not in str(caught.value)
    for name in ("", "x" * 5000, "a\0b", "../nothing", "a/b/c"):
        with pytest.raises(ModelNotFoundError):
            find_model(name)


def test_a_preset_is_no_model_yet(embedded: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"'mobillama-0\.5b' is a preset"):
        find_model("mobillama-0.5b")


def test_hub_ids_fetch_only_what_a_model_needs(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = {}

    def download(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked[repo_id] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert find_model("someone/some-model.v1") == tmp_path
    assert asked == {"someone/some-model.v1": ["*.safetensors", "*.json"]}


def test_a_hub_that_cannot_be_reached(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFoundError, match=r"no folder 'some/one'.*cannot be reached.*nano \(embedded\)"):
        find_model("some/one")


def test_a_hub_that_fails_is_one_line(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def download(*_: object, **__: object) -> str:
        raise OSError("no space left\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(ModelNotFoundError, match=r"cannot be downloaded \(no space left\)"):
        find_model("some/one")


def test_read_spec(nano_like: Path, tmp_path: Path) -> None:
    assert read_spec(nano_like).image.size == 224
    with pytest.raises(CheckpointError, match="is missing"):
        read_spec(tmp_path)
    path = tmp_path / "config.json"
    for text in ("", "{", "[1]", "\ufeff", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            read_spec(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_spec(tmp_path)
    config = json.loads((nano_like / "config.json").read_text())
    path.write_text(json.dumps(config | {"hidden_sise": 3}))
    with pytest.raises(ConfigError, match="unknown keys: hidden_sise"):
        read_spec(tmp_path)
