"""Fixtures of the training tests: a start folder of the tiny model, and records with pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

COLORS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "white": (240, 240, 240)}


@pytest.fixture(scope="session")
def start_folder(tower_name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: the tiny random model and a tokenizer of single characters."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    import tiny
    from mobillama_v import MobiLlamaVConfig, MobiLlamaVForConditionalGeneration

    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    config = tiny.model_config(text_config=tiny.DECODER | {"max_position_embeddings": 256})
    MobiLlamaVForConditionalGeneration(MobiLlamaVConfig(**config)).save_pretrained(folder)
    letters = ["<pad>", "<s>", "</s>", "<unk>", "\n", *map(chr, range(32, 96)), *map(chr, range(97, 123))]
    model = models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images/``, ``pictures.json`` (24 records, some of two turns) and ``text.jsonl`` (8 records)."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("corpus")
    (folder / "images").mkdir()
    records: list[dict[str, Any]] = []
    for i in range(24):
        name, color = list(COLORS.items())[i % len(COLORS)]
        Image.new("RGB", (20 + i, 30), tuple((value + 3 * i) % 256 for value in color)).save(
            folder / "images" / f"{i}.png"
        )
        turns = [
            {"from": "human", "value": "<image>\nWhat color?" if i % 2 else "What color?\n<image>"},
            {"from": "gpt", "value": name + "!" * (i % 5)},
        ]
        if i % 3 == 0:
            turns += [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
        records.append({"id": f"p{i}", "image": f"{i}.png", "conversations": turns})
    (folder / "pictures.json").write_text(json.dumps(records))
    lines = []
    for i in range(8):
        turns = [{"from": "human", "value": f"Say {i}"}, {"from": "gpt", "value": str(i) * (i + 1)}]
        lines.append(json.dumps({"id": i, "conversations": turns}))
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    return folder
