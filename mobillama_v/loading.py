"""A model by name to an :class:`~mobillama_v.assistant.Assistant`: where it runs, by what, on how many threads."""

from __future__ import annotations

from pathlib import Path

import torch

from mobillama_v.assistant import Assistant
from mobillama_v.checkpoint import tensor_names
from mobillama_v.engine import sight
from mobillama_v.engine.choice import bits_at_load, is_small, use_native
from mobillama_v.engine.convert import pack, unpack
from mobillama_v.engine.files import BITS, Packed, is_packed, read, weight_files_of
from mobillama_v.errors import CheckpointError, ConfigError
from mobillama_v.generation import Engine
from mobillama_v.hub import DEFAULT, find_model, read_spec
from mobillama_v.network import drop_decoder, fill_decoder, load_network
from mobillama_v.tokenization import TextTokenizer

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
        device: ``auto`` (CUDA, else MPS, else CPU) or a torch device such as ``cuda:1``.
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
    where = choose_device(device)
    decoder = spec.decoder
    tokenizer = TextTokenizer.from_file(
        folder / "tokenizer.json", bos_id=decoder.bos_token_id, eos_id=decoder.eos_token_id, pad_id=decoder.pad_token_id
    )
    if tokenizer.vocab_size > decoder.vocab_size:
        raise CheckpointError(
            f"{str(folder)!r} has a tokenizer of {tokenizer.vocab_size} tokens for a model of "
            f"{decoder.vocab_size}; copy the tokenizer.json that belongs to this model."
        )
    if dtype is None:
        dtype = _default_dtype(where.type)
    native = use_native(engine, decoder, device=where.type, packed=is_packed(folder))
    if bits is not None and bits not in BITS:
        raise ConfigError(f"weights are packed to {', '.join(map(str, BITS[:-1]))} or {BITS[-1]} bits, not {bits}.")
    if bits is not None and (is_packed(folder) or not native):
        why = "it is packed already" if is_packed(folder) else "torch answers; choose the native engine"
        raise ConfigError(f"the model {name!r} is not packed to {bits} bits: {why}.")
    if is_packed(folder):
        packed = read(folder, decoder)
        names = tensor_names(folder)
        network = load_network(
            folder, spec, device=where, dtype=dtype, decoder=False, prepare=lambda sketch: sight.hold(sketch, names)
        )
        if not native:
            sight.unpack(network, dtype)
            fill_decoder(network, *unpack(packed))
    else:
        network = load_network(folder, spec, device=where, dtype=dtype)
        if native:
            packed = pack(network.language_model, network.lm_head, decoder, bits or bits_at_load(decoder))
            if not is_small(decoder):  # it would take more memory than what it was packed to
                drop_decoder(network)
    return Assistant(name, network, tokenizer, _native(packed) if native else None)


def precision(name: str = DEFAULT, *, device: str = "auto", engine: str = "auto") -> str:
    """What the decoder computes with where :func:`load` gets these arguments, without loading it; errors as there."""
    folder = find_model(name)
    decoder, where = read_spec(folder).decoder, choose_device(device).type
    if use_native(engine, decoder, device=where, packed=is_packed(folder)):
        bits = read(folder, decoder).bits if is_packed(folder) else bits_at_load(decoder)
        return f"{bits} bit, native"
    return str(_default_dtype(where)).removeprefix("torch.")


def _default_dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def _native(packed: Packed) -> Engine:
    from mobillama_v.engine.native import NativeEngine
    from mobillama_v.engine.runtime import NativeModel

    return NativeEngine(NativeModel(packed, threads=min(torch.get_num_threads(), _MAX_THREADS)), keep=_KEPT_PROMPTS)


def limit_threads(folder: Path) -> None:
    """Let torch use as many threads in this process as suit the model in ``folder``; for programs, before loading.

    The steps of a small model take microseconds: threads would wait for each other longer than they work, and ten times
    as long where something else runs on the machine.

    Raises:
        CheckpointError: the folder holds no weights.
    """
    weights = sum(path.stat().st_size for path in weight_files_of(folder))
    small = weights < _SMALL / (4 if is_packed(folder) else 1)  # as much to compute, in a fourth of the bytes
    torch.set_num_threads(1 if small else min(torch.get_num_threads(), _MAX_THREADS))


def choose_device(name: str) -> torch.device:
    """The torch device that ``name`` means; ``auto`` picks CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: no such device, here or anywhere.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises both for one cause
        raise ConfigError(f"the device {name!r} cannot be used here; choose auto, cpu, cuda or mps.") from error
    return device
