"""Read a model folder without torch, where it holds a model that can be answered for without it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mobillama_v.backends.native.pack import HEAD, assemble, pack_halves
from mobillama_v.backends.native.packed_format import Packed, is_packed, read
from mobillama_v.backends.numpy.hybrid_lite0 import HybridVisionEncoder
from mobillama_v.backends.numpy.layers import Array, MisfitError, Tensors
from mobillama_v.checkpoint import weight_files
from mobillama_v.config import ModelConfig

if TYPE_CHECKING:
    from mobillama_v.model.vlm import Network


class NumpyVisionEncoder:
    """What sees for an assistant: the hybrid tower over numpy."""

    device = "cpu"

    def __init__(self, sight: HybridVisionEncoder, make_network: Callable[[], Network]) -> None:
        self.tokens_per_image, self.encode_image = sight.tokens_per_image, sight.encode_image
        self._make_network = make_network

    @cached_property
    def network(self) -> Network:
        """The model in torch, which is loaded now."""
        return self._make_network()


def load(
    folder: Path, spec: ModelConfig, make_network: Callable[[], Network]
) -> tuple[NumpyVisionEncoder, Packed] | None:
    """A model of which :func:`~mobillama_v.backends.numpy.hybrid_lite0.fits` is true: what sees for it, and its
    decoder.

    Float weights of the decoder are packed to 16 bits. None where the files do not hold what they should in a way that
    is known here: who loads them into torch knows more ways, and says what is wrong.

    Raises:
        CheckpointError: there are no weights, a packed file is damaged, or weights are not finite.
    """
    files = _read(weight_files(folder))
    if files is None:
        return None
    tensors = Tensors(files)
    try:
        sight = HybridVisionEncoder(tensors, spec)
        if is_packed(folder):
            packed = read(folder, spec.decoder)
        else:

            def take(name: str, *shape: int) -> Array:
                return tensors.take(name if name == HEAD else f"language_model.{name}", *shape)

            packed = assemble(take, spec.decoder, 16, pack_halves)
    except MisfitError:
        return None
    return None if tensors.left else (NumpyVisionEncoder(sight, make_network), packed)


def _read(paths: list[Path]) -> dict[str, Array] | None:
    """Everything in weight files; None where one is of another format, damaged, or holds types that numpy lacks."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    tensors: dict[str, Array] = {}
    for path in paths:
        if path.suffix != ".safetensors":
            return None
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError, KeyError, TypeError):
            return None
    return tensors
