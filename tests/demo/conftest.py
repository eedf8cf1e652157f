"""Helper modules of these tests; pytest's importlib mode needs them loaded by path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("serving", Path(__file__).parent / "serving.py")
assert spec is not None and spec.loader is not None
module = importlib.util.module_from_spec(spec)
sys.modules["serving"] = module
spec.loader.exec_module(module)
