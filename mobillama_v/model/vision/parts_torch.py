"""Declared parts (:mod:`mobillama_v.model.vision.parts`) as torch modules, with gradients and in batches."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobillama_v.model.vision.parts import Conv, LayerNorm, Linear, Parameter, Part


class _TorchOps:
    """The operations of :mod:`mobillama_v.model.vision.parts` over tensors."""

    gelu, relu6, sigmoid = staticmethod(F.gelu), staticmethod(F.relu6), staticmethod(torch.sigmoid)
    attention, concatenate = staticmethod(F.scaled_dot_product_attention), staticmethod(torch.cat)
    where, repeat = staticmethod(torch.where), staticmethod(torch.repeat_interleave)

    def softmax(self, x: Tensor) -> Tensor:
        return x.softmax(-1)

    def topk(self, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
        values, indices = x.topk(k, dim=-1)
        return values, indices

    def argsort(self, x: Tensor) -> Tensor:
        """By each value's rank, for ONNX has no stable sort; what is sorted are a few dozen values."""
        index = torch.arange(x.shape[-1], device=x.device)
        this, other = x[..., :, None], x[..., None, :]
        rank = ((other < this) | ((other == this) & (index < index[:, None]))).sum(-1)
        return (rank[..., None, :] == index[:, None]).to(torch.uint8).argmax(-1)

    def amax(self, x: Tensor) -> Tensor:
        return x.amax(-1)

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        return x[torch.arange(len(x), device=x.device)[:, None], index]

    def stack(self, arrays: Any) -> Tensor:
        return torch.stack(tuple(arrays), dim=-1)

    def pad(self, x: Tensor) -> Tensor:
        return F.pad(x, (1, 1, 1, 1))

    def integers(self, x: Tensor) -> Tensor:
        return x.long()

    def like(self, values: Any, x: Tensor) -> Tensor:
        return torch.as_tensor(values, dtype=x.dtype, device=x.device)

    def arange(self, stop: int, x: Tensor) -> Tensor:
        return torch.arange(stop, device=x.device)

    def channels_last(self, pixels: Tensor) -> Tensor:
        return pixels.permute(0, 2, 3, 1).contiguous()


TORCH = _TorchOps()


class ConvSame(nn.Conv2d):
    """What :class:`~mobillama_v.model.vision.parts.Conv` declares; torch keeps the channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N,H,W,C] to [N,ceil(H/stride),ceil(W/stride),C']."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        x = x.permute(0, 3, 1, 2)
        padding = kernel // 2
        if stride > 1:
            total = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:]]
            x = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
            padding = 0
        return F.conv2d(x, self.weight, self.bias, stride, padding, groups=self.groups).permute(0, 2, 3, 1)


def to_torch(part: Part) -> Any:
    """A module that computes what ``part`` declares, with random weights, on torch's default device.

    It is an instance of the part's class and of :class:`torch.nn.Module`; tensors are named by the part's attributes.
    """
    kind = _module_class(type(part))  # type: ignore[arg-type]  # a class can be hashed
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    for name, value in vars(part).items():
        setattr(module, name, _made(value))
    return module


@cache
def _module_class(kind: type[Part]) -> type[nn.Module]:
    own = {"ops": TORCH, "__call__": nn.Module.__call__, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind, nn.Module), own)


def _made(declared: Any) -> Any:
    match declared:
        case Part():
            return to_torch(declared)
        case list():
            return nn.ModuleList(_made(each) for each in declared)
        case Conv():
            return ConvSame(
                declared.inputs, declared.outputs, declared.kernel, stride=declared.stride, groups=declared.groups
            )
        case Linear():
            return nn.Linear(declared.inputs, declared.outputs, bias=declared.bias)
        case LayerNorm():
            return nn.LayerNorm(declared.width)
        case Parameter():
            start = torch.randn(declared.shape) * declared.std if declared.std else torch.zeros(declared.shape)
            return nn.Parameter(start, requires_grad=declared.trained)
    return declared
