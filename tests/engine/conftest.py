"""The helper module of the engine's tests; pytest's importlib mode needs it loaded by its path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

spec = importlib.util.spec_from_file_location("decoders", Path(__file__).parent / "decoders.py")
assert spec is not None and spec.loader is not None
module = importlib.util.module_from_spec(spec)
sys.modules["decoders"] = module
spec.loader.exec_module(module)
