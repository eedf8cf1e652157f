"""What ``--dry-run`` prints: memory, disk space and hours for a number of GPUs of one kind. No model is built."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mobillama_v.config import ModelConfig
from mobillama_v.errors import RecipeError
from mobillama_v.hub import find_model, read_spec
from mobillama_v.presets import preset
from mobillama_v.train.planner.gpus import Gpu
from mobillama_v.train.planner.memory import BatchShape, Counts, Memory, estimate
from mobillama_v.train.planner.steps import StepPlan
from mobillama_v.train.recipe import Recipe, TrainSection

MFU = 0.4
"""Share of a GPU's peak that is assumed to be reached; what is spent on recomputing is then taken off."""


@dataclass(frozen=True)
class DataStats:
    """The data in numbers: samples, and of a sample the mean tokens, longest, mean supervised and images."""

    samples: int
    mean: float
    longest: int
    supervised: float
    most_supervised: int
    images: float
    assumed: bool = False
    pack: BatchShape | None = None
    """The most that a pack holds, where samples are packed and known."""


def assumed_spec(recipe: Recipe) -> ModelConfig:
    """The model of the start folder, or while there is none named, the preset that the recipe assumes.

    Raises:
        RecipeError: the recipe names neither.
        MobiLlamaVError: a start folder that is not what it must be.
    """
    if recipe.model.start:
        return read_spec(find_model(recipe.model.start))
    if recipe.assume is None:
        raise RecipeError(f"recipe {recipe.name} leaves model.start open and assumes nothing; give model.start=….")
    spec = preset(recipe.assume.preset).spec
    if not isinstance(spec, ModelConfig):
        raise RecipeError(f"assume.preset {recipe.assume.preset} is a decoder alone; choose a whole model.")
    return spec


def assumed_stats(recipe: Recipe) -> DataStats:
    """What the recipe takes for granted of its data.

    Raises:
        RecipeError: the recipe assumes nothing.
    """
    guess = recipe.assume
    if guess is None:
        raise RecipeError(f"recipe {recipe.name} leaves data.json open and assumes nothing; give data.json=….")
    return DataStats(
        guess.samples, guess.tokens, guess.longest, guess.supervised, min(guess.longest, 2 * guess.supervised), 1, True
    )


def describe_parts(recipe: Recipe, spec: ModelConfig) -> list[str]:
    """Lines: what training starts from, and how many parameters of each part learn at which rate."""
    train, counts = recipe.train, Counts.of(spec, recipe.train)
    start = recipe.model.start or f"preset {recipe.assume.preset if recipe.assume else ''} (assumed)"
    lines = [f"recipe   {recipe.name}, from {start} to {recipe.output or '(output is open)'}"]
    for part, count in counts.all.items():
        lr = train.modules.learning().get(part)
        rate = "frozen" if lr is None else f"learns, lr {lr:g}"
        if part == "decoder" and train.modules.embeddings is not None:
            rate += f", embeddings and head {train.modules.embeddings:g}"
        lines.append(f"{part:<9}{count:>13,} parameters  {rate}")
    if train.lora is not None:
        lora = train.lora
        line = f"lora     {counts.learning['decoder']:,} of the decoder learn: rank {lora.rank}, alpha {lora.alpha:g}"
        if spec.decoder.ffn_sharing == "all" and not {"gate_proj", "up_proj", "down_proj"}.isdisjoint(lora.targets):
            line += "; one adapter of the shared feed-forward network, applied in all layers"
        lines.append(line)
    return lines


def describe_assumed(recipe: Recipe, spec: ModelConfig, stats: DataStats) -> str:
    """The part of a dry run that start folder and data would say, from what is assumed of them."""
    return "\n".join(
        [
            *describe_parts(recipe, spec),
            f"data     assumed: {stats.samples:,} samples of {stats.mean:,.0f} tokens ({stats.supervised:,.0f} "
            f"supervised; longest {stats.longest:,}); give model.start and data.json to measure yours",
        ]
    )


