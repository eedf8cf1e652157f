"""Idefics3 and SmolVLM of transformers (arXiv 2408.12637) as a whole model: SigLIP with its last norm, pixel shuffle
with one linear layer, and a Llama.

Pictures are one tile, which is ``do_image_splitting=False`` of their processor; more tiles are not made here.
"""

from __future__ import annotations

from typing import Any

from mobillama_v.config import ModelConfig, ProjectorConfig
from mobillama_v.interop.formats import ModelImporter, ModelPlan, Piece, Sources
from mobillama_v.interop.llava_hf import left_out
from mobillama_v.interop.transformers_parts import decoder_part, image_transform, processor_config, token_ids
from mobillama_v.interop.vit_names import tower_pieces, vision_config
from mobillama_v.model.vision import TowerConfig

_TYPES = ("idefics3", "smolvlm")
_TOWER, _DECODER, _TEMPLATE = "model.vision_model.", "model.text_model.", "smolvlm"


class Idefics3Importer(ModelImporter):
    """The 256M, 500M and 2.2B of SmolVLM and SmolVLM2, and Idefics3 itself."""

    title = "Idefics3 and SmolVLM"

    def detect(self, config: dict[str, Any]) -> bool:
        """By its ``model_type``."""
        return config.get("model_type") in _TYPES

    def plan(self, sources: Sources, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> ModelPlan:
        """Plan the four parts.

        Raises:
            CheckpointError: it asks for something that no model here has; named.
            ConfigError: sizes that no model can have.
        """
        folder = sources.folder
        text, vision = dict(config.get("text_config") or {}), dict(config.get("vision_config") or {})
        kind, vit, side = vision_config({"model_type": "idefics3_vision"} | vision, str(folder / "config.json"))
        tower = TowerConfig(kind, feature_layer=-1, final_norm=True, vit=vit)
        decoder = decoder_part(
            folder,
            {"model_type": "llama"} | text,
            shapes,
            theirs=_DECODER.__add__,
            head="lm_head.weight",
            tied=bool(config.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        )
        notes = ["pictures are one tile, as with do_image_splitting=False in transformers", *decoder.notes]
        processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 1} | processor_config(folder)
        image = image_transform(processor | {"do_pad": False, "do_center_crop": False}, side, notes)
        spec = ModelConfig(
            token_ids(sources, decoder.spec, _TEMPLATE),
            tower,
            ProjectorConfig("pixel_shuffle_linear", int(config.get("scale_factor", 2))),
            image,
            _TEMPLATE,
        )
        pieces = {"projector.linear_1.weight": Piece(("model.connector.modality_projection.proj.weight",))}
        unused = left_out(shapes, _TOWER, notes)
        pieces |= tower_pieces(tower, side, _TOWER.__add__) | decoder.pieces
        return ModelPlan(spec, pieces, unused, tuple(notes))
