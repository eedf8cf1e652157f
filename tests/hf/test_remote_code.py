"""A folder with its own code answers where the package is not installed, and as it does where it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from typer.testing import CliRunner

import tiny
from mobillama_v.cli.main import app
from mobillama_v.images import ImageTransform
from mobillama_v.model.vision import TowerConfig, ViTShape

ANSWER = """
import importlib.util, json, sys
assert REMOTE == (importlib.util.find_spec("mobillama_v") is None)
if not REMOTE:
    import mobillama_v
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
folder, out = sys.argv[1:]
options = {"trust_remote_code": True} if REMOTE else {}
processor = AutoProcessor.from_pretrained(folder, **options)
model = AutoModelForImageTextToText.from_pretrained(folder, **options)
inputs = processor(images=Image.new("RGB", (50, 40), (200, 30, 30)), text="What is this?")
answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)
if out:
    model.save_pretrained(out)
    processor.save_pretrained(out)
print(json.dumps(answer.tolist()))
"""
TOWERS = {"nano": {}, "clip": {"tower": TowerConfig("clip-vit", vit=ViTShape(24, 3, 3, 40, 8, "quick_gelu"))}}


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The installed packages, but for this one."""
    site = tmp_path_factory.mktemp("site")
    for path in Path(transformers.__file__).parents[1].iterdir():
        if not path.name.startswith(("mobillama_v", "__editable__")):
            (site / path.name).symlink_to(path)
    return site


def answer(folder: Path, site: Path, out: Path | str = "", *, remote: bool) -> list[list[int]]:
    code = ANSWER.replace("REMOTE", str(remote))
    extra = {"PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1", "HF_HOME": str(site.parent / "hub")} if remote else {}
    command = [sys.executable, *(["-S"] if remote else []), "-c", code, str(folder), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | extra, cwd=site, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["nano", pytest.param("clip", marks=pytest.mark.slow)])
def test_it_answers_without_the_package(name: str, libraries: Path, tmp_path: Path) -> None:
    changes = {"image": ImageTransform(tiny.IMAGE_SIZE)} | TOWERS[name] if TOWERS[name] else {}
    folder, out = tiny.save_nano_like(tmp_path / "model", **changes), tmp_path / "out"
    result = CliRunner().invoke(app, ["export", "remote-code", str(folder), str(out), "--type", "f32"])
    assert result.exit_code == 0, result.output
    assert len(list(out.glob("*.py"))) == 1
    expected = answer(out, libraries, remote=False)
    assert answer(out, libraries, tmp_path / "again", remote=True) == expected
    assert answer(tmp_path / "again", libraries, remote=True) == expected  # what is saved there brings its code
