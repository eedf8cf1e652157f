"""A tiny model that has learnt to name drawings: its answers are of pictures, and clear, unlike a random model's."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch.nn.functional import cross_entropy

import tiny
from mobillama_v.chat_templates import get_template
from mobillama_v.hub import read_spec
from mobillama_v.images import ImageTransform
from mobillama_v.model.vision import TowerConfig, ViTShape
from mobillama_v.model.vlm import load_network, place_image_features
from mobillama_v.prompt import Encoded, assistant, user
from mobillama_v.tokenization import TextTokenizer

QUESTION = "What is this?"
SIDE = 64
SHAPE = ViTShape(width=64, layers=3, heads=4, mlp=128, patch=16, activation="quick_gelu")
_COLORS = {"red": (210, 40, 30), "green": (40, 170, 60), "blue": (40, 60, 210), "black": (20, 20, 20)}
_SHAPES = ("circle", "square", "line")
_DECODER = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 4}


def drawing(rng: random.Random) -> tuple[Image.Image, str]:
    """A picture of two things, and its description."""
    picture = Image.new("RGB", (SIDE, SIDE), (rng.randrange(200, 256),) * 3)
    pen, names = ImageDraw.Draw(picture), []
    for left in (2, 34):
        color, shape = rng.choice(list(_COLORS)), rng.choice(_SHAPES)
        x, y, size = left + rng.randrange(6), rng.randrange(2, 34), rng.randrange(14, 24)
        box = (x, y, x + size, y + size)
        if shape == "line":
            pen.line(box, fill=_COLORS[color], width=3)
        else:
            (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=_COLORS[color])
        names.append(f"a {color} {shape}")
    return picture, f"There is {names[0]} and {names[1]}."


def train(folder: Path, tower: str, *, steps: int = 300, batch: int = 32) -> Path:
    """Write the folder of a model with a tower of the kind ``tower``; it takes about a minute."""
    spec = read_spec(
        tiny.save_nano_like(
            folder, tower=TowerConfig(tower, vit=SHAPE), image=ImageTransform(SIDE), decoder_changes=_DECODER
        )
    )
    network = load_network(folder, spec)
    torch.manual_seed(0)
    for part in (network.language_model, network.lm_head, network.projector):
        for parameter in part.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.08)
    tokenizer = TextTokenizer.from_file(folder / "tokenizer.json", bos_id=1, eos_id=2, pad_id=0)
    template, rng = get_template(spec.template), random.Random(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    network.train().requires_grad_(True)
    for _ in range(steps):
        pictures, texts = zip(*(drawing(rng) for _ in range(batch)), strict=True)
        samples = [
            template.encode(
                [user(QUESTION, images=1), assistant(text)], tokenizer, tokens_per_image=network.tokens_per_image
            )
            for text in texts
        ]
        loss = _loss(network, samples, torch.from_numpy(spec.image.batch(pictures)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    _save(network, folder)
    return folder


def _loss(network, samples: list[Encoded], pixels: torch.Tensor) -> torch.Tensor:
    length = max(len(each.input_ids) for each in samples)

    def rows(name: str, fill: int) -> torch.Tensor:
        lists = [list(getattr(each, name)) for each in samples]
        return torch.tensor([each + [fill] * (length - len(each)) for each in lists])

    mask, labels = rows("image_mask", 0).bool(), rows("labels", -100)
    embeds = network.language_model.embed_tokens(rows("input_ids", 0))
    embeds = place_image_features(embeds, mask, network.get_image_features(pixels))
    hidden = network.language_model(embeds, position_ids=torch.arange(length).expand(len(samples), -1))
    return cross_entropy(network.lm_head(hidden)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def _save(network, folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.half() for name, tensor in network.state_dict().items()}, folder / "model.safetensors")
