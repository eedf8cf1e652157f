"""Vision transformers by their shape: CLIP's, SigLIP's and InternVL's, for models that other programs have trained.

A tower ``clip-vit``, ``siglip-vit`` or ``intern-vit`` takes its shape from ``TowerConfig.vit``, so that no list of
models must know it.
Modules and names are those of open_clip (CLIP, arXiv 2103.00020) and timm (SigLIP, arXiv 2303.15343; InternVL,
arXiv 2404.16821, which scales what each block adds), without their heads, which no language model reads.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from mobillama_v.errors import ConfigError
from mobillama_v.model.vision.registry import PlainViT, TowerConfig, TowerKind, TowerShape, ViTShape, register_tower

if TYPE_CHECKING:
    from torch import nn

CLIP, SIGLIP, INTERN = "clip-vit", "siglip-vit", "intern-vit"


def shape_of(spec: TowerConfig) -> ViTShape:
    """The shape in ``spec``.

    Raises:
        ConfigError: there is none.
    """
    if spec.vit is None:
        raise ConfigError(f"tower {spec.model} needs its shape; give the tower a mapping 'vit'.")
    return spec.vit


def _activation(name: str) -> Any:
    from open_clip.transformer import QuickGELU
    from torch import nn

    return {"quick_gelu": QuickGELU, "gelu": nn.GELU, "gelu_tanh": partial(nn.GELU, approximate="tanh")}[name]


class _PlainViT(TowerKind):
    prefix: int
    """Tokens before the patches."""
    extra: int
    """Parameters beside those of blocks, patch embedding and final norm, in multiples of the width."""
    scales = 0
    """Vectors by which a block scales what it adds."""

    def shape(self, spec: TowerConfig, image_size: int) -> TowerShape:
        vit = shape_of(spec)
        patches = (image_size // vit.patch) ** 2
        block = (4 * (vit.width + 1) + 2 * vit.mlp + 5 + self.scales) * vit.width + vit.mlp
        ends = (3 * vit.patch**2 + patches + 2 + self.extra) * vit.width
        parameters = vit.layers * block + ends
        return TowerShape(vit.width, self.prefix, patches, depth=vit.layers, parameters=parameters)

    def build(self, spec: TowerConfig, *, image_size: int, pretrained: bool) -> Any:
        import torch

        from mobillama_v.model.vision.image_tower import ImageTower

        with torch.device(torch.empty(0).device):  # get_default_device() of torch 2.6 sees no `with torch.device`
            return ImageTower(self.visual(shape_of(spec), image_size), spec)

    @abstractmethod
    def visual(self, vit: ViTShape, image_size: int) -> nn.Module:
        """The module in torch."""


@register_tower(CLIP)
class _ClipViT(_PlainViT):
    prefix, extra = 1, 4  # the class token and its position, and the norm before the blocks

    def plain(self, spec: TowerConfig) -> PlainViT:
        return PlainViT(shape_of(spec))

    def visual(self, vit: ViTShape, image_size: int) -> nn.Module:
        from open_clip.transformer import VisionTransformer

        made = VisionTransformer(
            image_size=image_size,
            patch_size=vit.patch,
            width=vit.width,
            layers=vit.layers,
            heads=vit.heads,
            mlp_ratio=(vit.mlp + 0.5) / vit.width,  # which it multiplies with the width, and cuts to a whole number
            output_dim=1,
            act_layer=_activation(vit.activation),
        )
        made.proj = None
        return made


class _TimmViT(_PlainViT):
    options: ClassVar[dict[str, Any]]
    """How timm's model differs from a plain one."""

    def visual(self, vit: ViTShape, image_size: int) -> nn.Module:
        from open_clip.timm_model import TimmModel
        from timm.models.vision_transformer import VisionTransformer
        from torch import nn

        class Visual(nn.Module):
            """open_clip's interface over timm's model."""

            def __init__(self, trunk: nn.Module) -> None:
                super().__init__()
                self.trunk = trunk

            forward_intermediates = TimmModel.forward_intermediates

        trunk = VisionTransformer(
            img_size=image_size,
            patch_size=vit.patch,
            embed_dim=vit.width,
            depth=vit.layers,
            num_heads=vit.heads,
            mlp_ratio=(vit.mlp + 0.5) / vit.width,
            num_classes=0,
            global_pool="",
            act_layer=_activation(vit.activation),
            **self.options,
        )
        return Visual(trunk)


@register_tower(SIGLIP)
class _SiglipViT(_TimmViT):
    prefix, extra = 0, 1  # the bias of the patch embedding
    options: ClassVar[dict[str, Any]] = {"class_token": False}

    def plain(self, spec: TowerConfig) -> PlainViT:
        return PlainViT(shape_of(spec), timm=True)


@register_tower(INTERN)
class _InternViT(_TimmViT):
    prefix, extra, scales = 1, 1, 2  # class token, its position and the patch embedding's bias; no final norm
    options: ClassVar[dict[str, Any]] = {"init_values": 0.1, "final_norm": False}
