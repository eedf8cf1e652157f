"""A model folder that transformers loads with ``trust_remote_code=True`` where this package is not installed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mobillama_v.checkpoint import iterate_tensors, weight_files
from mobillama_v.config import ModelConfig
from mobillama_v.errors import CheckpointError, ConfigError
from mobillama_v.interop.formats import Exporter

if TYPE_CHECKING:
    from mobillama_v.model.vlm import VisionLanguageModel

_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}


class RemoteCodeExporter(Exporter):
    """Our own format, and the code for it in :data:`~mobillama_v.hf.remote_code.FILE`."""

    help = """Write a model folder that transformers loads without this package.

    The folder holds the code of model and processor: AutoModelForImageTextToText and AutoProcessor load it with
    trust_remote_code=True. Needed are torch, transformers, Pillow, safetensors and, for a CLIP tower, open_clip_torch.
    """
    suffix = ""
    types = tuple(_TYPES)
    default_type = "f16"

    def check(self, spec: ModelConfig, kind: str) -> None:
        """Every model can be written.

        Raises:
            ConfigError: an unknown type.
        """
        if kind not in _TYPES:
            raise ConfigError(f"the type {kind!r} is unknown; choose f32, f16 or bf16.")

    def write(
        self, path: Path, network: VisionLanguageModel, spec: ModelConfig, *, kind: str, folder: Path
    ) -> tuple[str, ...]:
        """Weights, configuration, processor and code.

        Raises:
            CheckpointError: what was written does not read as the model.
        """
        import torch

        from mobillama_v.hf.modeling import MobiLlamaVForConditionalGeneration
        from mobillama_v.hf.processing import MobiLlamaVProcessor

        dtype = getattr(torch, _TYPES[kind])
        model = MobiLlamaVForConditionalGeneration.from_pretrained(folder, dtype=dtype)
        MobiLlamaVProcessor.from_pretrained(folder).save_pretrained(path)
        model.save_pretrained(path, remote_code=True)
        expected = network.to(dtype).state_dict()
        for name, tensor in (item for file in weight_files(path) for item in iterate_tensors(file)):
            if not torch.equal(tensor, expected.pop(name)):
                raise CheckpointError(f"{path} does not hold what was written to it ({name}); check the disk.")
        assert not expected
        return ()
