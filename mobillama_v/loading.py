"""A model by name to an :class:`~mobillama_v.assistant.Assistant`: select the backends, then load."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from mobillama_v.assistant import Assistant
from mobillama_v.backends.native.packed_format import Packed, is_packed, read
from mobillama_v.backends.native_vision import NativeVisionEncoder
from mobillama_v.backends.numpy import model as numpy_backend
from mobillama_v.backends.numpy.layers import MisfitError, Tensors
from mobillama_v.backends.numpy.model import NumpyVisionEncoder
from mobillama_v.backends.select import BackendPlan, is_small, select_backend
from mobillama_v.checkpoint import tensor_names
from mobillama_v.config import ModelConfig
from mobillama_v.errors import CheckpointError, needs
from mobillama_v.generate import Engine
from mobillama_v.hub import DEFAULT, find_model, read_spec
from mobillama_v.ocr import Reader
from mobillama_v.tokenization import TextTokenizer

if TYPE_CHECKING:
    import torch

    from mobillama_v.model.vlm import VisionLanguageModel


def load(
    name: str = DEFAULT,
    *,
    device: str = "auto",
    dtype: torch.dtype | None = None,
    engine: str = "auto",
    bits: int | None = None,
    ocr: bool = False,
) -> Assistant:
    """Load a model.

    Args:
        name: an embedded model (``nano``), a folder, or a Hugging Face id.
        device: ``auto`` (CUDA, else MPS, else CPU; the CPU for models that need no torch there) or a torch device such
            as ``cuda:1``.
        dtype: of torch's weights and activations; by default bfloat16 on CUDA and float32 elsewhere.
        engine: what runs the decoder: ``torch``; ``native``, which packs float weights as it loads them (to 16 bits,
            those of large models to 8); ``numpy``, which does so too and needs no compiled library; or ``auto``, which
            is native on a CPU for packed models (``mobillama-v quantize``) and for small ones (numpy where there is no
            such library), and torch otherwise.
        bits: 4, 8 or 16, to which float weights are packed in place of what it says above.
        ocr: read the words in images, and give them to the model as LLaVA-1.5 does.

    Raises:
        ModelNotFoundError: there is no such model, or it cannot be downloaded.
        ConfigError: a configuration with unknown keys or impossible values; a device or an engine that is not there;
            bits where nothing is packed.
        CheckpointError: files that are missing, damaged or do not fit the configuration.
        MissingExtraError: the model needs torch, which the core install lacks; or ``ocr`` its library.
    """
    folder = find_model(name)
    config = read_spec(folder)
    plan = select_backend(config, folder, device=device, engine=engine, bits=bits, dtype=dtype)
    return load_plan(name, folder, config, plan, ocr=ocr)


def load_plan(name: str, folder: Path, config: ModelConfig, plan: BackendPlan, *, ocr: bool = False) -> Assistant:
    """Load the model in ``folder`` as a plan says; errors as :func:`load`."""
    reader = Reader() if ocr else None  # first, for its library may be missing
    assistant = _load(name, folder, config, plan)
    assistant.reader = reader
    return assistant


def _load(name: str, folder: Path, config: ModelConfig, plan: BackendPlan) -> Assistant:
    tokenizer = TextTokenizer.of_decoder(folder / "tokenizer.json", config.decoder)
    if plan.vision != "torch":
        # In torch a packed decoder stays without memory, as wherever another engine answers.
        unpacked = dataclasses.replace(plan, decoder=plan.decoder if is_packed(folder) else "torch")

        def make_network() -> VisionLanguageModel:
            return _torch_parts(folder, config, unpacked)[0]

        def encoder(tensors: Tensors) -> NumpyVisionEncoder:
            if plan.vision == "numpy":
                return NumpyVisionEncoder(tensors, config, make_network)
            return NativeVisionEncoder(tensors, config, make_network, plan.threads)

        try:
            vision, packed = numpy_backend.load(folder, config, encoder)
        except MisfitError as error:
            if importlib.util.find_spec("torch") is None:
                raise CheckpointError(
                    f"the model in {str(folder)!r} cannot be read, as {plan.vision} finds {error}: copy it again, or "
                    "let torch read it (pip install 'mobillama-v[torch]')."
                ) from error
        else:
            return Assistant(name, config, tokenizer, vision, _packed_engine(packed, plan), plan.describe())
        plan = dataclasses.replace(plan, vision="torch", why=f"{plan.why}; {plan.vision} cannot read its files")
    network, decoder = _torch_parts(folder, config, plan)
    from mobillama_v.backends.torch import TorchEngine
    from mobillama_v.model.vlm import TorchVisionEncoder

    engine = TorchEngine(network) if decoder is None else _packed_engine(decoder, plan)
    return Assistant(name, config, tokenizer, TorchVisionEncoder(network), engine, plan.describe())


def _torch_parts(folder: Path, config: ModelConfig, plan: BackendPlan) -> tuple[VisionLanguageModel, Packed | None]:
    """The model in torch, and where another engine runs it the packed decoder."""
    with needs(f"the model in {str(folder)!r}"):
        import torch

    from mobillama_v.backends.native import packed_vision
    from mobillama_v.backends.native.torch_convert import pack, unpack
    from mobillama_v.model.vlm import drop_decoder, fill_decoder, load_network

    dtype: torch.dtype = getattr(torch, plan.dtype)
    if is_packed(folder):
        packed = read(folder, config.decoder)
        names = tensor_names(folder)
        network = load_network(
            folder,
            config,
            device=plan.device,
            dtype=dtype,
            decoder=False,
            prepare=lambda sketch: packed_vision.allocate(sketch, names),
        )
        packed_vision.check(network)
        if plan.decoder == "native":
            return network, packed
        packed_vision.unpack(network, dtype)
        if plan.decoder == "numpy":
            return network, packed
        fill_decoder(network, *unpack(packed))
        return network, None
    network = load_network(folder, config, device=plan.device, dtype=dtype)
    if plan.bits is None or plan.decoder == "torch":
        return network, None
    packed = pack(network.language_model, network.lm_head, config.decoder, plan.bits)
    if not is_small(config):  # it would take more memory than what it was packed to
        drop_decoder(network)
    return network, packed


def _packed_engine(packed: Packed, plan: BackendPlan) -> Engine:
    if plan.decoder == "numpy":
        from mobillama_v.backends.numpy.decoder import NumpyEngine, NumpyModel

        return NumpyEngine(NumpyModel(packed))
    from mobillama_v.backends.native.engine import NativeEngine
    from mobillama_v.backends.native.runtime import NativeModel

    return NativeEngine(NativeModel(packed, threads=plan.threads))
