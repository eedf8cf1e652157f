"""``LlavaForConditionalGeneration`` of transformers (the organization llava-hf and its like) as a whole model.

Both layouts are read: that of the hub (``language_model.model.…``) and the one of transformers 5
(``model.language_model.…``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

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
PROJECTORS = ("model.multi_modal_projector.", "multi_modal_projector.")
_DECODERS = ("language_model.model.", "model.language_model.")
_HEADS = ("language_model.lm_head.", "lm_head.")


class LlavaHFImporter(ModelImporter):
    """CLIP or SigLIP, the two-layer projector, and a Llama, Qwen2 or Qwen3; others of this layout are subclasses."""

    title = "llava-hf (LlavaForConditionalGeneration)"
    model_type: ClassVar[str] = "llava"
    defaults: ClassVar[dict[str, Any]] = {"vision": "clip_vision_model", "text": "llama", "tied": False}
    """What transformers assumes where a configuration is silent."""

    def detect(self, config: dict[str, Any]) -> bool:
        """By its ``model_type``."""
        return config.get("model_type") == self.model_type

    def plan(self, sources: Sources, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> ModelPlan:
        """Plan the four parts.

        Raises:
            CheckpointError: it asks for something that no model here has; named.
            ConfigError: sizes that no model can have.
        """
        folder = sources.folder
        path = folder / "config.json"
        text, notes = dict(config.get("text_config") or {}), list[str]()
        vision = {"model_type": self.defaults["vision"]} | dict(config.get("vision_config") or {})
        projector, pieces = self.projector(config, shapes, path)
        tower, side, tower_pieces = self.tower(config, vision, shapes, path)
        template = self.template(folder)
        tied = config.get("tie_word_embeddings", self.defaults["tied"])
        decoder = decoder_part(
            folder,
            {"model_type": self.defaults["text"]} | text,
            shapes,
            theirs=prefix(shapes, _DECODERS).__add__,
            head=prefix(shapes, _HEADS) + "weight",
            tied=bool(tied or text.get("tie_word_embeddings")),
        )
        notes += decoder.notes
        image = image_transform(processor_config(folder), side, notes)
        spec = ModelConfig(token_ids(sources, decoder.spec, template), tower, projector, image, template)
        unused = left_out(shapes, prefix(shapes, TOWERS), notes)
        pieces |= tower_pieces | decoder.pieces
        return ModelPlan(spec, pieces, unused, (*self.notes(spec), *notes))

    def projector(
        self, config: dict[str, Any], shapes: dict[str, Any], path: Path
    ) -> tuple[ProjectorConfig, dict[str, Piece]]:
        """The projector, and where its tensors come from."""
        if config.get("projector_hidden_act", "gelu") != "gelu" or not config.get("multimodal_projector_bias", True):
            raise CheckpointError(f"{path} asks for a projector other than two layers with biases and GELU.")
        names = [f"linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")]
        return ProjectorConfig(), {f"projector.{name}": Piece((prefix(shapes, PROJECTORS) + name,)) for name in names}

    def tower(
        self, config: dict[str, Any], vision: dict[str, Any], shapes: dict[str, Any], path: Path
    ) -> tuple[TowerConfig, int, dict[str, Piece]]:
        """The tower, the side of its pictures, and where its tensors come from."""
        kind, vit, side = vision_config(vision, str(path))
        layer, select = _features(config, kind, vit.layers, str(path))
        tower = TowerConfig(kind, feature_layer=layer, select=select, vit=vit)
        return tower, side, tower_pieces(tower, side, prefix(shapes, TOWERS).__add__)

    def template(self, folder: Path) -> str:
        """The conversation template of ``folder``."""
        return chat_template(folder)

    def notes(self, spec: ModelConfig) -> tuple[str, ...]:
        """What of pictures is otherwise than there, a sentence each."""
        return ()


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


def prefix(shapes: dict[str, Any], prefixes: tuple[str, ...]) -> str:
    """The first of ``prefixes`` with which a name begins; the last where there is none, which is then missed."""
    return next((each for each in prefixes if any(name.startswith(each) for name in shapes)), prefixes[-1])
