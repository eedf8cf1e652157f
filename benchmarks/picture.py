"""``python -m benchmarks picture``: from a picture to the first word, by our engine and by torch, side by side.

Weights are random, and the same for all. Everything runs in one process, by turns, so that what else the machine does
hurts all; processor time is given beside the time of the clock, which other programs stretch.
"""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from benchmarks.harness import OutputOption, finish, machine, rotated, times_as_fast
from mobillama_v.cli.bench import aligned, formatted, spread
from mobillama_v.config import ModelConfig, ProjectorConfig
from mobillama_v.errors import ConfigError

if TYPE_CHECKING:
    from mobillama_v.model.vlm import VisionLanguageModel

_BASE = "torch fp32"
_NATIVE, _DYNAMIC = "native", "torch dynamic int8"
BACKENDS = (_NATIVE, _BASE, _DYNAMIC)
_VISION = ("vision_tower", "projector")


def bench_picture(
    tower: Annotated[str, typer.Option(help="A vision transformer of open_clip.")] = "ViT-L-14-336-quickgelu",
    decoder: Annotated[str, typer.Option(help="A preset, which gives the decoder's shape.")] = "mobillama-0.5b",
    factor: Annotated[int, typer.Option(min=1, help="Side of the squares that pixel shuffle merges.")] = 1,
    words: Annotated[int, typer.Option(min=1, help="Tokens of the prompt beside the picture.")] = 32,
    bits: Annotated[int, typer.Option(help="Of the native decoder: 4, 8 or 16.")] = 4,
    turns: Annotated[int, typer.Option(min=1, help="Times that every backend is measured.")] = 5,
    threads: Annotated[int, typer.Option(min=0, help="Of each backend; 0: as many as there are processors.")] = 0,
    output: OutputOption = None,
) -> None:
    """Time tower, projector and prompt up to the first word: the native engine, torch, and torch's dynamic int8."""
    import torch

    from mobillama_v.backends.native_vision import supports
    from mobillama_v.backends.select import processors
    from mobillama_v.model.vlm import VisionLanguageModel

    count = threads or processors()
    spec = _spec(tower, decoder, factor)
    if reason := supports(spec):
        raise ConfigError(f"there is nothing to compare: {reason}.")
    torch.set_num_threads(count)
    torch.manual_seed(0)
    network = VisionLanguageModel(spec).eval().requires_grad_(False)
    pixels = np.random.default_rng(0).standard_normal((3, spec.image.size, spec.image.size)).astype(np.float32)
    run = {
        _NATIVE: _native(network, spec, bits, count),
        _BASE: _torch(network),
        _DYNAMIC: _torch(_dynamic(network)),
    }
    tokens: dict[str, np.ndarray[Any, Any]] = {}
    seconds: dict[str, dict[str, list[float]]] = {name: {} for name in BACKENDS}
    for turn in range(turns + 1):  # the first warms up
        for name in rotated(BACKENDS, turn):
            tokens[name], found = _once(*run[name], pixels, spec, words)
            for part, value in found.items():
                if turn:
                    seconds[name].setdefault(part, []).append(value)
    facts = {
        **{"bench": "picture", "tower": tower, "decoder": decoder, "bits": bits, "turns": turns},
        **{**machine(), "threads": count, "seconds": seconds, "weights": "random"},
        "visual_tokens": len(tokens[_BASE]),
        "features_differ_by": {name: _distance(tokens[name], tokens[_BASE]) for name in (_NATIVE, _DYNAMIC)},
        "times_as_fast": {
            part: {name: times_as_fast(seconds[name][part], seconds[_BASE][part]) for name in (_NATIVE, _DYNAMIC)}
            for part in seconds[_BASE]
        },
    }
    finish(facts, _table(facts), output)


def _spec(tower: str, decoder: str, factor: int) -> ModelConfig:
    from open_clip import get_model_config

    from mobillama_v.presets import PRESETS

    config = get_model_config(tower)
    if config is None or decoder not in PRESETS:
        raise ConfigError(f"there is no {f'tower {tower}' if config is None else f'preset {decoder}'}.")
    standard = ModelConfig()
    return dataclasses.replace(
        standard,
        decoder=PRESETS[decoder].decoder,
        tower=dataclasses.replace(standard.tower, model=tower),
        projector=ProjectorConfig("pixel_shuffle_mlp", factor) if factor > 1 else standard.projector,
        image=dataclasses.replace(standard.image, size=config["vision_cfg"]["image_size"]),
    )


