"""Image tower and projector in 8 bits: which layers are packed, and what their tensors are called.

``model.safetensors`` of a packed folder holds a packed layer's matrix as ``NAME.tiles`` (uint8, as
:mod:`mobillama_v.backends.native.tiles` says) in place of ``NAME.weight``. An attention of torch's is two of them,
``in_proj`` (queries, keys and values one below another) and ``out_proj``, each with its ``bias``. All else stays as
it is, and a folder without packed layers is one like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from mobillama_v.backends.native.packed_format import holds_numbers
from mobillama_v.backends.native.packed_linear import BITS, PackedAttention, PackedLinear
from mobillama_v.errors import CheckpointError
from mobillama_v.model.vlm import SkipInit, VisionLanguageModel
from mobillama_v.projector.module import ProjectorModule

_TILES = ".tiles"
_CALLERS = {
    "torch.nn.modules.container.Sequential",  # open_clip's feed-forward networks
    "timm.layers.attention.Attention",
    "timm.layers.mlp.Mlp",
    "mobillama_v.model.vision.hybrid_lite0.ViTBlock",
}
"""Modules that only call their linear layers: others may read the weights themselves."""
_BLOCK = "open_clip.transformer.ResidualAttentionBlock"
_LEAST = 1 << 19
"""Weights of a layer that is worth packing. With all 14 layers of nano's blocks and projector packed, of 262,144
weights at most, an image took 51.0 ms in place of 53.2, and its visual tokens were off by 2 %: nothing was gained."""


class _Slot:
    """Where a layer stands that is packed, or can be: an attribute ``attribute`` of ``owner``."""

    def __init__(self, name: str, owner: nn.Module, attribute: str) -> None:
        self.name, self.owner, self.attribute = name, owner, attribute

    @property
    def layer(self) -> Any:
        return getattr(self.owner, self.attribute)

    @layer.setter
    def layer(self, layer: nn.Module) -> None:
        setattr(self.owner, self.attribute, layer.eval().requires_grad_(False))


def _slots(network: VisionLanguageModel) -> Iterator[_Slot]:
    """Those of all blocks of the tower and of the projector."""
    visual: Any = network.get_submodule("vision_tower.visual")
    trunk = getattr(visual, "trunk", None)
    blocks = "transformer.resblocks" if trunk is None else "trunk.blocks"
    for root in (f"vision_tower.visual.{blocks}", "projector"):
        for path, owner in network.get_submodule(root).named_modules(prefix=root):
            for attribute, _ in owner.named_children():
                yield _Slot(f"{path}.{attribute}", owner, attribute)


def _can_pack(slot: _Slot) -> bool:
    kind = f"{type(slot.owner).__module__}.{type(slot.owner).__qualname__}"
    layer = slot.layer
    if type(layer) is nn.Linear:
        return kind in _CALLERS or (isinstance(slot.owner, ProjectorModule) and slot.owner.kind.portable)
    return type(layer) is nn.MultiheadAttention and kind == _BLOCK and _is_plain(slot.owner, layer)


def _is_plain(block: nn.Module, attention: nn.MultiheadAttention) -> bool:
    """Whether ``block`` asks of its attention what :class:`PackedAttention` can: any other stays whole."""
    alone = attention.bias_k is None and attention.bias_v is None and not attention.add_zero_attn
    own = attention.in_proj_weight is not None and attention.in_proj_bias is not None and not hasattr(block, "ln_1_kv")
    return alone and own and attention.batch_first and attention.dropout == 0


def _packed_layer(layer: Any) -> PackedLinear | PackedAttention:
    """The packed layer in place of ``layer``, its weights allocated and not filled."""
    if isinstance(layer, nn.Linear):
        rows, columns = layer.weight.shape
        return PackedLinear(rows, columns, bias=layer.bias is not None, like=layer.weight)
    return PackedAttention(layer.embed_dim, layer.num_heads, like=layer.in_proj_weight)


def pack(network: VisionLanguageModel, *, least: int = _LEAST) -> None:
    """Pack the layers of tower and projector that have ``least`` weights or more, and can be.

    Raises:
        CheckpointError: weights that are not finite.
    """
    for slot in list(_slots(network)):
        layer = slot.layer
        if not _can_pack(slot) or sum(each.numel() for each in layer.parameters()) < least:
            continue
        packed = _packed_layer(layer)
        if isinstance(packed, PackedLinear):
            packed.fill(layer.weight, layer.bias, slot.name)
        else:
            packed.in_proj.fill(layer.in_proj_weight, layer.in_proj_bias, f"{slot.name}.in_proj")
            packed.out_proj.fill(layer.out_proj.weight, layer.out_proj.bias, f"{slot.name}.out_proj")
        slot.layer = packed


def allocate(network: VisionLanguageModel, names: Iterable[str]) -> None:
    """Put empty packed layers where ``names`` of a file's tensors have them, for the file to be read into.

    A layer that cannot be packed stays, so that reading reports what does not fit.
    """
    packed = {name.removesuffix(_TILES) for name in names if name.endswith(_TILES)}
    for slot in list(_slots(network)):
        if {slot.name, f"{slot.name}.in_proj", f"{slot.name}.out_proj"} & packed and _can_pack(slot):
            slot.layer = _packed_layer(slot.layer)


def check(network: VisionLanguageModel) -> None:
    """Look at the scales of all packed layers, which have been read.

    Raises:
        CheckpointError: one that is not finite.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, PackedLinear) and not holds_numbers(layer.tiles.cpu().numpy(), BITS):
            raise CheckpointError(f"the model is damaged ({name} holds scales that are not finite); copy it again.")


def unpack(network: VisionLanguageModel, dtype: torch.dtype) -> None:
    """Put torch's own layers back, with the numbers that the packed ones stand for."""
    for slot in list(_slots(network)):
        layer = slot.layer
        if isinstance(layer, PackedLinear):
            slot.layer = _linear(layer, dtype)
        elif isinstance(layer, PackedAttention):
            slot.layer = _attention(layer, dtype)


def _linear(packed: PackedLinear, dtype: torch.dtype) -> nn.Linear:
    state = {"weight": packed.weight(dtype)}
    if packed.bias is not None:
        state["bias"] = packed.bias
    with SkipInit():
        layer = nn.Linear(packed.in_features, packed.out_features, bias=packed.bias is not None)
    layer.load_state_dict(state, assign=True)
    return layer


def _attention(packed: PackedAttention, dtype: torch.dtype) -> nn.MultiheadAttention:
    with SkipInit():
        layer = nn.MultiheadAttention(packed.out_proj.in_features, packed.heads, batch_first=True)
    state = {
        "in_proj_weight": packed.in_proj.weight(dtype),
        "in_proj_bias": packed.in_proj.bias,
        "out_proj.weight": packed.out_proj.weight(dtype),
        "out_proj.bias": packed.out_proj.bias,
    }
    layer.load_state_dict(state, assign=True)
    return layer
