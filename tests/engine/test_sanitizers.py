"""The engine under AddressSanitizer with UBSan, and under ThreadSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).parents[2] / "mobillama_v" / "engine" / "native").glob("*.cpp"))
COMPILER = shutil.which("c++")


@pytest.mark.slow
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_the_driver_is_clean(sanitizer: str, tmp_path: Path) -> None:
    assert COMPILER is not None
    program = tmp_path / "driver"
    flags = ["-std=c++17", "-O1", "-g", "-ffp-contract=off", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"]
    sources = [str(Path(__file__).parent / "driver.cpp"), *map(str, SOURCES)]
    built = subprocess.run(
        [COMPILER, *flags, *sources, "-o", str(program), "-pthread"], capture_output=True, text=True, timeout=600
    )
    if "cannot find" in built.stderr and "san" in built.stderr:
        pytest.skip(f"this compiler has no library for -fsanitize={sanitizer}")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program)], capture_output=True, text=True, timeout=600, env=os.environ | {"LANG": "C"})
    assert done.returncode == 0, done.stderr[-3000:]