def floating_point_operations(recipe: Recipe, spec: ModelConfig, stats: DataStats, samples: int) -> tuple[float, float]:
    """Of the whole training: those that it is made of, and those that are done, recomputing included.

    A multiplication and an addition are two. Going back costs as much as going forward for each of: the gradient of a
    layer's input, the gradient of its weights.
    """
    train, decoder = recipe.train, spec.decoder
    parts = decoder.params_by_part()
    layers = decoder.num_hidden_layers
    uses = layers if decoder.ffn_sharing == "all" else 1
    matrices = parts["attention"] + uses * parts["feed-forward"]
    tokens = samples * stats.mean
    blocks = 2 * matrices * tokens + 2 * layers * decoder.query_width * stats.mean * tokens  # causal attention
    head = 2 * parts["head"] * samples * stats.supervised
    times = 3 if train.modules.decoder is not None and train.lora is None else 2
    counts, visual = Counts.of(spec, train), samples * stats.images
    tower = 0.0 if recipe.data.features else tower_operations(spec, visual)
    projector = 6 * counts.all["projector"] * spec.tokens_per_image() * visual
    useful = times * (blocks + head) + projector + tower * (1 if train.modules.tower is None else 3)
    return useful, useful + (blocks if train.gradient_checkpointing else 0)


def tower_operations(spec: ModelConfig, images: float) -> float:
    """Floating-point operations of the tower going forward."""
    shape = spec.tower_shape()
    return 2 * shape.parameters * (shape.patches + shape.prefix) * images


def describe_features(spec: ModelConfig, folder: str, images: int, seconds: float | None = None) -> str:
    """One line: what the features of all images take of the disk, and hours where ``seconds`` an image are known."""
    shape = spec.tower_shape()
    one, place = 2 * (shape.patches + shape.extra(spec.tower)) * shape.width, Path(folder).absolute()
    free = shutil.disk_usage(next(each for each in (place, *place.parents) if each.is_dir())).free
    line = (
        f"features up to {images * one / 1e9:,.1f} GB in {folder} ({images:,} images of {one / 1e6:.2f} MB), where "
        f"{free / 1e9:,.1f} GB are free{'' if images * one <= free else ': not enough'}"
    )
    return line if seconds is None else f"{line}; {images * seconds / 3600:,.1f} hours on this machine, once"


