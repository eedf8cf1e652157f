"""nanoVLM (github.com/huggingface/nanoVLM) as a whole model: SigLIP with its last norm, pixel shuffle with one linear
layer, and a Llama, which is Idefics3's arithmetic under other names.

The first version asks ``Question: … Answer:``, later ones have a chat template. The latest split pictures: here, one is
a single tile, which is what they make of a small one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from mobillama_v.checkpoint import weight_files
from mobillama_v.errors import CheckpointError
from mobillama_v.images import ImageTransform
from mobillama_v.interop.formats import ModelImporter, ModelPlan, Piece, Sources
from mobillama_v.interop.idefics3 import Idefics3Importer
from mobillama_v.interop.tensor_files import TensorFiles
from mobillama_v.interop.transformers_parts import token_ids

_EMBEDDINGS, _HEAD = "decoder.token_embedding.weight", "decoder.head.weight"
_TEXT, _VISION = "model.text_model.", "model.vision_model."
_NAMES = {
    r"MP\.": "model.connector.modality_projection.",
    r"decoder\.token_embedding\.": f"{_TEXT}embed_tokens.",
    r"decoder\.head\.": "lm_head.",
    r"decoder\.rotary_embd\.": f"{_TEXT}rotary_emb.",
    r"decoder\.norm\.": f"{_TEXT}norm.",
    r"decoder\.blocks\.(\d+)\.norm1\.": rf"{_TEXT}layers.\1.input_layernorm.",
    r"decoder\.blocks\.(\d+)\.norm2\.": rf"{_TEXT}layers.\1.post_attention_layernorm.",
    r"decoder\.blocks\.(\d+)\.attn\.out_proj\.": rf"{_TEXT}layers.\1.self_attn.o_proj.",
    r"decoder\.blocks\.(\d+)\.attn\.": rf"{_TEXT}layers.\1.self_attn.",
    r"decoder\.blocks\.(\d+)\.mlp\.": rf"{_TEXT}layers.\1.mlp.",
    r"vision_encoder\.patch_embedding\.conv\.": f"{_VISION}embeddings.patch_embedding.",
    r"vision_encoder\.patch_embedding\.position_embedding": f"{_VISION}embeddings.position_embedding.weight",
    r"vision_encoder\.layer_norm\.": f"{_VISION}post_layernorm.",
    r"vision_encoder\.blocks\.(\d+)\.ln([12])\.": rf"{_VISION}encoder.layers.\1.layer_norm\2.",
    r"vision_encoder\.blocks\.(\d+)\.attn\.": rf"{_VISION}encoder.layers.\1.self_attn.",
    r"vision_encoder\.blocks\.(\d+)\.mlp\.": rf"{_VISION}encoder.layers.\1.mlp.",
}
"""Of each tensor, the beginning of its name in nanoVLM and in Idefics3."""
_TEXT_CONFIG = {"num_attention_heads": "n_heads", "num_key_value_heads": "n_kv_heads", "rms_norm_eps": "rms_eps"} | {
    **{"rope_theta": "re_base", "max_position_embeddings": "max_position_embeddings", "hidden_size": "hidden_dim"},
    **{"intermediate_size": "inter_dim", "vocab_size": "vocab_size", "num_hidden_layers": "n_blocks"},
}
_VISION_CONFIG = {"hidden_size": "hidden_dim", "intermediate_size": "inter_dim", "patch_size": "patch_size"} | {
    **{"image_size": "img_size", "num_attention_heads": "n_heads", "num_hidden_layers": "n_blocks"},
    **{"layer_norm_eps": "ln_eps"},
}
_REFUSED = {"vit_cls_flag": False, "lm_attn_scaling": 1.0, "lm_use_tokens": False}
"""What no model here has, unless it is the value given."""


class NanoVLMImporter(ModelImporter):
    """Checkpoints of ``lusxvr/nanoVLM-222M`` and its like."""

    title = "nanoVLM"

    def detect(self, config: dict[str, Any]) -> bool:
        """By the names in its configuration, which has no ``model_type``."""
        return {"vit_hidden_dim", "lm_hidden_dim"} <= config.keys()

    def files(self, sources: Sources) -> TensorFiles:
        """The tensors, under Idefics3's names; of a tied head, a file holds it under one of its two names."""
        shapes = super().files(sources).shapes
        tied = _HEAD in shapes and _EMBEDDINGS not in shapes
        files = TensorFiles()
        files.add(weight_files(sources.folder), lambda name: _renamed(_EMBEDDINGS if tied and name == _HEAD else name))
        return files

    def plan(self, sources: Sources, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> ModelPlan:
        """Plan the four parts.

        Raises:
            CheckpointError: it asks for something that no model here has, or for another tokenizer; named.
            ConfigError: sizes that no model can have.
        """
        from tokenizers import Tokenizer

        path = sources.folder / "config.json"
        if wrong := [name for name, fine in _REFUSED.items() if config.get(name, fine) != fine]:
            asked = ", ".join(f"{name} {config[name]!r}" for name in wrong)
            raise CheckpointError(f"{path} asks for {asked}, which no model here does.")
        tiles = config.get("max_img_size") is not None
        extra = dict(config.get("vlm_extra_tokens") or {}) if tiles else {}
        if tiles and "global_image_token" not in extra:
            raise CheckpointError(f"{path} splits pictures and has no global_image_token, which no model here does.")
        if not sources.tokenizer.is_file():
            raise CheckpointError(
                f"{sources.folder} comes without its tokenizer, {config.get('lm_tokenizer')!r}; give that one's "
                "tokenizer.json with --tokenizer."
            )
        words = Tokenizer.from_file(str(sources.tokenizer)).get_vocab_size()
        if extra and words - int(config.get("lm_base_vocab_size", words)) not in (0, len(extra)):
            raise CheckpointError(
                f"{sources.tokenizer} has {words} tokens, and {path} counts its own from "
                f"{config['lm_base_vocab_size']}; give the tokenizer of {config.get('lm_tokenizer')!r}."
            )
        theirs = {
            "scale_factor": config.get("mp_pixel_shuffle_factor", 2),
            "tie_word_embeddings": config.get("lm_tie_weights", True),
            "text_config": {
                ours: config[f"lm_{name}"] for ours, name in _TEXT_CONFIG.items() if f"lm_{name}" in config
            },
            "vision_config": {ours: config[f"vit_{n}"] for ours, n in _VISION_CONFIG.items() if f"vit_{n}" in config},
        }
        made = Idefics3Importer().plan(sources, theirs, shapes)
        pieces = dict(made.pieces)
        for name in [each for each in pieces if ".attn.qkv." in each]:
            layer, part = name.split(".")[4], name.rpartition(".")[2]
            pieces[name] = Piece((f"{_VISION}encoder.layers.{layer}.self_attn.qkv_proj.{part}",))
        template = "nanovlm-tile" if tiles else "nanovlm-chat" if "lm_chat_template" in config else "nanovlm"
        decoder = token_ids(sources, made.spec.decoder, template)
        # torchvision's Resize and ToTensor: values stay between 0 and 1.
        resample: Any = "bicubic" if tiles else "bilinear"
        image = ImageTransform(made.spec.image.size, "squash", (0.0,) * 3, (1.0,) * 3, resample=resample)
        spec = replace(made.spec, decoder=decoder, image=image, template=template)
        notes = [each for each in made.notes if "tile" not in each]
        notes += ["a picture is one tile, as a small one is there; of a large one it makes more"] * tiles
        return replace(made, spec=spec, pieces=pieces, notes=tuple(notes), added_tokens=tuple(extra.values()))


def _renamed(name: str) -> str:
    for theirs, ours in _NAMES.items():
        if match := re.match(theirs, name):
            return match.expand(ours) + name[match.end() :]
    return name
