"""What a recipe names, built: model with frozen and learning parts, tokenizer, samples, plan."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mobillama_v import distributed
from mobillama_v.checkpoint import load_weights
from mobillama_v.config import ModelConfig
from mobillama_v.errors import CheckpointError
from mobillama_v.hf.configuration import MobiLlamaVConfig
from mobillama_v.hf.modeling import MobiLlamaVForConditionalGeneration
from mobillama_v.hub import find_model
from mobillama_v.model.vision import build_tower
from mobillama_v.progress import Progress
from mobillama_v.tokenization import TextTokenizer
from mobillama_v.train import lora
from mobillama_v.train.data.dataset import Samples, TrainingSet, count_kinds, load_samples
from mobillama_v.train.data.encoding import SUPERVISED, Encoding
from mobillama_v.train.data.features import PATHS, compute, tower_seconds
from mobillama_v.train.data.parallel import cores
from mobillama_v.train.data.picture_keys import PictureKeys
from mobillama_v.train.data.preprocess import Problem, check_images
from mobillama_v.train.data.sampler import Packs
from mobillama_v.train.planner.memory import BatchShape
from mobillama_v.train.planner.plan import DataStats, describe_parts
from mobillama_v.train.planner.steps import StepPlan, packs_of
from mobillama_v.train.recipe import DataSection, ModulesSection, Recipe

MODULES = {"projector": ("projector",), "decoder": ("language_model", "lm_head"), "tower": ("vision_tower",)}
"""The model's attributes that each part of a recipe's ``train.modules`` means."""
EMBEDDINGS = ("language_model.embed_tokens", "lm_head")
"""Those with a row for each token, which may have a rate of their own."""


def start_folder(recipe: Recipe) -> Path:
    """The folder of ``model.start``: a model of this package by its name, a folder, or a Hugging Face id.

    Raises:
        ModelNotFoundError: there is no such model.
    """
    return find_model(recipe.model.start)


def load_start(folder: Path, *, seed: int) -> MobiLlamaVForConditionalGeneration:
    """The model of a start folder in fp32: with its weights, or without a weight file freshly made by ``seed``.

    Raises:
        CheckpointError: no config.json, or weights that do not fit it.
        ConfigError: a config that cannot be.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); model.start must be a model folder.") from error
    config = MobiLlamaVConfig.from_spec(ModelConfig.from_dict(values, str(path)))
    torch.manual_seed(seed)
    model = MobiLlamaVForConditionalGeneration(config)
    if any(folder.glob("*.safetensors*")) or any(folder.glob("*.bin*")):
        load_weights(model, folder)
    elif config.spec.tower.pretrained is not None:
        tower = build_tower(config.spec.tower, image_size=config.spec.image.size, pretrained=True)
        model.vision_tower.load_state_dict(tower.state_dict())
    return model


