"""Projectors: visual features to decoder width. Import it as ``mobillama_v.projector``."""

from __future__ import annotations

if __name__ != "mobillama_v.projector":  # the checkout's folder was found, not the installed package
    raise ImportError("projector/ is mobillama_v.projector: pip install -e . and import it by that name")

import mobillama_v.projector.projectors  # noqa: F401 (registers them)
from mobillama_v.projector.registry import PROJECTORS, Operations, Projector, get_projector, register_projector

__all__ = ["PROJECTORS", "Operations", "Projector", "get_projector", "register_projector"]
