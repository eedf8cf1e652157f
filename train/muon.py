"""The Muon optimizer: momentum whose matrices are orthogonalized (Jordan 2024, kellerjordan.github.io/posts/muon).

Hidden matrices take a step of the same size in every direction; embeddings, the head, norms and biases are AdamW's, as
the authors advise. Steps are scaled to AdamW's usual size (Moonlight, arXiv 2502.16982, section 2.2), so that one
learning rate serves both. torch has a Muon too, but it orthogonalizes in bfloat16, which CPUs without bfloat16
arithmetic emulate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MOMENTUM, _ITERATIONS = 0.95, 5
_QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at zero: all singular values end between 0.7 and 1.2
_ADAMW_RMS = 0.2  # root mean square of AdamW's steps, in learning rates


@torch.no_grad()
def orthogonalize(matrix: Tensor) -> Tensor:
    """The matrix [N,M] with its singular values brought near 1, by Newton-Schulz iterations."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    linear, cubic, quintic = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return x.T if tall else x


class Muon(torch.optim.AdamW):
    """Muon for the groups marked ``hidden``, AdamW for the others.

    Args:
        groups: parameter groups with ``params``, ``lr``, ``weight_decay`` and ``hidden``, all of whose parameters are
            matrices where it is true.
        betas: AdamW's.
    """

    param_groups: list[dict[str, Any]]

    def __init__(self, groups: list[dict[str, Any]], *, betas: tuple[float, float]) -> None:
        super().__init__(groups, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        hidden = [group for group in self.param_groups if group["hidden"]]
        every = self.param_groups
        self.param_groups = [group for group in every if not group["hidden"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = every
        for group in hidden:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_hidden(parameter, parameter.grad, group["lr"], group["weight_decay"])
        return loss

    def _step_hidden(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)  # AdamW's loading looks for it
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        momentum = state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        update = orthogonalize(gradient.lerp(momentum, _MOMENTUM))
        parameter.mul_(1 - lr * weight_decay)
        parameter.add_(update, alpha=-lr * _ADAMW_RMS * max(parameter.shape) ** 0.5)
