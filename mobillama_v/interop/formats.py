"""The model formats of other programs: those that can be imported and those that can be exported.

To add one, write a module with a subclass of :class:`Importer` or :class:`Exporter`, and give it a line in
:data:`IMPORTERS` or :data:`EXPORTERS`. ``mobillama-v init`` and ``mobillama-v export`` find it there.

Nothing heavy is imported here: a format's module is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mobillama_v.checkpoint import weight_files
from mobillama_v.config import DecoderConfig, ModelConfig
from mobillama_v.errors import CheckpointError, ConfigError
from mobillama_v.fields import parse_json

if TYPE_CHECKING:
    from torch import Tensor

    from mobillama_v.interop.tensor_files import TensorFiles
    from mobillama_v.model.vlm import VisionLanguageModel

IMPORTERS = ["mobillama_v.interop.llama:LlamaImporter", "mobillama_v.interop.gguf_reader:GGUFImporter"]
"""``MODULE:CLASS`` of each format that can be imported."""
MODEL_IMPORTERS = [
    "mobillama_v.interop.llava:LlavaImporter",
    "mobillama_v.interop.llava_hf:LlavaHFImporter",
    "mobillama_v.interop.llava_onevision:LlavaOnevisionImporter",
    "mobillama_v.interop.internvl:InternVLImporter",
    "mobillama_v.interop.idefics3:Idefics3Importer",
    "mobillama_v.interop.nanovlm:NanoVLMImporter",
]
"""``MODULE:CLASS`` of each format of whole models that can be imported."""
EXPORTERS = {
    "gguf": "mobillama_v.interop.gguf:GGUFExporter",
    "llava-hf": "mobillama_v.interop.llava_hf_export:LlavaHFExporter",
    "onnx": "mobillama_v.interop.onnx:OnnxExporter",
    "remote-code": "mobillama_v.interop.remote_code:RemoteCodeExporter",
}
"""``MODULE:CLASS`` of each format that can be exported, by its name on the command line."""

FFN = Literal["auto", "per-layer", "average"]
GGUF = {"model_type": "gguf"}
"""What stands for the ``config.json`` of a ``.gguf`` file, which holds everything itself."""


@dataclass(frozen=True)
class AverageError:
    """How far one layer's feed-forward network is from the average: ||theirs - average|| / ||theirs||."""

    layer: int
    weights: float
    """Over the three matrices."""
    outputs: float
    """Over answers to random normalized inputs."""


@dataclass(frozen=True)
class ImportedDecoder:
    """A decoder in this project's names: tensors of :class:`~mobillama_v.model.decoder.Decoder`, and the head."""

    spec: DecoderConfig
    decoder: dict[str, Tensor]
    head: Tensor  # [V,D]
    notes: tuple[str, ...] = ()
    """What differs from what the checkpoint says of itself, and what was done about it; a sentence each."""
    averaged: tuple[AverageError, ...] = ()
    """Of each layer, where the feed-forward networks were averaged."""
    template: str = "v1"
    """The conversation template that it was trained with, as far as its format says."""
    tokenizer: str | None = None
    """A ``tokenizer.json``, where the format holds the tokenizer in another form."""


class Importer(ABC):
    """A format of decoders that can be read."""

    title: ClassVar[str]
    """What the format is called in messages."""

    @abstractmethod
    def detect(self, config: dict[str, Any]) -> bool:
        """Whether a checkpoint with this ``config.json`` has the format; of a ``.gguf`` file it is :data:`GGUF`."""

    @abstractmethod
    def load(self, folder: Path, config: dict[str, Any], *, ffn: FFN) -> ImportedDecoder:
        """Read the decoder in ``folder``, which may be a file; ``ffn`` as in :func:`import_decoder`.

        Raises:
            CheckpointError: the checkpoint is damaged, or is none that can be imported.
        """


