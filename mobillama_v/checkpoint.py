"""Weights from a model folder into a module, strictly, and without running anything that a file holds.

safetensors is the format; ``.bin`` is read with ``weights_only=True``, which refuses everything that is no tensor.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobillama_v.errors import CheckpointError
from mobillama_v.fields import is_text, parse_json, shown

if TYPE_CHECKING:
    from torch import Tensor, nn

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEX = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SHOWN = 3  # names in a message; a wrong model would else print hundreds


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights: one, or the shards that its index names.

    Raises:
        CheckpointError: none, a shard is missing, or an index that cannot be read or points out of the folder.
    """
    for single, index in zip(_SINGLE, _INDEX, strict=True):
        if (folder / single).is_file():
            return [folder / single]
        if (folder / index).is_file():
            return _shards(folder, folder / index)
    raise CheckpointError(f"{folder} holds no weights; a model folder needs {' or '.join(_SINGLE)}.")


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = sorted(set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of weight files; copy it again.") from error
    for name in names:
        if not is_text(name) or Path(name).name != name:
            raise CheckpointError(
                f"{index} names the file {shown(name)}, which is not in its own folder; do not trust it."
            )
        if not os.path.isfile(folder / name):  # pathlib's raises for a name that is too long
            raise CheckpointError(f"{folder} lacks {shown(name)}, which its index names; copy it again.")
    return [folder / name for name in names]


def iterate_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything in one weight file; safetensors are read one tensor at a time.

    Raises:
        CheckpointError: a damaged file, or a ``.bin`` that holds anything but tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); copy it again.") from error
        return
    import torch

    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises several kinds for one cause
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors, and nothing else is ever loaded; convert it to safetensors."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path} is not a mapping of names to tensors; save the model's state dict.")
    yield from state.items()


def tensor_names(folder: Path) -> list[str]:
    """Names of all tensors in a folder's weight files.

    Raises:
        CheckpointError: as :func:`weight_files` and :func:`iterate_tensors`.
    """
    return [name for path in weight_files(folder) for name, _ in iterate_tensors(path)]


def load_weights(module: nn.Module, folder: Path, *, fill: bool = True) -> None:
    """Fill ``module`` from ``folder``; every tensor must be there, expected, and of the right shape.

    Values are converted to the module's own dtype and device, except for bytes, which are no numbers. On an error the
    module may be partly filled. Without ``fill`` names and shapes are only compared.

    Raises:
        CheckpointError: missing, extra or mis-shaped tensors, named; norms, biases or embeddings that are not finite.
    """
    import torch

    expected = dict(module.state_dict(keep_vars=True))
    seen: set[str] = set()
    extra: list[str] = []
    wrong: list[str] = []
    for path in weight_files(folder):
        for name, tensor in iterate_tensors(path):
            target = expected.get(name)
            if target is None:
                extra.append(name)
            elif target.shape != tensor.shape:
                wrong.append(f"{name} is {list(tensor.shape)} and must be {list(target.shape)}")
            elif torch.uint8 in (target.dtype, tensor.dtype) and target.dtype != tensor.dtype:
                wrong.append(f"{name} is {_kind(tensor)} and must be {_kind(target)}")
            elif not _is_sound(name, tensor):
                raise CheckpointError(f"{path} is damaged ({name} holds numbers that are not finite); copy it again.")
            elif fill:
                with torch.no_grad():
                    target.copy_(tensor)
            seen.add(name)
    refuse_misfits(folder, missing=[name for name in expected if name not in seen], extra=extra, wrong=wrong)


def _is_sound(name: str, tensor: Tensor) -> bool:
    """Whether a norm, a bias or an embedding holds finite numbers.

    A matrix that does not shows itself: whatever it takes part in is not finite.
    """
    return (tensor.dim() > 1 and "embed" not in name) or not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def refuse_misfits(where: Path | str, *, missing: list[str], extra: list[str], wrong: list[str]) -> None:
    """Name what does not fit: tensors that are ``missing``, ``extra``, or of a ``wrong`` shape (said in the entry).

    Raises:
        CheckpointError: any of the lists holds something.
    """
    problems = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("has unknown", extra)) if names]
    problems += [f"has mis-shaped tensors: {_some(wrong)}"] if wrong else []
    if problems:
        raise CheckpointError(f"{where} does not fit its configuration: it {'; it '.join(problems)}.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