def parts(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The modules of each part that a recipe can let learn."""
    return {part: [getattr(model, name) for name in names] for part, names in MODULES.items()}


def freeze_all_but(model: nn.Module, learning: dict[str, float]) -> None:
    """Let the named parts learn and nothing else."""
    model.requires_grad_(False)
    for part in learning:
        for module in parts(model)[part]:
            module.requires_grad_(True)


def parameter_groups(model: nn.Module, modules: ModulesSection, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: each part at its learning rate, and norms and biases (less than two dimensions) undecayed.

    ``hidden`` marks the weights of linear layers but the head: what Muon orthogonalizes.
    """
    named = dict(model.named_modules())
    words = {named[name].weight for name in EMBEDDINGS}
    hidden = {module.weight for module in named.values() if isinstance(module, nn.Linear)} - words
    groups: list[dict[str, Any]] = []
    for part, lr in modules.learning().items():
        parameters = [p for module in parts(model)[part] for p in module.parameters() if p.requires_grad]
        for is_hidden, rate, decay, chosen in (
            (True, lr, weight_decay, [p for p in parameters if p in hidden]),
            (False, modules.embeddings or lr, weight_decay, [p for p in parameters if p in words]),
            (False, lr, weight_decay, [p for p in parameters if p.dim() >= 2 and p not in hidden | words]),
            (False, lr, 0.0, [p for p in parameters if p.dim() < 2]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": rate, "weight_decay": decay, "hidden": is_hidden})
    return groups


def encoding_of(recipe: Recipe, spec: ModelConfig) -> Encoding:
    """How records become tokens.

    Raises:
        RecipeError: a length that is more than the model's context.
    """
    return Encoding.of(
        start_folder(recipe),
        spec,
        template=recipe.data.template,
        max_length=recipe.data.max_length,
        key="data.max_length",
    )


def unusable_images(data: DataSection, paths: list[str]) -> dict[str, tuple[str, str]]:
    """Images that training could not use, with kind and reason."""
    if data.features is not None:  # it may hold rows of which there is no file
        keys, root = PictureKeys(Path(data.features) / PATHS), Path(data.image_root)
        paths = [path for path in paths if not keys.is_named(root / path)]
    decode, workers = data.check_images == "decode", cores(alone=True)  # the other ranks wait for the first
    with Progress() as bar:
        done = functools.partial(bar, "images", total=len(paths))
        return check_images(paths, Path(data.image_root), decode=decode, workers=workers, done=done)


@dataclass
class Setup:
    """Everything that a training needs."""

    recipe: Recipe
    model: MobiLlamaVForConditionalGeneration
    tokenizer: TextTokenizer
    samples: Samples
    plan: StepPlan
    skipped: list[Problem]
    """Records that are left out, as the recipe allows."""
    packs: Packs | None = None
    """The forward passes, where the recipe packs samples."""

    @classmethod
    def of(cls, recipe: Recipe) -> Setup:
        """Build what ``recipe`` names.

        Raises:
            MobiLlamaVError: the start folder or the data are not what they must be, or the recipe leaves them open.
        """
        recipe.require_paths()
        start, data = start_folder(recipe), recipe.data
        model = load_start(start, seed=recipe.train.seed)
        model.config.template = data.template  # a saved folder prompts as in training
        if data.image_mode is not None:
            model.config.image = {**(model.config.image or {}), "mode": data.image_mode}
        freeze_all_but(model, recipe.train.modules.learning())
        if recipe.train.lora is not None:
            lora.add_adapters(model, recipe.train.lora)
        tokenizer = TextTokenizer.of_decoder(start / "tokenizer.json", model.config.spec.decoder)
        samples, skipped = load_samples(
            data.json,
            encoding_of(recipe, model.config.spec),
            images=lambda paths: distributed.on_rank0(lambda: unusable_images(data, paths)),
            skip_bad=data.skip_bad,
            skip_empty=data.empty_answers == "skip",
            keep_duplicates=data.duplicates == "keep",
        )
        devices = distributed.world_size()
        packs = packs_of(recipe, samples.lengths, devices)
        plan = StepPlan.of(recipe, len(samples), devices, packs=packs)
        return cls(recipe, model, tokenizer, samples, plan, skipped, packs)

    def dataset(self) -> TrainingSet:
        """The samples with their pictures; adds what is missing to the store of features that the recipe names.

        Raises:
            MobiLlamaVError: an image that cannot be read, or no room for the features.
        """
        train, data, paths = self.recipe.train, self.recipe.data, self.samples.image_paths()
        root, features = Path(data.image_root), None
        if data.features is not None and paths:
            options: dict[str, Any] = {"workers": train.dataloader_workers, "precision": train.precision}
            features = compute(self.model, paths, root, Path(data.features), **options)
        return TrainingSet(self.samples, image_root=root, transform=self.model.config.spec.image, features=features)

    def seconds_per_image(self) -> float:
        """How long the tower takes for an image of a batch, as :func:`compute` runs it here; decoding is not in it."""
        return tower_seconds(self.model.vision_tower, self.model.config.spec.image.size, 8, self.recipe.train.precision)

    def describe(self) -> str:
        """What learns, from what, for how long, as lines of text."""
        train, plan = self.recipe.train, self.plan
        lines = describe_parts(self.recipe, self.model.config.spec)
        samples, lengths = self.samples, self.samples.lengths
        lines.append(
            f"data     {len(samples):,} samples, {len(samples.image_paths()):,} images, {lengths.sum():,} tokens "
            f"({samples.supervised:,} supervised; mean {lengths.mean():.0f}, longest {lengths.max()})"
        )
        if self.skipped:
            lines.append(f"         without {len(self.skipped):,} bad records ({count_kinds(self.skipped)})")
        if samples.shortened:
            lines.append(f"         {samples.shortened:,} samples lost their end to fit data.max_length")
        lines += [f"         {count:,} records: {note}" for note, count in samples.notes.items()]
        passes = f"{plan.accumulation}{f' x {plan.devices} devices' if plan.devices > 1 else ''}"
        if self.packs is None:
            step = f"{train.batch_size} x {passes} samples"
        else:
            mean = plan.samples / len(self.packs)
            step = f"{passes} packs of up to {train.pack_tokens:,} tokens ({mean:.1f} samples)"
        lines.append(
            f"steps    {plan.steps:,} of {step}, {plan.samples / len(samples):.2f} epochs, "
            f"warm-up {plan.warmup_steps}, {train.schedule}, {train.precision}"
            f"{f', DeepSpeed {train.deepspeed}' if train.deepspeed else ''}"
        )
        return "\n".join(lines)

    def stats(self) -> DataStats:
        """The data in numbers, for planning."""
        samples, lengths = self.samples, self.samples.lengths
        learned = np.add.reduceat((samples.flags & SUPERVISED) > 0, samples.offsets[:-1], dtype=np.int64)
        images = np.array([len(paths) for paths in samples.images])
        largest, tokens = None, self.recipe.train.pack_tokens
        if self.packs is not None and tokens is not None:
            cached = bool(self.recipe.data.features)
            largest = BatchShape(1, tokens, self.packs.most(learned), self.packs.most(images), cached, packed=True)
        return DataStats(
            samples=len(samples),
            mean=float(lengths.mean()),
            longest=int(lengths.max()),
            supervised=float(learned.mean()),
            most_supervised=int(learned.max()),
            images=float(images.mean()),
            pack=largest,
        )

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed training must share with the one that it continues: recipe and data."""
        recipe = dataclasses.asdict(self.recipe)
        del recipe["validation"]
        for name in ("log_steps", "save_steps", "save_total_limit", "dataloader_workers", "spike_factor", "report"):
            del recipe["train"][name]
        for name in ("skip_bad", "duplicates", "empty_answers", "check_images"):
            del recipe["data"][name]  # they choose samples, and those are compared
        if self.plan.devices > 1:
            recipe["devices"] = self.plan.devices
        del recipe["output"], recipe["assume"]
        return {"recipe": recipe, "data": self.samples.digest()}
