"""``mobillama-v bench train``: what packing, logits where they are learnt, and cached features save on this machine."""

from __future__ import annotations

import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mobillama_v.cli.options import ModelOption

if TYPE_CHECKING:
    from mobillama_v.train.data.synthetic_mix import Mix

_CLOSE = 1e-3  # relative difference of two ways' losses that rounding explains


@dataclass
class Way:
    """What was measured of one way of learning from the same records: by turn, unless it is said otherwise."""

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
    turns: Annotated[int, typer.Option(min=1, help="Optimizer steps that every way is measured for.")] = 5,
    images: Annotated[int, typer.Option(min=2, help="Pictures of a step of stage 1.")] = 32,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Recompute activations, as LLaVA's recipe does.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the records.")] = 0,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the measurement as JSON.")] = None,
) -> None:
    """Training steps side by side: random padded batches, LLaVA's grouping, packs; stage 1 with and without a cache.

    The records are simulated, with the lengths of LLaVA-1.5's mix of 665k conversations; all ways learn from the same
    ones by turns, so that what else the machine does hurts all. Exit code 1: their losses differ.
    """
    from mobillama_v.hub import find_model
    from mobillama_v.train.build import load_start
    from mobillama_v.train.data.check import replacing

    network = load_start(find_model(model), seed=seed)
    instruct, mix, tokens = measure_instruct(
        network, samples, batch_size, turns, seed=seed, recompute=gradient_checkpointing
    )
    align, filling = measure_align(network, images, turns, seed=seed)
    facts = as_dict(model, instruct, align, mix, samples=samples, batch_size=batch_size, pack_tokens=tokens) | {
        "gradient_checkpointing": gradient_checkpointing,
        "images": images,
        "cache_filled_in_seconds": filling,
    }
    print(table(facts))
    if output:
        with replacing(output) as file:
            file.write(json.dumps(facts, indent=1) + "\n")
    if facts["largest_difference_of_losses"] > _CLOSE:
        raise typer.Exit(1)


RANDOM, GROUPED, PACKED = "random, padded", "LLaVA's grouping, padded", "packed"


def measure_instruct(
    network: Any, samples: int, batch_size: int, turns: int, *, seed: int, recompute: bool
) -> tuple[dict[str, Way], Mix, int]:
    """Stage 2 on given outputs of the tower: each turn is a step from the same weights on the next ``samples`` records.

    Returns:
        The ways, all records, and the tokens of a pack.
    """
    import torch

    from mobillama_v.train.build import freeze_all_but, parameter_groups
    from mobillama_v.train.data.collate import Collator, PackCollator
    from mobillama_v.train.data.sampler import pack
    from mobillama_v.train.data.synthetic_mix import Mix, draw, grouped_batches, items, random_batches
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
    # A rate of nothing: the step costs what it costs, and all ways and turns meet the same weights.
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
        batches.append({way: [[turn * samples + i for i in each] for each in found] for way, found in made.items()})

    def size(way: str, chosen: list[int]) -> int:
        lengths = mix.lengths[chosen]
        return int(lengths.sum() if way == PACKED else len(chosen) * lengths.max())

    passes: dict[str, Pass] = {RANDOM: padded, GROUPED: padded, PACKED: packed}
    ways = {way: Way() for way in passes}
    for way, work in passes.items():  # the warm-up, too: gradients and moments are there afterwards
        largest = max((each for turn in batches for each in turn[way]), key=lambda each: size(way, each))
        work(largest, 1)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        ways[way].peak = _peak(work, largest)
    for turn, step_batches in enumerate(batches):
        learnt = int(mix.learnt[turn * samples : (turn + 1) * samples].sum())
        for way in _rotated(list(passes), turn):
            started = time.perf_counter()
            losses = [passes[way](chosen, learnt) for chosen in step_batches[way]]
            torch.nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
            ways[way].seconds.append(time.perf_counter() - started)
            ways[way].losses.append(sum(losses))
            ways[way].positions += sum(size(way, each) for each in step_batches[way])
    return ways, mix, budget


def _peak(work: Pass, chosen: list[int]) -> int:
    from mobillama_v.train.monitor.memory_profile import peak_memory

    return peak_memory(lambda: work(chosen, 1))


def _rotated(ways: list[str], turn: int) -> list[str]:
    """The ways, another one first at each turn."""
    first = turn % len(ways)
    return ways[first:] + ways[:first]


EVERY_STEP, CACHED = "tower at every step", "cached features"


