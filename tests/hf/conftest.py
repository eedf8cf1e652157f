"""Small model folders with tokenizers of both styles, and their model and processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from chats import make_tokenizer

from mobillama_v import MobiLlamaVConfig, MobiLlamaVForConditionalGeneration, MobiLlamaVProcessor
from tiny import DECODER, IMAGE_SIZE, model_config


@pytest.fixture(scope="module", params=["bytes", "words"])
def folder(request: pytest.FixtureRequest, tower_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with the three files that an embedded model has."""
    torch.manual_seed(1)
    tokenizer = make_tokenizer(request.param)
    text = DECODER | {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 512}
    image = {"size": IMAGE_SIZE, "mode": "squash", "mean": [0.5] * 3, "std": [0.25] * 3}
    model = MobiLlamaVForConditionalGeneration(MobiLlamaVConfig(**model_config(text_config=text, image=image)))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)  # the answers shall depend on what is asked
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    tokenizer.save(str(path / "tokenizer.json"))
    for name in ("generation_config.json", "README.md", "chat_template.jinja"):
        (path / name).unlink()
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> MobiLlamaVForConditionalGeneration:
    return MobiLlamaVForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor(folder: Path) -> MobiLlamaVProcessor:
    return MobiLlamaVProcessor.from_pretrained(folder)
