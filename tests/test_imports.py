"""Imports go one way, and every module imports with the core install only."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"mobillama_v": "mobillama_v", **{f: f"mobillama_v.{f}" for f in ("projector", "train", "eval", "demo")}}

# A module may import modules of a lower number, or of its own unit: the longest name here that begins its own.
LAYERS = {
    "errors": 0,
    "output": 1,
    "distributed": 1,
    "fields": 1,
    "progress": 2,
    "images.kinds": 1,
    "images.upright": 1,
    "images": 2,
    "config": 5,
    "tokenization": 6,
    "prompt_jinja": 1,
    "prompt": 2,
    "chat_templates": 3,
    "conversation": 3,
    "ocr": 3,
    "checkpoint": 6,
    "markup": 6,
    "plots": 6,
    "hf_datasets": 6,
    "json_stream": 1,
    "tables": 2,
    "model.vision.parts": 1,
    "model.vision.parts_torch": 2,
    "model.vision.lite0": 2,
    "model.vision.structured_tokens": 3,
    "model.vision": 4,
    "model.decoder": 6,
    "model.kv_cache": 6,
    "model": 7,
    "projector": 2,
    "hf.configuration": 6,
    "prefix_cache": 6,
    "sampling": 6,
    "generate": 7,
    "presets": 6,
    "backends.native": 8,
    "backends.torch": 8,
    "backends": 9,
    "hub": 7,
    "hf.attention": 7,
    "hf.folder": 8,
    "hf.remote_code": 8,
    "hf.modeling": 9,
    "hf.image_processing": 7,
    "hf.rendering": 8,
    "hf.processing": 9,
    "hf": 10,
    "reply": 8,
    "assistant": 9,
    "loading": 10,
    "interop": 10,
    "cli.options": 11,
    "train": 12,
    "train.__main__": 17,
    "eval": 12,
    "demo": 14,
    "cli": 15,
    "cli.main": 16,
    "__main__": 17,
}
# What only an extra installs; no module may import it before a function needs it.
OPTIONAL = (
    *("accelerate", "deepspeed", "datasets", "gradio", "fastapi", "uvicorn", "easy_vqa", "matplotlib", "pytest"),
    *("peft", "tensorboard", "wandb", "gguf", "llama_cpp"),
)


def modules() -> dict[str, Path]:
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *[p for p in parts if p != "__init__"]])] = path
    return found


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def unit(name: str) -> str | None:
    """The longest entry of LAYERS that is ``name`` without the package's, or a package around it."""
    parts = name.split(".")[1:]
    return next((found for end in range(len(parts), 0, -1) if (found := ".".join(parts[:end])) in LAYERS), None)


@pytest.mark.parametrize("name", [n for n in modules() if n != "mobillama_v"])
def test_no_upward_import(name: str) -> None:
    mine = unit(name)
    if mine is None:
        assert name.count(".") == 1, f"give {name} a layer"
        assert not imported(modules()[name]) - {"__future__", "__future__.annotations"}, f"{name} only names a package"
        return
    for other in imported(modules()[name]):
        theirs = unit(other) if other.startswith("mobillama_v.") else None
        if theirs is not None and theirs != mine:
            assert LAYERS[theirs] < LAYERS[mine], f"{name} imports {other}, which is not below it"


@pytest.mark.slow
def test_every_module_imports_without_the_extras() -> None:
    blocked = "\n".join(f"sys.modules[{name!r}] = None" for name in OPTIONAL)
    loads = "\n".join(f"importlib.import_module({name!r})" for name in modules() if not name.endswith("__main__"))
    subprocess.run([sys.executable, "-c", f"import importlib, sys\n{blocked}\n{loads}"], check=True, cwd="/")


@pytest.mark.parametrize(
    "name",
    [
        "mobillama_v",
        "mobillama_v.prompt",
        "mobillama_v.config",
        "mobillama_v.backends.native.engine",
        "mobillama_v.loading",
        "mobillama_v.backends.numpy.model",
    ],
)
def test_light_modules_stay_light(name: str) -> None:
    code = f"import {name}, sys; print([m for m in ('torch', 'transformers', 'open_clip') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd="/")
    assert out.stdout.strip() == "[]"


def test_public_names_resolve() -> None:
    package = importlib.import_module("mobillama_v")
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018


@pytest.mark.parametrize("folder", [folder for folder in FOLDERS if folder != "mobillama_v"])
def test_a_folder_of_the_checkout_is_no_module_of_its_own(folder: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {folder}"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "import it by that name" in done.stderr.splitlines()[-1]
    assert f"mobillama_v.{folder}" in done.stderr.splitlines()[-1]
