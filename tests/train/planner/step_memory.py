"""A process that trains models of several sizes for three steps and prints torch's peak of each as a line of JSON.

The peak counts from before the model is made.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import tiny
from mobillama_v.config import DecoderConfig, ModelConfig, TowerConfig
from mobillama_v.images import ImageTransform
from mobillama_v.train.monitor.memory_profile import peak_memory
from mobillama_v.train.planner.memory import BatchShape, estimate
from mobillama_v.train.recipe import LoraSection, ModulesSection, TrainSection

STEPS = 3  # the optimizer's moments are there from the second on


@dataclass(frozen=True)
class Case:
    """One training to be measured."""

    name: str
    spec: ModelConfig
    train: TrainSection
    rows: int
    length: int
    supervised: int  # positions of a row

    @property
    def batch(self) -> BatchShape:
        """What the estimate is told."""
        supervised = self.rows * self.supervised
        if self.train.pack_tokens is not None:
            return BatchShape(1, self.rows * self.length, supervised, self.rows, packed=True)
        return BatchShape(self.rows, self.length, supervised, self.rows)


def _spec(width: int, inner: int, layers: int, vocabulary: int) -> ModelConfig:
    decoder = DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    image = ImageTransform(size=tiny.IMAGE_SIZE, mode="pad")
    return ModelConfig(decoder=decoder, tower=TowerConfig(model=tiny.TOWER_NAME), image=image)


SIZES = {
    "small": (_spec(128, 384, 4, 1000), 4, 128, 16),
    "medium": (_spec(256, 1024, 6, 4000), 4, 160, 48),
    "large": (_spec(512, 1408, 8, 8000), 4, 256, 64),
}
BOTH = ModulesSection(projector=1e-4, decoder=1e-4)
TRAININGS = {
    "instruct": TrainSection(modules=BOTH),
    "recomputed": TrainSection(modules=BOTH, gradient_checkpointing=True),
    "packed": TrainSection(modules=BOTH, pack_tokens=1024),
    "align": TrainSection(modules=ModulesSection(projector=1e-4)),
    "lora": TrainSection(modules=BOTH, lora=LoraSection(rank=16, dropout=0.0)),
}
CASES = {
    f"{size}-{kind}": Case(f"{size}-{kind}", spec, train, *shape)
    for size, (spec, *shape) in SIZES.items()
    for kind, train in TRAININGS.items()
}


def predicted(case: Case) -> int:
    """Bytes by the memory model."""
    return estimate(case.spec, case.train, case.batch, devices=1, accumulation=1).peak


def measured(case: Case) -> int:
    """Bytes at the fullest moment of real steps."""
    return peak_memory(lambda: _train(case))


def _train(case: Case) -> None:
    import torch

    from mobillama_v.hf.configuration import MobiLlamaVConfig
    from mobillama_v.hf.modeling import MobiLlamaVForConditionalGeneration
    from mobillama_v.train import lora
    from mobillama_v.train.build import freeze_all_but, parameter_groups
    from mobillama_v.train.trainer import enable_gradient_checkpointing

    model: Any = MobiLlamaVForConditionalGeneration(MobiLlamaVConfig.from_spec(case.spec))
    freeze_all_but(model, case.train.modules.learning())
    if case.train.lora is not None:
        lora.add_adapters(model, case.train.lora)
    if case.train.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, case.train.modules, 0.0), fused=True)
    slots, ids = model.tokens_per_image, torch.randint(3, 900, (case.rows, case.length))
    images = torch.zeros_like(ids, dtype=torch.bool)
    images[:, 1 : 1 + slots] = True
    exists = torch.ones_like(ids)
    exists[0, -3:] = 0
    labels = torch.where(torch.arange(case.length) < case.length - case.supervised, -100, ids)
    pixels = torch.randn(case.rows, 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)
    batch: dict[str, Any] = {"input_ids": ids, "pixel_values": pixels, "image_mask": images, "attention_mask": exists}
    if case.train.pack_tokens is not None:
        batch = {"input_ids": ids.view(1, -1), "pixel_values": pixels, "image_mask": images.view(1, -1)}
        batch["sample_lengths"], labels = (case.length,) * case.rows, labels.view(1, -1)
    model.train()
    for _ in range(STEPS):
        with torch.autocast("cpu", torch.bfloat16, enabled=case.train.precision == "bf16"):
            loss = model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    """Measure the cases that are named, or all."""
    tiny.register_tower(Path(tempfile.mkdtemp()))
    for name in sys.argv[1:] or CASES:
        case = CASES[name]
        parts = dataclasses.asdict(estimate(case.spec, case.train, case.batch, devices=1, accumulation=1))
        print(json.dumps({"case": name, "measured": measured(case), "predicted": predicted(case)} | parts), flush=True)


if __name__ == "__main__":
    main()