def batch_on(recipe: Recipe, devices: int) -> tuple[int, int]:
    """Samples of a forward pass on one of ``devices``, and forward passes of a step; fewer for a small global batch.

    Raises:
        RecipeError: a global batch that so many devices cannot share.
    """
    train = recipe.train
    whole = train.global_batch_size
    size = train.batch_size if whole is None else max(1, min(train.batch_size, whole // devices))
    fitting = dataclasses.replace(recipe, train=dataclasses.replace(train, batch_size=size))
    return size, fitting.accumulation(devices)


def describe_gpus(
    recipe: Recipe, spec: ModelConfig, stats: DataStats, kind: Gpu, counts: Sequence[int], mfu: float
) -> str:
    """Memory, steps and hours for each number of GPUs, and what was assumed.

    Raises:
        RecipeError: a global batch that so many devices cannot share.
    """
    train = recipe.train
    peak = kind.bf16 if train.precision != "fp32" else kind.fp32
    lines = [
        f"on {kind.name}, {kind.memory:g} GB each: memory in GB on each",
        f"GPUs  {'batch' if train.pack_tokens is None else 'tokens':<10}    steps  weights  gradients  optimizer  "
        "activations  logits  buffers   peak  fits  hours",
    ]
    small, filling = [], []
    images = tower_operations(spec, stats.samples * stats.images) if recipe.data.features else 0.0
    for devices in counts:
        filling.append(f"{images / (devices * peak * 1e12 * mfu) / 3600:,.1f} on {devices}")
        size, accumulation = batch_on(recipe, devices)
        if size != train.batch_size:
            small.append(f"{devices} GPUs: train.batch_size={size}")
        fitting = dataclasses.replace(recipe, train=dataclasses.replace(train, batch_size=size))
        plan = StepPlan.of(fitting, stats.samples, devices, batch_size=packed_samples(train, stats))
        memory = estimate(spec, train, largest(recipe, stats, size), devices=devices, accumulation=accumulation)
        useful, _ = floating_point_operations(recipe, spec, stats, plan.samples)
        hours = useful / (devices * peak * 1e12 * mfu) / 3600
        batch = f"{size if train.pack_tokens is None else train.pack_tokens} x {accumulation}"
        lines.append(_row(devices, batch, plan.steps, memory, kind, hours))
    lines.append(
        f"hours at {mfu:.0%} of {peak:g} TFLOP/s ({train.precision}, {kind.name}'s data sheet, without sparsity): an "
        "assumption; give --mfu what you measure"
    )
    lines.append("peak without CUDA's context, NCCL and fragmentation: leave a tenth")
    if images:
        lines.append(f"features, once: {', '.join(filling)} hours, not in the table")
    if small:
        lines.append(f"for the global batch of {train.global_batch_size}, {'; '.join(small)}")
    return "\n".join(lines)


def _row(devices: int, batch: str, steps: int, memory: Memory, kind: Gpu, hours: float) -> str:
    gb = {name: value / 1e9 for name, value in dataclasses.asdict(memory).items()}
    fits = "yes" if gb["peak"] < 0.9 * kind.memory else "no"
    return (
        f"{devices:>4}  {batch:<10}{steps:>9,}{gb['weights']:>9.1f}{gb['gradients']:>11.1f}{gb['states']:>11.1f}"
        f"{gb['activations']:>13.1f}{gb['logits']:>8.1f}{gb['buffers']:>9.1f}{gb['peak']:>7.1f}{fits:>6}{hours:>7.1f}"
    )


def packed_samples(train: TrainSection, stats: DataStats) -> int | None:
    """Samples of a pack on average, if samples are packed: the last of those that would fill it is half outside."""
    return None if train.pack_tokens is None else max(1, round(train.pack_tokens / stats.mean - 0.5))


def largest(recipe: Recipe, stats: DataStats, rows: int) -> BatchShape:
    """The largest batch that there can be: every row as long, and as much learned from, as the one that is most so.

    Of packs it is a full one, with as much learned from and as many images as in the pack that has most of them; while
    they are not known, with samples of mean length, each as much learned from as the one that is most so.
    """
    if stats.pack is not None:
        return stats.pack
    cached, tokens = bool(recipe.data.features), recipe.train.pack_tokens
    if tokens is None:
        return BatchShape(rows, stats.longest, rows * stats.most_supervised, round(rows * stats.images), cached)
    samples = math.ceil(tokens / stats.mean)
    supervised = min(tokens, samples * stats.most_supervised)
    return BatchShape(1, tokens, supervised, math.ceil(samples * stats.images), cached, packed=True)


def default_mfu(recipe: Recipe, spec: ModelConfig, stats: DataStats) -> float:
    """:data:`MFU`, less the share of arithmetic that only recomputes."""
    useful, done = floating_point_operations(recipe, spec, stats, stats.samples)
    return MFU * useful / done


def checkpoint_bytes(recipe: Recipe, spec: ModelConfig) -> tuple[int, int]:
    """Bytes of a model folder, and of a checkpoint with what ``--resume`` needs."""
    train, counts = recipe.train, Counts.of(spec, recipe.train)
    half = train.deepspeed is not None and train.precision != "fp32"
    adapters = counts.learning["decoder"] if train.lora is not None else 0
    model = (sum(counts.all.values()) - adapters) * (2 if half else 4)
    learning = sum(counts.learning.values())
    state = learning * (4 if train.optimizer == "muon" else 8)
    if train.deepspeed is not None:
        state += learning * 4 + (sum(counts.all.values()) * (2 if half else 4))
    return model, model + state


def describe_checkpoints(recipe: Recipe, spec: ModelConfig) -> str:
    """One line: bytes on disk."""
    kept, (model, checkpoint) = recipe.train.save_total_limit, checkpoint_bytes(recipe, spec)
    return (
        f"disk     {model / 1e9:.2f} GB a model folder, {checkpoint / 1e9:.2f} GB a checkpoint with what --resume "
        f"needs; {(checkpoint * (kept + 1) + model) / 1e9:.1f} GB at most ({kept} kept, one being written, final)"
    )
