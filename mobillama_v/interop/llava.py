"""Checkpoints of the LLaVA repository itself (github.com/haotian-liu/LLaVA), with which MobiLlama-V was trained too.

Three layouts are read:

- a whole model: a Llama under its own names, with ``model.mm_projector.*``;
- LoRA: ``adapter_config.json``, ``adapter_model.*`` and ``non_lora_trainables.bin`` beside the base, which is given;
- stage 1: ``mm_projector.bin`` alone beside the base.

The tower lies in the checkpoint, or else is given as a folder of transformers' CLIP or SigLIP.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mobillama_v.checkpoint import weight_files
from mobillama_v.config import ModelConfig, ProjectorConfig
from mobillama_v.errors import CheckpointError
from mobillama_v.images import ImageTransform
from mobillama_v.interop.formats import ModelImporter, ModelPlan, Piece, Sources, read_config
from mobillama_v.interop.llava_hf import left_out
from mobillama_v.interop.tensor_files import TensorFiles
from mobillama_v.interop.transformers_parts import decoder_part, processor_config, token_ids
from mobillama_v.interop.vit_names import tower_pieces, vision_config
from mobillama_v.model.vision import TowerConfig
from mobillama_v.model.vision.plain_vit import CLIP

ADAPTER, REST, STAGE_1 = "adapter_model", "non_lora_trainables.bin", "mm_projector.bin"
_TOWER, _PROJECTOR = "model.vision_tower.vision_tower.vision_model.", "model.mm_projector."
_PEFT = "base_model.model."
_PROJECTORS = {"linear": ("linear", {"": 1}), "mlp2x_gelu": ("mlp2x_gelu", {"0.": 1, "2.": 2})}
"""Their names: our type, and of each of their layers the number of ours."""


class LlavaImporter(ModelImporter):
    """A Llama with a LLaVA projector, trained whole or by LoRA."""

    title = "LLaVA (mm_projector)"

    def detect(self, config: dict[str, Any]) -> bool:
        """By what its ``config.json`` says of the tower."""
        return "mm_vision_tower" in config

    def files(self, sources: Sources) -> TensorFiles:
        """The tensors of checkpoint, base and tower, under the names of a whole model.

        Raises:
            CheckpointError: a part that this layout needs was not given.
        """
        folder, found = sources.folder, TensorFiles()
        adapters = sorted(folder.glob(f"{ADAPTER}.*"))
        if adapters or (folder / STAGE_1).is_file():
            if sources.base is None:
                raise CheckpointError(f"{folder} holds only what was trained; give the language model with --base.")
            found.add(weight_files(sources.base))
            rest = folder / (REST if adapters else STAGE_1)
            found.add([*adapters[:1], *([rest] if rest.is_file() else [])], lambda name: name.removeprefix(_PEFT))
        else:
            found.add(weight_files(folder))
        if not any(name.startswith(_TOWER) for name in found.shapes):
            if sources.tower is None:
                named = read_config(folder)["mm_vision_tower"]
                raise CheckpointError(f"{folder} does not hold its image tower; give {named} with --tower.")
            found.add(weight_files(sources.tower), _tower_name)
        return found

    def plan(self, sources: Sources, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> ModelPlan:
        """Plan the four parts.

        Raises:
            CheckpointError: it asks for something that no model here has; named.
            ConfigError: sizes that no model can have.
        """
        folder, notes = sources.folder, list[str]()
        path = folder / "config.json"
        projector = _PROJECTORS.get(config.get("mm_projector_type", "linear"))
        select = {"patch": "patch", "cls_patch": "cls_patch"}.get(config.get("mm_vision_select_feature", "patch"))
        if projector is None or select is None or config.get("mm_use_im_start_end"):
            raise CheckpointError(f"{path} asks for a projector or features that are not LLaVA-1.5's.")
        kind, vit, side = vision_config(_vision(sources), str(sources.tower or path))
        layer = config.get("mm_vision_select_layer", -2)
        if not isinstance(layer, int) or not -vit.layers <= layer < 0:
            raise CheckpointError(f"{path} takes features of the layer {layer!r}, which the tower does not have.")
        tower = TowerConfig(kind, feature_layer=layer, select="patch" if kind != CLIP else select, vit=vit)  # type: ignore[arg-type]
        decoder = decoder_part(
            folder,
            config | {"model_type": "qwen2" if "qwen" in str(config.get("model_type")) else "llama"},
            {name: shape for name, shape in shapes.items() if ".lora_" not in name},
            theirs="model.".__add__,
            head="lm_head.weight",
            tied=bool(config.get("tie_word_embeddings")),
        )
        notes += decoder.notes
        pieces = decoder.pieces | tower_pieces(tower, side, _TOWER.__add__)
        for theirs, number in projector[1].items():
            for part in ("weight", "bias"):
                pieces[f"projector.linear_{number}.{part}"] = Piece((f"{_PROJECTOR}{theirs}{part}",))
        pieces = _with_lora(pieces, shapes, folder, notes)
        unused = left_out(shapes, _TOWER, notes)
        image = _image(sources, config, side)
        spec = ModelConfig(token_ids(sources, decoder.spec, "v1"), tower, ProjectorConfig(projector[0]), image, "v1")
        return ModelPlan(spec, pieces, unused, tuple(notes))


def _tower_name(name: str) -> str | None:
    """A tensor of transformers' CLIP or SigLIP in a whole LLaVA; None for those of the text tower."""
    if name.startswith(("text_model.", "text_projection.", "visual_projection.", "logit_")):
        return None
    return _TOWER + name.removeprefix("vision_model.")


def _vision(sources: Sources) -> dict[str, Any]:
    if sources.tower is None:
        raise CheckpointError(f"{sources.folder} does not say its tower's shape; give the tower's folder with --tower.")
    config = read_config(sources.tower)
    own = config.get("vision_config")
    if not isinstance(own, dict):
        return config
    return {"model_type": f"{config.get('model_type')}_vision_model"} | own


def _image(sources: Sources, config: dict[str, Any], side: int) -> ImageTransform:
    """LLaVA pads a picture, or lets the tower's own processor cut it."""
    mode = "pad" if config.get("image_aspect_ratio") == "pad" else "crop"
    processor = processor_config(sources.tower) if sources.tower else {}
    options = {ours: tuple(processor[f"image_{ours}"]) for ours in ("mean", "std") if f"image_{ours}" in processor}
    if "mean" in options and mode == "pad":
        options["background"] = tuple(int(255 * each) for each in options["mean"])
    return ImageTransform(side, mode, **options)  # type: ignore[arg-type]


def _with_lora(pieces: dict[str, Piece], shapes: Iterable[str], folder: Path, notes: list[str]) -> dict[str, Piece]:
    """The pieces, with the product of two low-rank matrices added where an adapter has them."""
    if not any(".lora_" in name for name in shapes):
        return pieces
    adapter = read_config(folder, "adapter_config.json")
    if any(adapter.get(each) for each in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern")):
        raise CheckpointError(f"{folder} has an adapter other than plain LoRA; merge it in its own program first.")
    scale, found = adapter["lora_alpha"] / adapter["r"], 0
    out = {}
    for ours, piece in pieces.items():
        stem = piece.sources[0].removesuffix(".weight")
        pair = f"{stem}.lora_B.weight", f"{stem}.lora_A.weight"
        if pair[0] in shapes and pair[1] in shapes:
            piece, found = Piece(piece.sources, piece.view, (*pair, scale)), found + 1
        out[ours] = piece
    notes.append(f"{found} matrices have an adapter's product added, times {scale:g}")
    return out
