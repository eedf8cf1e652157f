"""Projectors in torch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobillama_v.projector.registry import Projector

_OPERATIONS: Any = SimpleNamespace(gelu=F.gelu, concatenate=torch.cat)


class ProjectorModule(nn.Module):
    """The layers of a :class:`~mobillama_v.projector.Projector` as a module, freshly initialized."""

    def __init__(self, kind: Projector, *, tower_width: int, decoder_width: int) -> None:
        super().__init__()
        self.kind = kind
        for name, layer in kind.layers(tower_width, decoder_width).items():
            self.add_module(name, layer)

    def forward(self, features: Tensor, *, extra: int = 0) -> Tensor:
        """Project features [N,E+P,Dv], of which the first ``extra`` are no patches, to visual tokens [N,P',D]."""
        return self.kind.forward(self, features, extra=extra, ops=_OPERATIONS)
