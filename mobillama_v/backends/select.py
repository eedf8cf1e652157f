"""Which backend computes what, decided in one place before anything is loaded.

The decoder runs in the native library, over numpy or in torch, and so do the image tower and the projector. Each
backend says by its ``supports`` why it cannot run a model; here is said which one does.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mobillama_v.backends import native_vision
from mobillama_v.backends.native import library, runtime
from mobillama_v.backends.native.packed_format import BITS, is_packed, read_bits, weight_files_of
from mobillama_v.backends.numpy import model as numpy_backend
from mobillama_v.config import ModelConfig
from mobillama_v.errors import ConfigError, needs

if TYPE_CHECKING:
    import torch

ENGINES = ("auto", "native", "numpy", "torch")
_SMALL_DECODER = 50_000_000  # parameters, which are packed within a moment and small whatever their bits
_QUICK = 200_000_000  # bytes of weights; steps take microseconds, and threads would wait longer than they work
_MAX_THREADS = 8  # decoding waits for memory, which a few threads keep busy


@dataclass(frozen=True)
class BackendPlan:
    """What runs a model, and why. :func:`mobillama_v.load` carries it out."""

    vision: Literal["native", "numpy", "torch"]
    decoder: Literal["native", "numpy", "torch"]
    device: str
    """By torch's name."""
    bits: int | None
    """Of the packed decoder's weights; None where torch runs it."""
    dtype: str
    """Of what torch computes, by torch's name."""
    threads: int
    why: str
    """What decided on the decoder's backend."""

    @property
    def precision(self) -> str:
        """What the decoder computes with."""
        return self.dtype if self.decoder == "torch" else f"{self.bits} bit, {self.decoder}"

    def describe(self) -> str:
        """The plan in a line."""
        number = f"{self.threads} thread" + "s" * (self.threads > 1)
        return (
            f"decoder: {self.decoder} ({f'{self.bits} bit' if self.bits else self.dtype}, {self.why}), "
            f"vision: {self.vision}, device: {self.device}, {number}"
        )

    def limit_threads(self) -> None:
        """Let torch use the planned threads in this process, unless ``OMP_NUM_THREADS`` says how many; for programs."""
        if "torch" in (self.vision, self.decoder) and "OMP_NUM_THREADS" not in os.environ:
            import torch

            torch.set_num_threads(self.threads)


def select_backend(
    config: ModelConfig,
    folder: Path,
    *,
    device: str = "auto",
    engine: str = "auto",
    bits: int | None = None,
    dtype: torch.dtype | None = None,
) -> BackendPlan:
    """Decide what runs the model in ``folder``; the arguments are those of :func:`mobillama_v.load`.

    The native library runs the decoder where ``engine`` asks for it, and by itself on a CPU where the decoder is packed
    or small; numpy does where there is no such library, or it cannot run this shape. Where one of them knows the image
    tower too, nothing needs torch: then ``auto`` stays on the CPU, for such a model has answered before another device
    had been found. Torch is imported only where a device must be found.

    Raises:
        ConfigError: no such engine or device, an engine that cannot be, or ``bits`` where nothing is packed.
        CheckpointError: the folder holds no weights, or a packed file that is damaged.
        MissingExtraError: it needs torch, which is not installed.
    """
    if engine not in ENGINES:
        raise ConfigError(f"the engine {engine!r} is unknown; choose {', '.join(ENGINES[:-1])} or {ENGINES[-1]}.")
    if bits is not None and bits not in BITS:
        raise ConfigError(f"weights are packed to {', '.join(map(str, BITS[:-1]))} or {BITS[-1]} bits, not {bits}.")
    packed, small = is_packed(folder), is_small(config)
    gains = "it is packed" if packed else "it is small" if small else ""
    vision: Literal["native", "numpy", "torch"] = (
        "numpy" if not numpy_backend.supports(config) else "torch" if native_vision.supports(config) else "native"
    )
    # Then nothing needs torch unless the decoder does.
    light = device in ("auto", "cpu") and bool(gains) and vision != "torch"
    numpy_can = light and (small or importlib.util.find_spec("torch") is None)
    decoder, why = _choose_decoder(engine, config, "cpu", gains, numpy_can) if light else ("torch", "")
    if decoder == "torch":
        with needs(f"the model in {str(folder)!r}"):
            light, device = False, str(choose_device(device))
        decoder, why = _choose_decoder(engine, config, device, gains, False)
    else:
        device = "cpu"
    if bits is not None and (packed or decoder == "torch"):
        why = "it is packed already" if packed else "torch answers; choose the native engine"
        raise ConfigError(f"the model in {str(folder)!r} is not packed to {bits} bits: {why}.")
    if decoder != "torch":
        bits = read_bits(folder) if packed else bits or (16 if small else 8)
    number = str(dtype or ("bfloat16" if device.startswith("cuda") else "float32")).removeprefix("torch.")
    return BackendPlan(
        vision=vision if light and dtype is None and (packed or bits == 16) else "torch",
        decoder=decoder,
        device=device,
        bits=bits,
        dtype=number,
        threads=_threads(folder, packed),
        why=why,
    )


def is_small(config: ModelConfig) -> bool:
    """Whether the decoder loses nothing at 16 bits: what torch costs it is its overhead a step, not its bytes."""
    return config.decoder.num_params() <= _SMALL_DECODER


def _choose_decoder(
    engine: str, config: ModelConfig, device: str, gains: str, numpy_can: bool
) -> tuple[Literal["native", "numpy", "torch"], str]:
    """What runs the decoder, and why. ``gains`` says why another than torch would pay, if so.

    Raises:
        ConfigError: ``native`` or ``numpy`` was asked for and cannot be.
    """
    if engine == "torch":
        return "torch", "asked for"
    on_cpu = "" if device == "cpu" else f"it runs on a CPU and the device is {device}; choose --device cpu"
    reason = on_cpu if engine == "numpy" else runtime.supports(config.decoder, device)
    if engine != "auto":
        if reason:
            raise ConfigError(f"the {engine} engine cannot be used: {reason}, or choose --engine torch.")
        return ("numpy" if engine == "numpy" else "native"), "asked for"
    if on_cpu or not gains:
        return "torch", f"the device is {device}" if on_cpu else "it is large and not packed"
    if not reason:
        return "native", gains
    if reason == library.missing():
        answers = "numpy" if numpy_can else "torch"
        _tell(f"note: {answers} answers; the native engine, which decodes faster, is not here ({reason}).")
    return ("numpy" if numpy_can else "torch"), reason


@lru_cache
def _tell(message: str) -> None:
    """Say it once in a process: on stderr, unless the program has a logger of its own."""
    logging.getLogger("mobillama_v").warning(message)


def _threads(folder: Path, packed: bool) -> int:
    """As many as suit the model; ``OMP_NUM_THREADS`` and, where torch is there, its own setting bound them."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return min(int(asked), _MAX_THREADS)
    weights = sum(path.stat().st_size for path in weight_files_of(folder))
    if weights * (4 if packed else 1) < _QUICK:  # packed, there is as much to compute in a fourth of the bytes
        return 1
    import sys

    torch: Any = sys.modules.get("torch")
    return min(torch.get_num_threads() if torch else processors(), _MAX_THREADS)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(name: str) -> torch.device:
    """The torch device that ``name`` means; ``auto`` picks CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: no such device, here or anywhere.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises both for one cause
        raise ConfigError(f"the device {name!r} cannot be used here; choose auto, cpu, cuda or mps.") from error
    return device
