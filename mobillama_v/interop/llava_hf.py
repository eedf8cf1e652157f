"""``LlavaForConditionalGeneration`` of transformers (the organization llava-hf and its like) as a whole model.

Both layouts are read: that of the hub (``language_model.model.…``) and the one of transformers 5
(``model.language_model.…``).
"""

from __future__ import annotations

from typing import Any

from mobillama_v.config import ModelConfig, ProjectorConfig
from mobillama_v.errors import CheckpointError
from mobillama_v.interop.formats import ModelImporter, ModelPlan, Piece, Sources
from mobillama_v.interop.llama import chat_template
from mobillama_v.interop.transformers_parts import decoder_part, image_transform, processor_config, token_ids
from mobillama_v.interop.vit_names import tower_pieces, vision_config
from mobillama_v.model.vision import TowerConfig
from mobillama_v.model.vision.plain_vit import CLIP

# The prefixes of tower, projector, decoder and head, the longer ones first.
TOWERS = ("model.vision_tower.vision_model.", "vision_tower.vision_model.", "model.vision_tower.", "vision_tower.")
_PROJECTORS = ("model.multi_modal_projector.", "multi_modal_projector.")
_DECODERS = ("language_model.model.", "model.language_model.")
_HEADS = ("language_model.lm_head.", "lm_head.")


class LlavaHFImporter(ModelImporter):
    """CLIP or SigLIP, the two-layer projector, and a Llama or Qwen2."""

    title = "llava-hf (LlavaForConditionalGeneration)"

    def detect(self, config: dict[str, Any]) -> bool:
        """By its ``model_type``."""
        return config.get("model_type") == "llava"

    def plan(self, sources: Sources, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> ModelPlan:
        """Plan the four parts.

        Raises:
            CheckpointError: it asks for something that no model here has; named.
            ConfigError: sizes that no model can have.
        """
        folder = sources.folder
        path = folder / "config.json"
        text, vision = dict(config.get("text_config") or {}), dict(config.get("vision_config") or {})
        if config.get("projector_hidden_act", "gelu") != "gelu" or not config.get("multimodal_projector_bias", True):
            raise CheckpointError(f"{path} asks for a projector other than two layers with biases and GELU.")
        kind, vit, side = vision_config({"model_type": "clip_vision_model"} | vision, str(path))
        layer, select = _features(config, kind, vit.layers, str(path))
        tower = TowerConfig(kind, feature_layer=layer, select=select, vit=vit)
        template = chat_template(folder)
        head = _prefix(shapes, _HEADS) + "weight"
        decoder = decoder_part(
            folder,
            {"model_type": "llama"} | text,
            shapes,
            theirs=_name(shapes, _DECODERS),
            head=head,
            tied=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        )
        notes = list(decoder.notes)
        image = image_transform(processor_config(folder), side, notes)
        spec = ModelConfig(token_ids(sources, decoder.spec, template), tower, ProjectorConfig(), image, template)
        projector = _prefix(shapes, _PROJECTORS)
        names = [f"linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")]
        pieces = {f"projector.{name}": Piece((projector + name,)) for name in names}
        unused = left_out(shapes, _prefix(shapes, TOWERS), notes)
        pieces |= tower_pieces(tower, side, _name(shapes, TOWERS)) | decoder.pieces
        return ModelPlan(spec, pieces, unused, tuple(notes))


def _features(config: dict[str, Any], kind: str, layers: int, where: str) -> tuple[int, Any]:
    """The layer whose features are used, counted from the end, and which of them."""
    layer, strategy = config.get("vision_feature_layer", -2), config.get("vision_feature_select_strategy", "default")
    if not isinstance(layer, int) or not -layers <= (layer if layer < 0 else layer - layers - 1) < 0:
        raise CheckpointError(f"{where} takes features of the layers {layer!r}; only one block's output can be taken.")
    if strategy not in ("default", "full") or (strategy == "default" and kind != CLIP):
        raise CheckpointError(
            f"{where} selects features by {strategy!r}, which drops the first patch of a tower without a class token."
            if strategy == "default"
            else f"{where} selects features by {strategy!r}; only default and full are known."
        )
    chosen = "cls_patch" if strategy == "full" and kind == CLIP else "patch"
    return (layer if layer < 0 else layer - layers - 1), chosen


def left_out(shapes: dict[str, Any], tower: str, notes: list[str]) -> frozenset[str]:
    """Tensors that no answer needs: a SigLIP's pooling head, and buffers that are computed. Each kind makes a note."""
    pooling = {name for name in shapes if name.startswith(f"{tower}head.")}
    buffers = {name for name in shapes if name.endswith((".rotary_emb.inv_freq", ".embeddings.position_ids"))}
    if pooling:
        notes.append(f"{len(pooling)} tensors of the tower's pooling head are left out; language models do not use it")
    if buffers:
        notes.append(f"{len(buffers)} buffers are left out; they are computed")
    return frozenset(pooling | buffers)


def _prefix(shapes: dict[str, Any], prefixes: tuple[str, ...]) -> str:
    """The first of ``prefixes`` with which a name begins; the last where there is none, which is then missed."""
    return next((each for each in prefixes if any(name.startswith(each) for name in shapes)), prefixes[-1])


def _name(shapes: dict[str, Any], prefixes: tuple[str, ...]) -> Any:
    return _prefix(shapes, prefixes).__add__
