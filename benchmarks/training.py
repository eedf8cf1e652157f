"""``python -m benchmarks train``: what packing, logits where they are learnt, and cached features save here."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.harness import OutputOption, finish, machine, rotated, times_as_fast
from mobillama_v.cli.bench import aligned, formatted, spread
from mobillama_v.cli.options import ModelOption

if TYPE_CHECKING:
    from benchmarks.synthetic_mix import Mix

_CLOSE = 1e-3  # relative difference of two methods' losses that rounding explains


@dataclass
class Measured:
    """What was measured of one method of learning from the same records: by turn, unless it is said otherwise."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    positions: int = 0
    """Of all turns, padding included."""
    peak: int = 0
    """Bytes of activations in the largest forward and backward pass."""


Pass = Callable[[list[int], int], float]
"""Goes forward and back on some records, whose loss is divided by a number of tokens; gives the loss."""


def bench_train(
    model: ModelOption = "nano",
    samples: Annotated[int, typer.Option(min=2, help="Records of an optimizer step; LLaVA's have 128.")] = 128,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Records of a padded forward pass; a pack holds as many.")
    ] = 16,
    turns: Annotated[int, typer.Option(min=1, help="Optimizer steps that every method is measured for.")] = 5,
    images: Annotated[int, typer.Option(min=2, help="Pictures of a step of stage 1.")] = 32,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Recompute activations, as LLaVA's recipe does.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the records.")] = 0,
    output: OutputOption = None,
) -> None:
    """Training steps side by side: random padded batches, LLaVA's grouping, packs; stage 1 with and without a cache.

    The records are simulated, with the lengths of LLaVA-1.5's mix of 665k conversations. All methods learn from the
    same ones by turns, so that what else the machine does hurts all. Exit code 1: their losses differ.
    """
    from mobillama_v.hub import find_model
    from mobillama_v.train.build import load_start

    network = load_start(find_model(model), seed=seed)
    instruct, mix, tokens = measure_instruct(
        network, samples, batch_size, turns, seed=seed, recompute=gradient_checkpointing
    )
    align, filling = measure_align(network, images, turns, seed=seed)
    facts = {
        "bench": "train",
        "model": model,
        **machine(),
        "turns": turns,
        "samples_of_a_step": samples,
        "batch_size": batch_size,
        "pack_tokens": tokens,
        "gradient_checkpointing": gradient_checkpointing,
        "images": images,
        "cache_filled_in_seconds": filling,
        **summary(instruct, align, mix, samples=samples),
    }
    finish(facts, table(facts), output)
    if facts["largest_difference_of_losses"] > _CLOSE:
        raise typer.Exit(1)


RANDOM, GROUPED, PACKED = "random, padded", "LLaVA's grouping, padded", "packed"


