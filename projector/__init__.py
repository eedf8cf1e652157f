"""Projectors: visual features to decoder width. Import it as ``mobillama_v.projector``."""

from __future__ import annotations

if __name__ != "mobillama_v.projector":  # the checkout's folder was found, not the installed package
    raise ImportError("projector/ is mobillama_v.projector: pip install -e . and import it by that name")

from mobillama_v.projector.projectors import build_projector, projected_tokens

__all__ = ["build_projector", "projected_tokens"]
