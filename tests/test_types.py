"""The type check sees the libraries that the code is built on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_wrong_call_of_torch_is_a_type_error(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text('from torch import Tensor, nn\n\nnn.Linear("x", y=3)\nTensor().no_such_method()\n')
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path)]
    command = [sys.executable, "-m", "mypy", *options, str(wrong)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert 'wrong.py:3: error: Unexpected keyword argument "y"' in done.stdout
    assert 'wrong.py:4: error: "Tensor" has no attribute "no_such_method"' in done.stdout