def measure_instruct(
    network: Any, samples: int, batch_size: int, turns: int, *, seed: int, recompute: bool
) -> tuple[dict[str, Measured], Mix, int]:
    """Stage 2 on given outputs of the tower: each turn is a step from the same weights on the next ``samples`` records.

    Returns:
        The methods, all records, and the tokens of a pack.
    """
    import torch

    from benchmarks.synthetic_mix import Mix, draw, grouped_batches, items, random_batches
    from mobillama_v.train.build import freeze_all_but, parameter_groups
    from mobillama_v.train.data.collate import Collator, PackCollator
    from mobillama_v.train.data.sampler import pack
    from mobillama_v.train.recipe import ModulesSection
    from mobillama_v.train.trainer import enable_gradient_checkpointing

    modules = ModulesSection(projector=1e-3, decoder=1e-3)
    freeze_all_but(network, modules.learning())
    network.train()
    network.vision_tower.eval()
    if recompute:
        enable_gradient_checkpointing(network)
    per_image, spec, tower = network.tokens_per_image, network.config.spec.decoder, network.vision_tower
    mix = draw(turns * samples, per_image=per_image, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, tower.extra + tower.patches, tower.width, generator=generator).half()
    records = items(mix, per_image=per_image, vocabulary=spec.vocab_size, features=features, seed=seed)
    budget = max(int(mix.lengths.max()), round(batch_size * float(mix.lengths.mean())))
    # A rate of nothing: the step costs what it costs, and all methods and turns meet the same weights.
    optimizer = torch.optim.AdamW(
        [group | {"lr": 0.0} for group in parameter_groups(network, modules, 0.0)], lr=0.0, fused=True
    )

    def padded(chosen: list[int], learnt: int) -> float:
        batch = Collator(spec.pad_token_id)([records[each] for each in chosen])
        labels = batch.pop("labels")
        logits = network(**batch).logits  # everywhere
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].reshape(-1, spec.vocab_size), labels[:, 1:].reshape(-1), reduction="sum"
        )
        (loss / learnt).backward()
        return float(loss.detach()) / learnt

    def packed(chosen: list[int], learnt: int) -> float:
        loss = network(**PackCollator()([[records[each] for each in chosen]]), num_items_in_batch=learnt).loss
        loss.backward()
        return float(loss.detach())

    batches: list[dict[str, list[list[int]]]] = []
    for turn in range(turns):
        part = slice(turn * samples, (turn + 1) * samples)
        step = Mix(mix.lengths[part], mix.learnt[part], mix.images[part])
        packs = pack(step.lengths, tokens=budget, seed=turn, total=samples)
        made = {
            RANDOM: random_batches(step, batch_size, seed=turn),
            GROUPED: grouped_batches(step, batch_size),
            PACKED: [packs[each] for each in range(len(packs))],
        }
        batches.append({name: [[turn * samples + i for i in each] for each in found] for name, found in made.items()})

    def size(method: str, chosen: list[int]) -> int:
        lengths = mix.lengths[chosen]
        return int(lengths.sum() if method == PACKED else len(chosen) * lengths.max())

    passes: dict[str, Pass] = {RANDOM: padded, GROUPED: padded, PACKED: packed}
    methods = {method: Measured() for method in passes}
    for method, work in passes.items():  # the warm-up, too: gradients and moments are there afterwards
        largest = max((each for turn in batches for each in turn[method]), key=lambda each: size(method, each))
        work(largest, 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        methods[method].peak = _peak(work, largest)
    for turn, step_batches in enumerate(batches):
        learnt = int(mix.learnt[turn * samples : (turn + 1) * samples].sum())
        for method in rotated(list(passes), turn):
            started = time.perf_counter()
            losses = [passes[method](chosen, learnt) for chosen in step_batches[method]]
            torch.nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            methods[method].seconds.append(time.perf_counter() - started)
            methods[method].losses.append(sum(losses))
            methods[method].positions += sum(size(method, each) for each in step_batches[method])
    return methods, mix, budget


def _peak(work: Pass, chosen: list[int]) -> int:
    from mobillama_v.train.monitor.memory_profile import peak_memory

    return peak_memory(lambda: work(chosen, 1))


EVERY_STEP, CACHED = "tower at every step", "cached features"


def measure_align(network: Any, images: int, turns: int, *, seed: int) -> tuple[dict[str, Measured], float]:
    """Stage 1 on drawn pictures with captions: read, decode and encode them at each step, or read the tower's outputs.

    Returns:
        The methods, and the seconds in which the cache was filled.
    """
    import torch

    from mobillama_v.train.build import freeze_all_but, parameter_groups
    from mobillama_v.train.data.collate import Collator
    from mobillama_v.train.data.dataset import TrainingSet
    from mobillama_v.train.data.features import compute
    from mobillama_v.train.recipe import ModulesSection

    modules = ModulesSection(projector=1e-3)
    freeze_all_but(network, modules.learning())
    network.train()
    network.vision_tower.eval()
    optimizer = torch.optim.AdamW([group | {"lr": 0.0} for group in parameter_groups(network, modules, 0.0)], lr=0.0)
    methods = {EVERY_STEP: Measured(), CACHED: Measured()}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        samples = _captions(network, root, images * turns, seed=seed)
        started = time.perf_counter()
        cache = compute(network, samples.image_paths(), root, root / "features")
        filling = time.perf_counter() - started
        transform = network.config.spec.image
        sets = {
            EVERY_STEP: TrainingSet(samples, image_root=root, transform=transform),
            CACHED: TrainingSet(samples, image_root=root, transform=transform, features=cache),
        }
        collate = Collator(network.config.spec.decoder.pad_token_id)

        def step(method: str, chosen: range) -> float:
            loss = network(**collate([sets[method][each] for each in chosen])).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return float(loss.detach())

        for method in methods:
            step(method, range(2))
        for turn in range(turns):
            for method in rotated(list(methods), turn):
                started = time.perf_counter()
                methods[method].losses.append(step(method, range(turn * images, (turn + 1) * images)))
                methods[method].seconds.append(time.perf_counter() - started)
    return methods, filling


def _captions(network: Any, root: Path, count: int, *, seed: int) -> Any:
    """Samples of one drawn picture (a JPEG of 640 x 480, as COCO's are) and a caption of 16 tokens."""
    import numpy as np
    from PIL import Image

    from mobillama_v.train.data.dataset import Samples
    from mobillama_v.train.data.encoding import IMAGE, SUPERVISED

    rng = np.random.default_rng(seed)
    slots, caption = network.tokens_per_image, 16
    flags = np.concatenate([[0], np.full(slots, IMAGE), np.full(caption, SUPERVISED)]).astype(np.uint8)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(root / f"{number}.jpg", quality=90)
    vocabulary = network.config.spec.decoder.vocab_size
    return Samples(
        ids=rng.integers(3, vocabulary, count * len(flags)).astype(np.int32),
        flags=np.tile(flags, count),
        offsets=np.arange(count + 1, dtype=np.int64) * len(flags),
        images=[(f"{number}.jpg",) for number in range(count)],
        records=[("drawn", str(number)) for number in range(count)],
        shortened=0,
        notes={},
    )


def summary(instruct: dict[str, Measured], align: dict[str, Measured], mix: Mix, *, samples: int) -> dict[str, Any]:
    """Speeds of all methods, what the others take beside them, and how far their losses are apart."""
    from benchmarks.synthetic_mix import PROFILE

    best = instruct[PACKED]
    turns = range(0, len(mix), samples)
    learnt = [int(mix.learnt[first : first + samples].sum()) for first in turns]
    tokens = int(mix.lengths.sum())
    others = (RANDOM, GROUPED)
    return {
        "records": "simulated, with the length profile of LLaVA-1.5's 665k mix",
        "profile": [source._asdict() for source in PROFILE],
        "tokens": tokens,
        "supervised_tokens": sum(learnt),
        "longest": int(mix.lengths.max()),
        "instruct": {
            name: {
                "samples_per_second": spread([samples / each for each in mine.seconds]),
                "supervised_tokens_per_second": spread([a / b for a, b in zip(learnt, mine.seconds, strict=True)]),
                "padding": 1 - tokens / mine.positions,
                "activation_bytes": mine.peak,
                "seconds": mine.seconds,
            }
            for name, mine in instruct.items()
        },
        "packed_is_faster": {name: times_as_fast(best.seconds, instruct[name].seconds) for name in others},
        "packed_activations": {name: best.peak / instruct[name].peak for name in others},
        "largest_difference_of_losses": max(
            abs(a / b - 1) for mine in instruct.values() for a, b in zip(mine.losses, best.losses, strict=True)
        ),
        "align": {name: {"seconds": mine.seconds} for name, mine in align.items()},
        "cached_is_faster": times_as_fast(align[CACHED].seconds, align[EVERY_STEP].seconds),
    }


def table(facts: dict[str, Any]) -> str:
    """The measurement as text: medians over the turns, least and most in brackets."""
    rows = [["stage 2", "samples/s", "supervised tokens/s", "padding", "activations MB"]]
    for name, row in facts["instruct"].items():
        speeds = [formatted(row["samples_per_second"]), formatted(row["supervised_tokens_per_second"], 0)]
        rows.append([name, *speeds, f"{row['padding']:.0%}", f"{row['activation_bytes'] / 1e6:,.0f}"])
    stage1 = [["stage 1", "pictures/s"]]
    for name, row in facts["align"].items():
        stage1.append([name, formatted(spread([facts["images"] / each for each in row["seconds"]]))])
    lines = [*aligned(rows), "", *aligned(stage1), ""]
    lines.append(
        f"records  {facts['records']}: {facts['tokens']:,} tokens, {facts['supervised_tokens']:,} of them learnt"
    )
    lines += [
        f"packed   {formatted(ratio, 2)} x as fast as {name}, "
        f"{facts['packed_activations'][name]:.2f} of its activations"
        for name, ratio in facts["packed_is_faster"].items()
    ]
    lines += [
        f"cached   {formatted(facts['cached_is_faster'], 2)} x as fast as the tower at every step; the cache of "
        f"{facts['images'] * facts['turns']:,} pictures was filled in {facts['cache_filled_in_seconds']:.1f} s, once",
        f"losses   differ by {facts['largest_difference_of_losses']:.1e} at most",
    ]
    return "\n".join(lines)
