"""The tensors of a checkpoint where they lie: names and shapes at once, numbers one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mobillama_v.checkpoint import iterate_tensors
from mobillama_v.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from mobillama_v.interop.formats import Piece


class TensorFiles:
    """The tensors of a checkpoint, by name, where they lie."""

    def __init__(self, paths: list[Path]) -> None:
        """Read the names and shapes.

        Raises:
            CheckpointError: a damaged file, one that holds more than tensors, or a name that is there twice.
        """
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._pickle: tuple[Path, dict[str, Tensor]] | None = None
        for path in paths:
            for name, shape in _shapes(path):
                if name in self.shapes:
                    raise CheckpointError(f"{path.parent} holds {name} in two of its files; copy the checkpoint again.")
                self._files[name], self.shapes[name] = path, shape

    def get(self, name: str) -> Tensor:
        """A copy of one tensor."""
        path = self._files[name]
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name).clone()
        if self._pickle is None or self._pickle[0] != path:
            self._pickle = path, dict(iterate_tensors(path))
        return self._pickle[1][name].clone()

    def read(self, piece: Piece) -> Tensor:
        """One of our tensors."""
        import torch

        parts = [self.get(name) for name in piece.sources]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole if piece.view is None else whole.view(piece.view)


def _shapes(path: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    if path.suffix != ".safetensors":
        yield from ((name, tuple(tensor.shape)) for name, tensor in iterate_tensors(path))
        return
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                yield name, tuple(file.get_slice(name).get_shape())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again.") from error
