"""The engine without Python: under AddressSanitizer with UBSan, under ThreadSanitizer, and on Arm by an emulator."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[3] / "mobillama_v" / "backends" / "native" / "csrc").glob("*.cpp"))
COMPILER = shutil.which("c++")
ARM_COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")


def build(compiler: str | None, program: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Compile the driver and the engine's sources into one program."""
    assert compiler is not None
    sources = [str(Path(__file__).parent / "driver.cpp"), *map(str, SOURCES)]
    command = [compiler, "-std=c++17", "-ffp-contract=off", *flags, *sources, "-o", str(program), "-pthread"]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def run(*command: str) -> str:
    """What the program prints; it must end with 0."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"LANG": "C"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_driver_is_clean(sanitizer: str, tmp_path: Path) -> None:
    program = tmp_path / "driver"
    built = build(COMPILER, program, "-O1", "-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip(f"this compiler has no library for -fsanitize={sanitizer}")
    assert built.returncode == 0, built.stderr
    assert {"path portable, 4 bit", "path portable, layers", "path portable, towers"} <= set(
        run(str(program)).splitlines()
    )


@pytest.mark.slow
@pytest.mark.skipif(ARM_COMPILER is None or EMULATOR is None, reason="no g++-aarch64-linux-gnu or no qemu-user here")
def test_the_driver_agrees_on_arm(tmp_path: Path) -> None:
    program = tmp_path / "driver"
    built = build(ARM_COMPILER, program, "-O2", "-static", "-Wall", "-Wextra", "-Werror")
    assert built.returncode == 0, built.stderr
    said = run(str(EMULATOR), "-cpu", "max", str(program)).splitlines()
    parts = ("4 bit", "8 bit", "16 bit", "layers", "towers")
    assert set(said) == {f"path {path}, {part}" for path in ("portable", "neon") for part in parts}