def _native(network: VisionLanguageModel, spec: ModelConfig, bits: int, threads: int) -> tuple[Any, Any]:
    """The model packed as `quantize` does."""
    from mobillama_v.backends.native import packed_vision
    from mobillama_v.backends.native.engine import NativeEngine
    from mobillama_v.backends.native.runtime import NativeModel
    from mobillama_v.backends.native.torch_convert import pack
    from mobillama_v.backends.native_vision import NativeVisionEncoder
    from mobillama_v.backends.numpy.layers import Tensors

    packed = pack(network.language_model, network.lm_head, spec.decoder, bits, search=False)
    sighted: Any = copy.copy(network)  # with a tower and a projector of its own
    sighted._modules = {**network._modules, **{each: copy.deepcopy(network._modules[each]) for each in _VISION}}
    packed_vision.pack(sighted)
    state = {name: each.numpy() for name, each in sighted.state_dict().items() if name.startswith(_VISION)}
    vision = NativeVisionEncoder(Tensors(state), spec, lambda: network, threads)
    return vision, NativeEngine(NativeModel(packed, threads=threads))


def _torch(network: VisionLanguageModel) -> tuple[Any, Any]:
    from mobillama_v.backends.torch import TorchEngine
    from mobillama_v.model.vlm import TorchVisionEncoder

    return TorchVisionEncoder(network), TorchEngine(network)


def _dynamic(network: VisionLanguageModel) -> VisionLanguageModel:
    """With torch's dynamic int8 in all linear layers but the head; open_clip's attention reads its own weights."""
    import torch

    whole = copy.deepcopy(network)
    for name in (*_VISION, "language_model"):
        with warnings.catch_warnings():  # it is deprecated, and what people use
            warnings.simplefilter("ignore")
            part = torch.ao.quantization.quantize_dynamic(getattr(whole, name), {torch.nn.Linear}, dtype=torch.qint8)
        setattr(whole, name, part)
    return whole


def _once(vision: Any, engine: Any, pixels: Any, spec: ModelConfig, words: int) -> tuple[Any, dict[str, float]]:
    """Visual tokens of the picture, and seconds of each part by the clock and of the processors."""
    from mobillama_v.generate import Prompt
    from mobillama_v.prompt import Encoded

    def timed(part: str, f: Callable[[], Any]) -> Any:
        before = time.perf_counter(), time.process_time()
        result = f()
        found[part] = time.perf_counter() - before[0]
        found[f"{part}, processor"] = time.process_time() - before[1]
        return result

    found: dict[str, float] = {}
    features = timed("picture", lambda: vision.encode_image(pixels))
    slots = len(features)
    ids = [i % 100 + 3 for i in range(slots + words)]
    encoded = Encoded(ids, [-100] * len(ids), [i < slots for i in range(len(ids))])
    timed("prefill", lambda: int(np.asarray(engine.prefill([Prompt(encoded, [features])], room=1)[1])[0].argmax()))
    found["first word"] = found["picture"] + found["prefill"]
    found["first word, processor"] = found["picture, processor"] + found["prefill, processor"]
    return np.asarray(features), found


def _distance(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _table(facts: dict[str, Any]) -> str:
    seconds, fast = facts["seconds"], facts["times_as_fast"]
    shape = f"{facts['tower']}, {facts['visual_tokens']} visual tokens, {facts['decoder']}"
    rows = [["seconds: median (least-most)", *BACKENDS, "native: times as fast as torch fp32"]]
    for part in seconds[_BASE]:
        found = [formatted(spread(seconds[name][part]), 3) for name in BACKENDS]
        rows.append([part, *found, formatted(fast[part][_NATIVE], 2)])
    apart = ", ".join(f"{name} {100 * each:.2f} %" for name, each in facts["features_differ_by"].items())
    threads = f"{facts['threads']} thread" + "s" * (facts["threads"] > 1)
    head = f"{shape}, native at {facts['bits']} bits, random weights, {threads}"
    return "\n".join([head, *aligned(rows), f"Visual tokens differ from torch's in fp32 by: {apart}."])
