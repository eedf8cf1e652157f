"""Fixtures and helper modules of the evaluation's tests; pytest's importlib mode needs them loaded by path."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for name in ("toy", "official"):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
