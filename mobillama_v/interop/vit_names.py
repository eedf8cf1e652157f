"""The image towers of transformers, CLIP's and SigLIP's, in the names of ours (open_clip's and timm's)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mobillama_v.errors import CheckpointError
from mobillama_v.interop.formats import Piece
from mobillama_v.model.vision import TowerConfig, ViTShape
from mobillama_v.model.vision.plain_vit import CLIP, SIGLIP

ACTIVATIONS: dict[str, Any] = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
"""transformers' names, and ours."""
_SHAPE = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"} | {
    **{"mlp": "intermediate_size", "patch": "patch_size"}
}
_TYPES = {
    "clip_vision_model": CLIP,
    "siglip_vision_model": SIGLIP,
    "idefics3_vision": SIGLIP,
    "smolvlm_vision": SIGLIP,
}
EPS = {CLIP: 1e-5, SIGLIP: 1e-6}
# What transformers assumes where a configuration is silent.
_DEFAULTS: dict[str, dict[str, Any]] = {
    CLIP: dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    | dict(image_size=224, patch_size=32, hidden_act="quick_gelu"),
    SIGLIP: dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    | dict(image_size=224, patch_size=16, hidden_act="gelu_pytorch_tanh"),
}
_BLOCK = {
    CLIP: {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    | {"self_attn.out_proj": "attn.out_proj"},
    SIGLIP: {"layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    | {"self_attn.out_proj": "attn.proj"},
}
_ENDS = {
    CLIP: {
        "embeddings.class_embedding": "class_embedding",
        "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
    }
    | {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post"))
        for kind in ("weight", "bias")
    },
    SIGLIP: {
        "embeddings.patch_embedding.weight": "trunk.patch_embed.proj.weight",
        "embeddings.patch_embedding.bias": "trunk.patch_embed.proj.bias",
        "embeddings.position_embedding.weight": "trunk.pos_embed",
        "post_layernorm.weight": "trunk.norm.weight",
        "post_layernorm.bias": "trunk.norm.bias",
    },
}


def vision_config(config: dict[str, Any], where: str) -> tuple[str, ViTShape, int]:
    """The kind, shape and image side of the tower in a ``vision_config``.

    Raises:
        CheckpointError: it is none that can be imported.
    """
    kind = _TYPES.get(str(config.get("model_type")))
    if kind is None:
        known = ", ".join(_TYPES)
        raise CheckpointError(f"{where} has a tower of type {config.get('model_type')!r}; known are {known}.")
    values = _DEFAULTS[kind] | config
    if values.get("layer_norm_eps", EPS[kind]) != EPS[kind] or values["hidden_act"] not in ACTIVATIONS:
        raise CheckpointError(
            f"{where} has a tower with layer_norm_eps {values.get('layer_norm_eps')!r} and hidden_act "
            f"{values['hidden_act']!r}, which this project's {kind} does not have."
        )
    options: dict[str, Any] = {ours: values[theirs] for ours, theirs in _SHAPE.items()}
    shape = ViTShape(**options, activation=ACTIVATIONS[values["hidden_act"]])
    return kind, shape, values["image_size"]


def hugging_face_config(kind: str, vit: ViTShape, side: int) -> dict[str, Any]:
    """The ``vision_config`` of such a tower."""
    names = {theirs: ours for ours, theirs in _SHAPE.items()}
    config = {theirs: getattr(vit, ours) for theirs, ours in names.items()}
    activation = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == vit.activation)
    model_type = "clip_vision_model" if kind == CLIP else "siglip_vision_model"
    config |= {"model_type": model_type, "hidden_act": activation, "image_size": side, "layer_norm_eps": EPS[kind]}
    return config if kind == CLIP else config | {"vision_use_head": False}


def tower_pieces(tower: TowerConfig, image_size: int, theirs: Callable[[str], str]) -> dict[str, Piece]:
    """Where the tensors of ``vision_tower.`` come from; ``theirs`` makes the full name of a name in the tower."""
    assert tower.vit is not None
    kind, vit = tower.model, tower.vit
    patches = (image_size // vit.patch) ** 2
    pieces = {ours: Piece((theirs(name),)) for name, ours in _ENDS[kind].items()}
    if kind == SIGLIP:
        pieces["trunk.pos_embed"] = Piece((theirs("embeddings.position_embedding.weight"),), (1, patches, vit.width))
    blocks, joined = ("transformer.resblocks", "attn.in_proj_") if kind == CLIP else ("trunk.blocks", "attn.qkv.")
    for i in range(vit.layers):
        layer, block = f"encoder.layers.{i}", f"{blocks}.{i}"
        for part in ("weight", "bias"):
            qkv = tuple(theirs(f"{layer}.self_attn.{each}_proj.{part}") for each in "qkv")
            pieces[f"{block}.{joined}{part}"] = Piece(qkv)
            for name, ours in _BLOCK[kind].items():
                pieces[f"{block}.{ours}.{part}"] = Piece((theirs(f"{layer}.{name}.{part}"),))
    return {f"vision_tower.visual.{name}": piece for name, piece in pieces.items()}