@dataclass(frozen=True)
class Piece:
    """Where one of our tensors comes from: tensors of theirs, one below another, and then in the shape ``view``.

    ``lora`` names the matrices B and A of an adapter, whose product times the number is added.
    """

    sources: tuple[str, ...]
    view: tuple[int, ...] | None = None
    lora: tuple[str, str, float] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors of theirs that it takes."""
        return self.sources + (self.lora[:2] if self.lora else ())


@dataclass(frozen=True)
class Sources:
    """Where a whole model lies: its folder, its ``tokenizer.json`` (which may not be there), and the folders of the
    language model and the tower, where they lie apart."""

    folder: Path
    tokenizer: Path
    base: Path | None = None
    tower: Path | None = None


@dataclass(frozen=True)
class ModelPlan:
    """How a checkpoint becomes a whole model."""

    spec: ModelConfig
    pieces: dict[str, Piece]
    """Of each tensor of ours, by its name."""
    unused: frozenset[str] = frozenset()
    """Tensors of theirs that are left out; a note says why."""
    notes: tuple[str, ...] = ()
    added_tokens: tuple[str, ...] = ()
    """Special tokens that the model has behind those of its tokenizer."""


class ModelImporter(ABC):
    """A format of whole models that can be read."""

    title: ClassVar[str]
    """What the format is called in messages."""

    @abstractmethod
    def detect(self, config: dict[str, Any]) -> bool:
        """Whether a checkpoint with this ``config.json`` has the format."""

    def files(self, sources: Sources) -> TensorFiles:
        """The tensors, by the names that :meth:`plan` knows.

        Raises:
            CheckpointError: damaged files, or a folder that the format has no use for.
        """
        from mobillama_v.interop.tensor_files import TensorFiles

        if sources.base or sources.tower:
            raise CheckpointError(f"{sources.folder} holds the whole model; leave out --base and --tower.")
        files = TensorFiles()
        files.add(weight_files(sources.folder))
        return files

    @abstractmethod
    def plan(self, sources: Sources, config: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> ModelPlan:
        """Say what becomes of the tensors, whose ``shapes`` are known by their names.

        Raises:
            CheckpointError: it asks for something that no model here has; named.
            ConfigError: sizes that no model can have.
        """


class Exporter(ABC):
    """A format that models can be written in."""

    help: ClassVar[str]
    """Help of the command: a line, and after an empty line what else there is to know."""
    suffix: ClassVar[str]
    """Of a file, with its dot; empty for a folder."""
    types: ClassVar[tuple[str, ...]]
    """Number types that the matrices can have."""
    default_type: ClassVar[str]

    @abstractmethod
    def check(self, spec: ModelConfig, kind: str) -> None:
        """See that a model can be written with matrices of the type ``kind``, before its weights are read.

        Raises:
            ConfigError: an unknown type, or the format cannot hold this model.
            MissingExtraError: a package is not installed.
        """

    @abstractmethod
    def write(
        self, path: Path, network: VisionLanguageModel, spec: ModelConfig, *, kind: str, folder: Path
    ) -> tuple[str, ...]:
        """Write ``network``, which was loaded from ``folder``, to the new file or folder ``path``.

        Returns:
            What is not in the file as it was, a sentence each.
        """


def import_decoder(folder: Path, *, ffn: FFN = "auto") -> ImportedDecoder:
    """Read the decoder in ``folder``, whichever of the known formats it has.

    Args:
        folder: with ``config.json`` and weights, or a ``.gguf`` file.
        ffn: ``auto`` takes feed-forward networks that are equal in all layers as one shared network, and refuses
            others. ``per-layer`` keeps a network in each layer. ``average`` takes the mean of the layers' networks as
            the shared one, to start a training from, and measures how far each layer is from it.

    Raises:
        CheckpointError: an unknown format, a damaged checkpoint, or unequal networks; named.
        ConfigError: shapes that no decoder can have.
    """
    config = GGUF if folder.suffix == ".gguf" else read_config(folder)
    found: Importer = _importer(IMPORTERS, folder, config)
    return found.load(folder, config, ffn=ffn)


def model_importer(folder: Path) -> tuple[ModelImporter, dict[str, Any]]:
    """The importer of the whole model in ``folder``, and its ``config.json``.

    Raises:
        CheckpointError: an unknown format.
    """
    config = read_config(folder)
    return _importer(MODEL_IMPORTERS, folder, config), config


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON mapping in ``folder``.

    Raises:
        CheckpointError: it cannot be read, or is no mapping.
    """
    path = folder / name
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); a checkpoint's folder needs its {name}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON mapping; copy it again.")
    return config


def _importer(places: list[str], folder: Path, config: dict[str, Any]) -> Any:
    importers = [_load(each)() for each in places]
    found = next((each for each in importers if each.detect(config)), None)
    if found is None:
        known = ", ".join(each.title for each in importers)
        kind = config.get("model_type")
        raise CheckpointError(f"{folder} holds a model of type {kind!r}; what can be imported: {known}.")
    return found


def template_of(chat_template: str) -> str:
    """Our name of a template in Jinja: ``chatml`` by its tokens, else ``v1``."""
    return "chatml" if "<|im_start|>" in chat_template else "v1"


def decoder_type(spec: DecoderConfig) -> str:
    """What transformers and llama.cpp call such a decoder.

    Raises:
        ConfigError: neither has one like it.
    """
    if spec.qkv_bias and spec.qk_norm:
        raise ConfigError("other programs have no decoder with both qkv_bias and qk_norm; it cannot be exported.")
    return "qwen2" if spec.qkv_bias else "qwen3" if spec.qk_norm else "llama"


def exporter(name: str) -> Exporter:
    """The exporter of that name in :data:`EXPORTERS`."""
    return _load(EXPORTERS[name])()


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