def measure_align(network: Any, images: int, turns: int, *, seed: int) -> tuple[dict[str, Way], float]:
    """Stage 1 on drawn pictures with captions: read, decode and encode them at each step, or read the tower's outputs.

    Returns:
        The ways, and the seconds in which the cache was filled.
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
    ways = {EVERY_STEP: Way(), CACHED: Way()}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        samples = _captions(network, root, images * turns, seed=seed)
        started = time.perf_counter()
        cache = compute(network, samples.image_paths(), root, root / "features", every=1e9)
        filling = time.perf_counter() - started
        transform = network.config.spec.image
        sets = {
            EVERY_STEP: TrainingSet(samples, image_root=root, transform=transform),
            CACHED: TrainingSet(samples, image_root=root, transform=transform, features=cache),
        }
        collate = Collator(network.config.spec.decoder.pad_token_id)

        def step(way: str, chosen: range) -> float:
            loss = network(**collate([sets[way][each] for each in chosen])).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return float(loss.detach())

        for way in ways:
            step(way, range(2))
        for turn in range(turns):
            for way in _rotated(list(ways), turn):
                started = time.perf_counter()
                ways[way].losses.append(step(way, range(turn * images, (turn + 1) * images)))
                ways[way].seconds.append(time.perf_counter() - started)
    return ways, filling


def _captions(network: Any, root: Path, count: int, *, seed: int) -> Any:
    """Samples of one drawn picture (a JPEG of 640 x 480, as COCO's are) and a caption of 16 tokens."""
    import numpy as np
    from PIL import Image

    from mobillama_v.train.data.dataset import Samples
    from mobillama_v.train.data.preprocess import IMAGE, SUPERVISED

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
    )


def as_dict(
    model: str,
    instruct: dict[str, Way],
    align: dict[str, Way],
    mix: Mix,
    *,
    samples: int,
    batch_size: int,
    pack_tokens: int,
) -> dict[str, Any]:
    """The measurement with what it was made on."""
    import torch

    from mobillama_v.train.data.synthetic_mix import PROFILE

    turns = len(instruct[PACKED].seconds)
    learnt = [int(mix.learnt[turn * samples : (turn + 1) * samples].sum()) for turn in range(turns)]
    tokens = int(mix.lengths.sum())
    rows = {}
    for name, way in instruct.items():
        rows[name] = {
            "samples_per_second": spread([samples / each for each in way.seconds]),
            "supervised_tokens_per_second": spread([a / b for a, b in zip(learnt, way.seconds, strict=True)]),
            "padding": 1 - tokens / way.positions,
            "activation_bytes": way.peak,
            "seconds": way.seconds,
        }
    wanted = instruct[PACKED].losses
    apart = [abs(a / b - 1) for way in instruct.values() for a, b in zip(way.losses, wanted, strict=True)]
    return {
        "bench": "train",
        "records": "simulated, with the length profile of LLaVA-1.5's 665k mix",
        "profile": [source._asdict() for source in PROFILE],
        "model": model,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "turns": turns,
        "samples_of_a_step": samples,
        "batch_size": batch_size,
        "pack_tokens": pack_tokens,
        "tokens": tokens,
        "supervised_tokens": sum(learnt),
        "longest": int(mix.lengths.max()),
        "instruct": rows,
        "packed_is_faster": {
            name: spread([a / b for a, b in zip(instruct[name].seconds, instruct[PACKED].seconds, strict=True)])
            for name in (RANDOM, GROUPED)
        },
        "packed_activations": {name: instruct[PACKED].peak / instruct[name].peak for name in (RANDOM, GROUPED)},
        "largest_difference_of_losses": max(apart),
        "align": {name: {"seconds": way.seconds} for name, way in align.items()},
        "cached_is_faster": spread(
            [a / b for a, b in zip(align[EVERY_STEP].seconds, align[CACHED].seconds, strict=True)]
        ),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def _told(found: dict[str, float], digits: int) -> str:
    return f"{found['median']:,.{digits}f} ({found['least']:,.{digits}f}-{found['most']:,.{digits}f})"


def table(facts: dict[str, Any]) -> str:
    """The measurement as text: medians over the turns, least and most in brackets."""
    import io

    from rich import box
    from rich.console import Console
    from rich.table import Table

    written = io.StringIO()
    console = Console(file=written, width=120, highlight=False, markup=False)
    ways = Table("stage 2", "samples/s", "supervised tokens/s", "padding", "activations MB", box=box.SIMPLE)
    for name, row in facts["instruct"].items():
        ways.add_row(
            name,
            _told(row["samples_per_second"], 1),
            _told(row["supervised_tokens_per_second"], 0),
            f"{row['padding']:.0%}",
            f"{row['activation_bytes'] / 1e6:,.0f}",
        )
    console.print(ways)
    stage1 = Table("stage 1", "pictures/s", box=box.SIMPLE)
    for name, row in facts["align"].items():
        stage1.add_row(name, _told(spread([facts["images"] / each for each in row["seconds"]]), 1))
    console.print(stage1)
    lines = [f"records  {facts['records']}: {facts['tokens']:,} tokens, {facts['supervised_tokens']:,} of them learnt"]
    lines += [
        f"packed   {_told(facts['packed_is_faster'][name], 2)} x as fast as {name}, "
        f"{facts['packed_activations'][name]:.2f} of its activations"
        for name in (RANDOM, GROUPED)
    ]
    lines += [
        f"cached   {_told(facts['cached_is_faster'], 2)} x as fast as the tower at every step; the cache of "
        f"{facts['images'] * facts['turns']:,} pictures was filled in {facts['cache_filled_in_seconds']:.1f} s, once",
        f"losses   differ by {facts['largest_difference_of_losses']:.1e} at most",
    ]
    return written.getvalue() + "\n".join(lines)
