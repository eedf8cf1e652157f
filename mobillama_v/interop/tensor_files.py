"""The tensors of a checkpoint where they lie: names and shapes at once, numbers one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mobillama_v.checkpoint import iterate_tensors
from mobillama_v.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from mobillama_v.interop.formats import Piece


class TensorFiles:
    """The tensors of a checkpoint, by name, where they lie."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[Path, str]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._pickle: tuple[Path, dict[str, Tensor]] | None = None

    def add(self, paths: list[Path], renamed: Callable[[str], str | None] = str) -> None:
        """Read the names and shapes in files.

        Args:
            paths: of the files.
            renamed: the name that a tensor gets here; None leaves it out.

        Raises:
            CheckpointError: a damaged file, one that holds more than tensors, or a name that is there twice.
        """
        for path in paths:
            for theirs, shape in _shapes(path):
                name = renamed(theirs)
                if name in self.shapes:
                    raise CheckpointError(f"{path} holds {name}, and so does another file; copy the checkpoint again.")
                if name is not None:
                    self._files[name], self.shapes[name] = (path, theirs), shape

    def get(self, name: str) -> Tensor:
        """A copy of one tensor."""
        path, name = self._files[name]
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
        if piece.lora is not None:
            b, a = (self.get(name).float() for name in piece.lora[:2])
            whole = (whole.float() + piece.lora[2] * (b @ a)).to(whole.dtype)
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
