"""``describe`` and pictures that need a word: none is lost, and what was changed is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from mobillama_v.cli.main import app


def describe(model: Path, *arguments: object) -> Result:
    options = ["describe", "--model", str(model), "--max-new-tokens", "4"]
    return CliRunner().invoke(app, [*options, *map(str, arguments)])


def test_a_folder_loses_no_picture_in_silence(nano_like: Path, tmp_path: Path) -> None:
    Image.new("RGB", (30, 20), (200, 30, 30)).save(tmp_path / "red.png")
    (tmp_path / "IMG_0001.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    result = describe(nano_like, tmp_path)
    assert result.exit_code == 1 and result.stdout.startswith(f"{tmp_path / 'red.png'}: ")
    assert "IMG_0001.svg' is an SVG drawing: export it" in result.stderr and result.stderr.count("\n") == 1


def test_verbose_says_how_a_picture_was_shown(nano_like: Path, tmp_path: Path) -> None:
    path = tmp_path / "x-ray.png"
    Image.fromarray(np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)).save(path)
    assert "x-ray.png' has gray values from 0 to 4080" in describe(nano_like, path, "--verbose").stderr
    assert describe(nano_like, path).stderr == ""


def test_repetition_options(nano_like: Path, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (30, 20), (200, 30, 30)).save(path)
    long = ["--max-new-tokens", "40"]
    asked = describe(nano_like, path, *long, "--repetition-penalty", "1.5", "--no-repeat-ngram", "2")
    assert asked.exit_code == 0 and asked.stdout != describe(nano_like, path, *long).stdout
    refused = describe(nano_like, path, "--repetition-penalty", "0")
    assert refused.exit_code == 2 and "repetition_penalty must be from 0.1 to 10" in str(refused.stderr)
