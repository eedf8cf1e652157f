"""Projectors: visual features to decoder width. Import it as ``mobillama_v.projector``."""

from __future__ import annotations

from mobillama_v.projector.projectors import build_projector, projected_tokens

__all__ = ["build_projector", "projected_tokens"]
