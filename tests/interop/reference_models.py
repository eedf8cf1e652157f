"""Whole models of transformers, tiny and random, and how ours are compared with them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer
from torch import Tensor

import tiny
from mobillama_v.hub import read_spec
from mobillama_v.model.vlm import load_network

VOCABULARY, IMAGE = 420, 411
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3} | {
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3},
    **{"rms_norm_eps": 1e-5, "pad_token_id": 0},
}
VISION = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3} | {
    **{"image_size": 32, "patch_size": 8},
}


def llava(tower: str = "clip", decoder: str = "llama", **changes: Any) -> Any:
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        Qwen2Config,
        Qwen3Config,
        SiglipVisionConfig,
    )

    torch.manual_seed(0)
    vision = CLIPVisionConfig(**VISION) if tower == "clip" else SiglipVisionConfig(**VISION)
    kinds: dict[str, Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
    text = kinds[decoder](**TEXT)
    options = {"image_token_index": IMAGE} | changes
    return woken(LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, **options)))


def idefics3(**changes: Any) -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    torch.manual_seed(0)
    text = {"model_type": "llama", "tie_word_embeddings": True, **TEXT}
    config = Idefics3Config(
        vision_config=VISION,
        text_config=text,
        image_token_id=IMAGE,
        scale_factor=2,
        tie_word_embeddings=True,
        **changes,
    )
    return woken(Idefics3ForConditionalGeneration(config))


def llava_onevision() -> Any:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        Qwen2Config,
        SiglipVisionConfig,
    )

    torch.manual_seed(0)
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[32, 32], [32, 64], [64, 32], [64, 64]],
    )
    return woken(LlavaOnevisionForConditionalGeneration(config))


def internvl(decoder: str = "qwen2") -> Any:
    from transformers import (
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLVisionConfig,
        Qwen2Config,
        Qwen3Config,
    )

    torch.manual_seed(0)
    text = Qwen2Config(**TEXT) if decoder == "qwen2" else Qwen3Config(**TEXT, head_dim=16)
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(**VISION, attention_bias=True), text_config=text, image_token_id=IMAGE
    )
    return woken(InternVLForConditionalGeneration(config))


def woken(model: Any) -> Any:
    """With numbers by which every tensor changes the answer."""
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        else:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def save(model: Any, folder: Path, **options: Any) -> Path:
    """As transformers saves it, with a tokenizer."""
    model.save_pretrained(folder, **options)
    add_tokenizer(folder)
    return folder


def add_tokenizer(folder: Path) -> None:
    """A tokenizer with the special tokens of other programs' templates."""
    tiny.save_nano_like(folder / "nano")
    tokenizer = Tokenizer.from_file(str(folder / "nano" / "tokenizer.json"))
    names = ("<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>")
    names += ("<img>", "</img>")
    tokenizer.add_special_tokens([AddedToken(each, special=True) for each in names])
    tokenizer.save(str(folder / "tokenizer.json"))


def inputs(model: Any, pixels: Tensor) -> dict[str, Any]:
    """Pictures [N,3,32,32] as the class takes them."""
    kind, count = type(model).__name__, len(pixels)
    if kind.startswith("LlavaOnevision"):  # which makes one tile of each only where there are several
        sizes = torch.full((count, 2), 32)
        return {"pixel_values": pixels[:, None], "image_sizes": sizes, "batch_num_images": torch.tensor([count])}
    return {"pixel_values": pixels[None] if kind.startswith("Idefics3") else pixels}


def assert_same(model: Any, folder: Path, tokens: int, images: int = 1) -> None:
    """Logits at every position of a prompt with pictures of so many tokens."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(3, 400, (20,), generator=generator)
    ids = torch.cat([torch.tensor([1, 5]), torch.full((tokens * images,), IMAGE), words])
    pixels = torch.randn(images, 3, 32, 32, generator=generator)
    network = load_network(folder, read_spec(folder))
    encoded = SimpleNamespace(input_ids=ids.tolist(), image_mask=(ids == IMAGE).tolist())
    with torch.no_grad():
        expected = model(input_ids=ids[None], **inputs(model, pixels)).logits[0]
        other = model(input_ids=ids[None], **inputs(model, -pixels)).logits[0]
        found = tiny.whole_logits(network, encoded, pixels)
    assert (other - expected)[-1].abs().max() > 0.01 * expected.abs().max()  # the picture matters
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
