"""The engine on Arm: built by a cross-compiler and run by an emulator, against its portable path."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "mobillama_v" / "engine" / "native").glob("*.cpp"))
COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None or EMULATOR is None, reason="no g++-aarch64-linux-gnu or no qemu-user here")
def test_the_driver_agrees_on_arm(tmp_path: Path) -> None:
    assert COMPILER is not None and EMULATOR is not None
    program = tmp_path / "driver"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-static", "-Wall", "-Wextra", "-Werror"]
    sources = [str(Path(__file__).parent / "driver.cpp"), *map(str, SOURCES)]
    built = subprocess.run(
        [COMPILER, *flags, *sources, "-o", str(program), "-pthread"], capture_output=True, text=True, timeout=600
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([EMULATOR, "-cpu", "max", str(program)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    portable, neon = 1, 4
    assert set(done.stdout.splitlines()) == {
        f"path {path}, {bits} bit" for path in (portable, neon) for bits in (4, 8, 16)
    }
