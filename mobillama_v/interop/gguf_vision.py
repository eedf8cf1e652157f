"""Image tower and projector as the second GGUF file of a model, which llama.cpp calls its ``mmproj``.

Keys and tensor names are those of llama.cpp's ``tools/mtmd/clip.cpp``, projector ``mlp``. It runs the blocks up to a
``feature_layer``, then the last norm where the file has one, and has no tokens but those of the patches. GELU is its
tanh approximation there. A picture is resized as Pillow does and padded to a square in LLaVA's color.

Matrices are fp32 or fp16; vectors, positions and the patches' kernel are fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillama_v.config import ModelConfig
from mobillama_v.errors import ConfigError
from mobillama_v.images import ImageTransform
from mobillama_v.interop.gguf import library, write_all
from mobillama_v.interop.llava_hf_export import plain_tower
from mobillama_v.interop.vit_names import EPS, tower_pieces
from mobillama_v.model.vision.plain_vit import CLIP

if TYPE_CHECKING:
    from torch import Tensor

    from mobillama_v.model.vision import TowerConfig
    from mobillama_v.model.vlm import VisionLanguageModel

_PREFIX = "vision_tower.vision_model."
_FULL = ("v.patch_embd.weight", "v.position_embd.weight")
_PADDING = ImageTransform(1)
_CLASS_LAST = (
    "llama.cpp builds since May 2025 put a CLIP tower's class token in the wrong place (its pull request 25844): they "
    "answer pictures otherwise until that is mended."
)


def mmproj_path(path: Path) -> Path:
    """Where the second file of ``path`` stands."""
    return path.with_name(f"mmproj-{path.name}")


def write_mmproj(path: Path, network: VisionLanguageModel, *, kind: str, name: str) -> tuple[str, ...]:
    """Write tower and projector of a model.

    Args:
        path: of the new file.
        network: on the CPU.
        kind: ``f32`` or ``f16``, of the matrices.
        name: what the file says that it is.

    Returns:
        In what llama.cpp's answers to pictures may differ, a sentence each.

    Raises:
        ConfigError: llama.cpp has no such tower or projector, with the reason; nothing was written.
        MissingExtraError: the package gguf is not installed.
    """
    tower = plain_tower(network)
    spec, vit = network.spec, tower.vit
    assert vit is not None
    blocks = vit.layers + 1 + tower.feature_layer
    for refused, reason in (
        (spec.projector.type != "mlp2x_gelu", f"the projector {spec.projector.type}"),
        (tower.select != "patch", "tokens beside those of the patches"),
        (vit.mlp == vit.width, "a tower as wide within its blocks as outside"),  # taken for one of swapped matrices
    ):
        if refused:
            raise ConfigError(f"llama.cpp does not have {reason}.")
    gguf = library()
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if kind == "f32" else gguf.LlamaFileType.MOSTLY_F16)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_use_gelu(vit.activation != "quick_gelu")
    writer.add_vision_image_size(spec.image.size)
    writer.add_vision_patch_size(vit.patch)
    writer.add_vision_embedding_length(vit.width)
    writer.add_vision_feed_forward_length(vit.mlp)
    writer.add_vision_projection_dim(spec.decoder.hidden_size)
    writer.add_vision_block_count(blocks)
    writer.add_array("clip.vision.feature_layer", [blocks])  # else it leaves out one block more
    writer.add_vision_head_count(vit.heads)
    writer.add_vision_attention_layernorm_eps(EPS[tower.model])
    writer.add_vision_image_mean(list(spec.image.mean))
    writer.add_vision_image_std(list(spec.image.std))
    for key, tensor in _tensors(network, tower, blocks, gguf).items():
        half = kind == "f16" and tensor.dim() > 1 and key not in _FULL
        writer.add_tensor(key, (tensor.half() if half else tensor.float()).contiguous().numpy())
    write_all(writer)
    return (_CLASS_LAST,) * (tower.model == CLIP) + _pixel_notes(spec)


def _tensors(network: VisionLanguageModel, tower: TowerConfig, blocks: int, gguf: Any) -> dict[str, Tensor]:
    """The tensors by llama.cpp's names."""
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, blocks)
    found = {
        f"mm.{index}.{part}": state[f"projector.linear_{number}.{part}"]
        for index, number in ((0, 1), (2, 2))
        for part in ("weight", "bias")
    }
    for ours, piece in tower_pieces(tower, network.spec.image.size, _PREFIX.__add__).items():
        for theirs, tensor in zip(piece.sources, state[ours].chunk(len(piece.sources)), strict=True):
            key = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
            if key is None or (".post_layernorm." in theirs and not tower.final_norm):
                continue  # a block that no feature comes from, or a norm that is not applied
            found[key] = tensor.flatten(0, -2) if key == _FULL[1] else tensor
    return found


def _pixel_notes(spec: ModelConfig) -> tuple[str, ...]:
    image = spec.image
    if image.mode != "pad" or image.resample != _PADDING.resample or image.background != _PADDING.background:
        return ("llama.cpp pads pictures to a square in LLaVA's color, bicubic; this model does otherwise.",)
    return ()
