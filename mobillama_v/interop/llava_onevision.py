"""``LlavaOnevisionForConditionalGeneration`` of transformers (arXiv 2408.03326) as a whole model.

Its pictures become one tile and a learned token behind it, as transformers makes several pictures of one conversation.
Of a lone picture it makes more tiles, which are not made here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from mobillama_v.config import ModelConfig, ProjectorConfig
from mobillama_v.interop.formats import Piece
from mobillama_v.interop.llava_hf import LlavaHFImporter, prefix

_NEWLINES = ("model.image_newline", "image_newline")


class LlavaOnevisionImporter(LlavaHFImporter):
    """SigLIP, the two-layer projector with its last token, and a Qwen2."""

    title = "LLaVA-OneVision"
    model_type = "llava_onevision"
    defaults: ClassVar[dict[str, Any]] = {"vision": "siglip_vision_model", "text": "qwen2", "tied": False}

    def projector(
        self, config: dict[str, Any], shapes: dict[str, Any], path: Path
    ) -> tuple[ProjectorConfig, dict[str, Piece]]:
        """The projector and its last token."""
        pieces = super().projector(config, shapes, path)[1]
        newline = prefix(shapes, _NEWLINES)
        pieces["projector.newline.weight"] = Piece((newline,), (1, *shapes.get(newline, ())))
        return ProjectorConfig("mlp2x_gelu_newline"), pieces

    def tower(
        self, config: dict[str, Any], vision: dict[str, Any], shapes: dict[str, Any], path: Path
    ) -> tuple[Any, int, dict[str, Piece]]:
        """As its base, with other defaults."""
        silent = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full"}
        return super().tower(silent | config, vision, shapes, path)

    def notes(self, spec: ModelConfig) -> tuple[str, ...]:
        """That pictures are one tile."""
        tokens = spec.tokens_per_image()
        return (f"a picture is one tile of {tokens} tokens, as of several pictures there; of a lone one it makes more",)
