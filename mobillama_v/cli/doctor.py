"""``mobillama-v doctor``: what is installed here, whether it works, and what is wrong."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import platform
import shutil
import time
from pathlib import Path

import typer

from mobillama_v import __version__
from mobillama_v.errors import MobiLlamaVError

_LIBRARIES = ("numpy", "pillow", "tokenizers", "safetensors", "huggingface_hub", "torch", "transformers")
_NOT_FOR_USERS = {"all", "dev", "docs", "bench"}
_LEAST_DISK, _LEAST_MEMORY = 1 << 30, 1 << 29  # bytes


def doctor() -> None:
    """Show versions, engine, models, extras, free memory and disk, and what is wrong.

    A small drawing is described as a trial. The exit code is 1 if something is wrong.
    """
    wrong: list[str] = []
    for name, lines in (
        ("versions", _versions()),
        ("engine", _engine(wrong)),
        ("models", _models()),
        ("extras", _extras(wrong)),
        ("space", _space(wrong)),
        ("trial", _trial(wrong)),
        ("wrong", wrong or ["nothing"]),
    ):
        for i, line in enumerate(lines):
            print(f"{name if not i else '':<10}{line}", flush=True)
    if wrong:
        raise typer.Exit(1)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> list[str]:
    libraries = ", ".join(f"{name} {_version(name) or 'not installed'}" for name in _LIBRARIES)
    place = f"Python {platform.python_version()}, {platform.platform()}"
    return [f"mobillama-v {__version__} in {Path(__file__).parents[1]}", place, libraries]


def _engine(wrong: list[str]) -> list[str]:
    from mobillama_v.backends.native import library
    from mobillama_v.backends.select import processors

    if why := library.missing():
        wrong.append(f"the native engine is not here, so numpy answers, which is slower: {why}")
        return ["numpy"]
    return [f"native, on {processors()} processors with the instructions {', '.join(library.paths())}"]


def _models() -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    from mobillama_v.hub import embedded_models

    cache = Path(HF_HUB_CACHE)
    held = sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))
    state = "offline" if HF_HUB_OFFLINE else "online"
    return [
        *(f"{name} (embedded): {folder}" for name, folder in embedded_models().items()),
        f"Hugging Face Hub ({state}), kept in {cache}: {', '.join(held) or 'none'}",
    ]


def _extras(wrong: list[str]) -> list[str]:
    lacking = {extra: _lacks(extra) for extra in _provided() if extra not in _NOT_FOR_USERS}
    for extra, missing in lacking.items():
        wrong += [f"{each}: pip install -U 'mobillama-v[{extra}]'" for each in missing if " " in each]
    here = [extra for extra, missing in lacking.items() if not missing]
    absent = [f"{extra} ({', '.join(missing)})" for extra, missing in lacking.items() if missing]
    return [f"installed: {', '.join(here) or 'none'}", f"not installed: {', '.join(absent) or 'none'}"]


def _provided() -> list[str]:
    return metadata.metadata("mobillama-v").get_all("Provides-Extra") or []


def _lacks(extra: str) -> list[str]:
    """What an extra needs and is not here: packages and other extras by name, another version in a few words."""
    from packaging.requirements import Requirement

    found: list[str] = []
    for line in metadata.requires("mobillama-v") or []:
        need = Requirement(line)
        if need.marker is None or need.marker.evaluate({"extra": ""}) or not need.marker.evaluate({"extra": extra}):
            continue
        if need.name == "mobillama-v":
            found += [inner for inner in sorted(need.extras) if _lacks(inner)]
        elif (version := _version(need.name)) is None:
            found.append(need.name)
        elif not need.specifier.contains(version, prereleases=True):
            found.append(f"{need.name} {version} is installed and the extra {extra} needs {need.specifier}")
    return list(dict.fromkeys(found))


def _space(wrong: list[str]) -> list[str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    place = next(path for path in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).absolute().parents) if path.is_dir())
    disk, memory = shutil.disk_usage(place).free, _free_memory()
    if disk < _LEAST_DISK:
        wrong.append(f"only {disk / 1e6:,.0f} MB are free in {place}, where models are kept; free some")
    if memory is not None and memory < _LEAST_MEMORY:
        wrong.append(f"only {memory / 1e6:,.0f} MB of memory are free; close other programs")
    shown = "unknown" if memory is None else f"{memory / 1e9:,.1f} GB"
    return [f"free memory {shown}, free disk {disk / 1e9:,.1f} GB in {place}"]


def _free_memory() -> int | None:
    """Bytes that programs can take without swapping; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def _trial(wrong: list[str]) -> list[str]:
    from PIL import Image

    from mobillama_v.loading import load

    start = time.perf_counter()
    drawing = Image.new("RGB", (224, 224), "white")
    drawing.paste((220, 30, 30), (70, 70, 154, 154))
    try:
        text = load().ask([drawing], "Describe the image.").text
    except MobiLlamaVError as error:
        wrong.append(f"nano cannot answer: {error}")
        return [f"failed: {error}"]
    seconds = time.perf_counter() - start
    return [f"nano describes a red square in {seconds:.1f} s: {text}"]
