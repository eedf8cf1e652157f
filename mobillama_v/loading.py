"""A model by name to an :class:`~mobillama_v.assistant.Assistant`: where it runs, by what, on how many threads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from mobillama_v.assistant import Assistant
from mobillama_v.backends.native.packed_format import BITS, Packed, is_packed, read, weight_files_of
from mobillama_v.backends.numpy import model as light
from mobillama_v.backends.numpy.model import supports
from mobillama_v.backends.select import bits_at_load, is_small, use_native
from mobillama_v.checkpoint import tensor_names
from mobillama_v.config import ModelConfig
from mobillama_v.errors import ConfigError
from mobillama_v.generate import Engine
from mobillama_v.hub import DEFAULT, find_model, read_spec
from mobillama_v.tokenization import TextTokenizer

if TYPE_CHECKING:
    import torch

    from mobillama_v.model.vlm import VisionLanguageModel

_SMALL = 200_000_000  # bytes of weights
_KEPT_PROMPTS = 2  # with their keys and values, of chats that go on
_MAX_THREADS = 8  # decoding waits for memory, which a few threads keep busy


def load(
    name: str = DEFAULT,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    engine: str = "auto",
    bits: int | None = None,
) -> Assistant:
    """Load a model.

    Args:
        name: an embedded model (``nano``), a folder, or a Hugging Face id.
        device: ``auto`` (CUDA, else MPS, else CPU; the CPU for models that :func:`runs_light` names) or a torch device
            such as ``cuda:1``.
        dtype: of torch's weights and activations; by default bfloat16 on CUDA and float32 elsewhere.
        engine: what runs the decoder: ``torch``; ``native``, which packs float weights as it loads them (to 16 bits,
            those of large models to 8); or ``auto``, which is native on a CPU for packed models (``mobillama-v
            quantize``) and for small ones, and torch otherwise.
        bits: 4, 8 or 16, to which float weights are packed for ``native`` in place of what it says above.

    Raises:
        ModelNotFoundError: there is no such model, or it cannot be downloaded.
        ConfigError: a configuration with unknown keys or impossible values; a device or an engine that is not there;
            bits where nothing is packed.
        CheckpointError: files that are missing, damaged or do not fit the configuration.
    """
    folder = find_model(name)
    spec = read_spec(folder)
    tokenizer = TextTokenizer.of_decoder(folder / "tokenizer.json", spec.decoder)
    if bits is not None and bits not in BITS:
        raise ConfigError(f"weights are packed to {', '.join(map(str, BITS[:-1]))} or {BITS[-1]} bits, not {bits}.")
    light_kind = runs_light(folder, spec, device, engine)
    if light_kind and dtype is None and bits is None:
        # In torch a packed decoder stays without memory, as wherever the native engine answers.
        found = light.load(folder, spec, lambda: _torch_parts(folder, spec, "cpu", None, native=is_packed(folder))[0])
        if found is not None:
            seeing, packed = found
            return Assistant(name, spec, tokenizer, seeing, _native(packed, _threads(folder)))
    where = choose_device("cpu" if light_kind else device)
    native = use_native(engine, spec.decoder, device=where.type, packed=is_packed(folder))
    if bits is not None and (is_packed(folder) or not native):
        why = "it is packed already" if is_packed(folder) else "torch answers; choose the native engine"
        raise ConfigError(f"the model {name!r} is not packed to {bits} bits: {why}.")
    import torch

    from mobillama_v.backends.torch import TorchEngine
    from mobillama_v.model.vlm import TorchVisionEncoder

    network, decoder = _torch_parts(folder, spec, where, dtype, native=native, bits=bits)
    runs = TorchEngine(network) if decoder is None else _native(decoder, min(torch.get_num_threads(), _MAX_THREADS))
    return Assistant(name, spec, tokenizer, TorchVisionEncoder(network), runs)


def runs_light(folder: Path, spec: ModelConfig, device: str, engine: str) -> bool:
    """Whether a model runs on the CPU where ``device`` is ``auto``, and without torch if its files are as expected.

    So do models whose image tower is the hybrid one, and whose decoder is packed or small: before another device had
    been found, they have answered.

    Raises:
        ConfigError: no such engine, or ``native`` where it cannot be.
    """
    if device not in ("auto", "cpu") or not supports(spec):
        return False
    packed = is_packed(folder)
    return (packed or is_small(spec.decoder)) and use_native(engine, spec.decoder, device="cpu", packed=packed)


def _torch_parts(
    folder: Path,
    spec: ModelConfig,
    where: torch.device | str,
    dtype: torch.dtype | None,
    *,
    native: bool,
    bits: int | None = None,
) -> tuple[VisionLanguageModel, Packed | None]:
    """The model in torch, and where the native engine answers the packed decoder."""
    import torch

    from mobillama_v.backends.native import packed_vision
    from mobillama_v.backends.native.torch_convert import pack, unpack
    from mobillama_v.model.vlm import drop_decoder, fill_decoder, load_network

    if dtype is None:
        dtype = _default_dtype(torch.device(where).type)
    if is_packed(folder):
        packed = read(folder, spec.decoder)
        names = tensor_names(folder)
        network = load_network(
            folder,
            spec,
            device=where,
            dtype=dtype,
            decoder=False,
            prepare=lambda sketch: packed_vision.hold(sketch, names),
        )
        if native:
            return network, packed
        packed_vision.unpack(network, dtype)
        fill_decoder(network, *unpack(packed))
        return network, None
    network = load_network(folder, spec, device=where, dtype=dtype)
    if not native:
        return network, None
    packed = pack(network.language_model, network.lm_head, spec.decoder, bits or bits_at_load(spec.decoder))
    if not is_small(spec.decoder):  # it would take more memory than what it was packed to
        drop_decoder(network)
    return network, packed


def precision(name: str = DEFAULT, *, device: str = "auto", engine: str = "auto") -> str:
    """What the decoder computes with where :func:`load` gets these arguments, without loading it; errors as there."""
    folder = find_model(name)
    spec = read_spec(folder)
    decoder = spec.decoder
    where = "cpu" if runs_light(folder, spec, device, engine) else choose_device(device).type
    if use_native(engine, decoder, device=where, packed=is_packed(folder)):
        bits = read(folder, decoder).bits if is_packed(folder) else bits_at_load(decoder)
        return f"{bits} bit, native"
    return str(_default_dtype(where)).removeprefix("torch.")


def _default_dtype(device: str) -> torch.dtype:
    import torch

    return torch.bfloat16 if device == "cuda" else torch.float32


def _native(packed: Packed, threads: int) -> Engine:
    from mobillama_v.backends.native.engine import NativeEngine
    from mobillama_v.backends.native.runtime import NativeModel

    return NativeEngine(NativeModel(packed, threads=threads), keep=_KEPT_PROMPTS)


def limit_threads(folder: Path) -> None:
    """Let torch use as many threads in this process as suit the model in ``folder``; for programs, before loading.

    The steps of a small model take microseconds: threads would wait for each other longer than they work, and ten times
    as long where something else runs on the machine.

    Raises:
        CheckpointError: the folder holds no weights.
    """
    import torch

    torch.set_num_threads(1 if _is_quick(folder) else min(torch.get_num_threads(), _MAX_THREADS))


def _threads(folder: Path) -> int:
    """As many as suit the model, where torch is not asked; OpenMP's variable counts here too."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return min(int(wanted), _MAX_THREADS)
    return 1 if _is_quick(folder) else min(processors(), _MAX_THREADS)


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _is_quick(folder: Path) -> bool:
    weights = sum(path.stat().st_size for path in weight_files_of(folder))
    return weights < _SMALL / (4 if is_packed(folder) else 1)  # as much to compute, in a fourth of the bytes


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
