"""Tiny random models for tests: an open_clip tower small enough to compare with transformers' CLIP."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

DECODER: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
TOWER_NAME = "tiny-test-vit-quickgelu"
IMAGE_SIZE, PATCH, TOWER_WIDTH, TOWER_LAYERS = 32, 8, 24, 3


NANO_LIKE, PACKED_CLIP = "nano-like", "packed-clip"
"""Folders of the models that :func:`save_models` makes."""


def register_tower(folder: Path) -> str:
    """Teach open_clip a tiny ViT with QuickGELU; returns its name."""
    import open_clip

    config = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "width": TOWER_WIDTH,
            "layers": TOWER_LAYERS,
            "head_width": 8,
        },
        "text_cfg": {"context_length": 8, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
    }
    path = folder / f"{TOWER_NAME}.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return TOWER_NAME


def model_config(**changes: Any) -> dict[str, Any]:
    """Keyword arguments of a tiny ``MobiLlamaVConfig``; the tower must be registered."""
    return {
        "text_config": dict(DECODER),
        "tower": {"model": TOWER_NAME, "feature_layer": -2},
        "projector": {"type": "mlp2x_gelu"},
        "image": {"size": IMAGE_SIZE},
    } | changes


SENTENCES = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "USER: Describe the image. ASSISTANT: There is a red circle above a small blue square.",
    "USER: What is this? ASSISTANT: A dog on the grass. USER: How many dogs? ASSISTANT: Two.",
]


def save_nano_like(folder: Path, *, decoder_changes: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a model folder of the embedded model's architecture: real tower, tiny decoder, random weights in fp16.

    ``changes`` are other parts of its :class:`~mobillama_v.config.ModelConfig`, ``decoder_changes`` other values of
    its decoder.
    """
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from mobillama_v.config import ModelConfig
    from mobillama_v.model.vlm import VisionLanguageModel
    from mobillama_v.presets import PRESETS

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))

    nano = PRESETS["nano"].spec
    assert isinstance(nano, ModelConfig)
    tiny: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
    }
    decoder = dataclasses.replace(nano.decoder, **tiny | (decoder_changes or {}))
    spec = dataclasses.replace(nano, decoder=decoder, **changes)
    config = {
        "model_type": "mobillama_v",
        "text_config": dataclasses.asdict(decoder),
        "tower": dataclasses.asdict(spec.tower),
        "projector": dataclasses.asdict(spec.projector),
        "image": dataclasses.asdict(spec.image),
        "template": spec.template,
    }
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    network = VisionLanguageModel(spec)
    with torch.no_grad():
        # As they are initialized, a stem fades every picture to the same one, the structured tokens are zeros, and a
        # decoder at 0.02 does not mind its input: no picture would change an answer.
        if spec.tower == nano.tower:
            _wake_hybrid_tower(network.vision_tower.visual.trunk)
        for part in (network.language_model, network.lm_head, network.projector):
            for parameter in part.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.3)
            for name, parameter in part.named_parameters():
                if name.endswith("_proj.bias"):  # of a decoder that has them
                    torch.nn.init.normal_(parameter, std=1.0)
                elif name.endswith(("q_norm.weight", "k_norm.weight")):
                    torch.nn.init.uniform_(parameter, 0.5, 1.5)
    save_file({name: tensor.half() for name, tensor in network.state_dict().items()}, folder / "model.safetensors")
    return folder


def save_packed_clip(folder: Path) -> Path:
    """Write a packed model with a tiny CLIP tower and random weights."""
    from typer.testing import CliRunner

    from mobillama_v.cli.main import app
    from mobillama_v.config import ProjectorConfig, TowerConfig
    from mobillama_v.images import ImageTransform
    from mobillama_v.model.vision import ViTShape
    from mobillama_v.model.vision.plain_vit import CLIP

    tower = TowerConfig(CLIP, vit=ViTShape(24, 3, 3, 40, 8, "quick_gelu"))
    unpacked = folder.with_name("unpacked-clip")
    save_nano_like(unpacked, tower=tower, projector=ProjectorConfig("mlp2x_gelu", 1), image=ImageTransform(size=32))
    made = CliRunner().invoke(app, ["quantize", str(unpacked), str(folder)])
    assert made.exit_code == 0, made.output
    return folder


def save_models(folder: Path) -> None:
    """Write the models that tests of an install without torch, which cannot make them, answer with."""
    save_nano_like(folder / NANO_LIKE)
    save_packed_clip(folder / PACKED_CLIP)


def whole_logits(network: Any, encoded: Any, pixels: Any) -> Any:
    """Logits [T,V] of a network at every position of one conversation with images [N,3,S,S], in one plain pass."""
    import torch

    decoder = network.language_model
    embeds = decoder.embed_tokens(torch.tensor([encoded.input_ids]))
    embeds[0, torch.tensor(encoded.image_mask)] = network.get_image_features(pixels).flatten(0, 1)
    positions = torch.arange(len(encoded.input_ids))[None]
    return network.lm_head(decoder(embeds, position_ids=positions))[0]


def _wake_hybrid_tower(trunk: Any) -> None:
    import torch

    for module in trunk.patch_embed.stem.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            torch.nn.init.zeros_(module.bias)
    torch.nn.init.normal_(trunk.patch_embed.stem.classifier.weight)
    for words in (trunk.account.class_names.table, trunk.account.colors, trunk.account.things.names):
        torch.nn.init.normal_(words, std=0.05)
