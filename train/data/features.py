"""A cache of the frozen tower's outputs: pictures are decoded and encoded once, not once an epoch.

A cache is a folder of ``features.npy`` (float16 [N,E+P,Dv], a row an image), ``done.npy`` (uint8 [N], 1 where a row has
been written), ``keys.json`` (image path, as records give it, to row) and ``meta.json`` (the fingerprint of the tower's
weights and of the image transform). A killed computation leaves a folder that :func:`compute` continues.

Shapes: N images, E+P tokens of an image, Dv tower width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mobillama_v.errors import DataError
from mobillama_v.images import ImageTransform, load_image
from mobillama_v.progress import Progress

_VERSION = 1


class FeatureCache:
    """Rows of features by image path; made by :meth:`create`, read after :meth:`open`."""

    def __init__(self, folder: Path, keys: dict[str, int], fingerprint: str, *, mode: Literal["r", "r+"]) -> None:
        self.folder, self.keys, self.fingerprint = folder, keys, fingerprint
        self._features = np.load(folder / "features.npy", mmap_mode=mode)
        self._done = np.load(folder / "done.npy", mmap_mode=mode)

    @classmethod
    def open(cls, folder: Path, *, fingerprint: str | None = None) -> FeatureCache:
        """Open a complete cache to read it.

        Raises:
            DataError: no cache, an incomplete one, or one of another tower or transform than ``fingerprint``.
        """
        cache = cls._load(folder, "r")
        if fingerprint is not None and cache.fingerprint != fingerprint:
            raise DataError(
                f"the features in {folder} were computed with other tower weights or image settings; remove the "
                "folder to compute them again, or give data.features another one."
            )
        missing = len(cache.missing())
        if missing:
            raise DataError(
                f"the features in {folder} lack {missing} of {len(cache.keys)} images; compute them to the end."
            )
        return cache

    @classmethod
    def create(cls, folder: Path, keys: Sequence[str], shape: tuple[int, int], fingerprint: str) -> FeatureCache:
        """Make a cache to write to, or continue one with the same keys and fingerprint.

        Args:
            folder: where; made with its parents.
            keys: image paths as records give them; row i is the i-th.
            shape: (E+P, Dv) of one image.
            fingerprint: of :func:`fingerprint`.

        Raises:
            DataError: the folder holds a cache of other keys, shape or fingerprint.
        """
        rows = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        if (folder / "meta.json").is_file():
            cache = cls._load(folder, "r+")
            if cache.keys != rows or cache.shape != tuple(shape) or cache.fingerprint != fingerprint:
                raise DataError(
                    f"{folder} holds features of other images, tower weights or image settings; remove it to compute "
                    "them again, or choose another folder."
                )
            return cache
        folder.mkdir(parents=True, exist_ok=True)
        for name, dtype, size in (
            ("features.npy", np.float16, (len(rows), *shape)),
            ("done.npy", np.uint8, (len(rows),)),
        ):
            np.lib.format.open_memmap(folder / name, mode="w+", dtype=dtype, shape=size).flush()
        (folder / "keys.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        meta = json.dumps({"version": _VERSION, "fingerprint": fingerprint})
        (folder / "meta.json.partial").write_text(meta, encoding="utf-8")
        os.replace(folder / "meta.json.partial", folder / "meta.json")  # last: with it the folder is a cache
        return cls._load(folder, "r+")

    @classmethod
    def is_complete(cls, folder: Path) -> bool:
        """Whether ``folder`` is a cache with every row written; False where there is none yet.

        Raises:
            DataError: a damaged cache.
        """
        return (folder / "meta.json").is_file() and not cls._load(folder, "r").missing()

    @classmethod
    def _load(cls, folder: Path, mode: Literal["r", "r+"]) -> FeatureCache:
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            keys = json.loads((folder / "keys.json").read_text(encoding="utf-8"))
            if meta["version"] != _VERSION:
                raise ValueError(f"version {meta['version']}")
            return cls(folder, keys, meta["fingerprint"], mode=mode)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder} is not a folder of features that can be read ({error}); remove it.") from error

    @property
    def shape(self) -> tuple[int, int]:
        """(E+P, Dv) of one image."""
        return self._features.shape[1:]

    def missing(self) -> list[str]:
        """Keys whose rows have not been written."""
        done = np.asarray(self._done)
        return [key for key, row in self.keys.items() if not done[row]]

    def write(self, row: int, array: np.ndarray) -> None:
        """Store the features [E+P,Dv] of one row.

        Raises:
            DataError: values that float16 cannot hold.
        """
        with np.errstate(over="ignore"):
            values = np.asarray(array).astype(np.float16)
        if not np.isfinite(values).all():
            raise DataError(f"the features of row {row} in {self.folder} are not finite in half precision.")
        self._features[row] = values
        self._done[row] = 1  # after the features: a kill between the two leaves a row to do again

    def flush(self) -> None:
        """Write everything to the disk."""
        self._features.flush()
        self._done.flush()

    def read(self, paths: Iterable[str]) -> np.ndarray:
        """Features [n,E+P,Dv] float16 of images."""
        return self._features[[self.keys[path] for path in paths]]

    def require(self, paths: Iterable[str]) -> None:
        """Refuse paths that have no row.

        Raises:
            DataError: how many, and the first.
        """
        unknown = [path for path in paths if path not in self.keys]
        if unknown:
            raise DataError(
                f"the features in {self.folder} lack {len(unknown)} images of the data, the first is {unknown[0]!r}; "
                "remove the folder to compute them again."
            )


def fingerprint(tower: Any, transform: ImageTransform) -> str:
    """What the features of an image depend on besides the image: the tower's weights and spec, and the transform."""
    state = hashlib.sha256()
    state.update(json.dumps([dataclasses.asdict(tower.spec), dataclasses.asdict(transform)], sort_keys=True).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        values = tensor.detach().cpu().contiguous().float().numpy()
        state.update(f"{name} {values.shape}".encode())
        state.update(values.data)
    return state.hexdigest()


def compute(
    model: Any, image_paths: Sequence[str], image_root: Path, folder: Path, *, batch_size: int = 32
) -> FeatureCache:
    """Fill a cache with the outputs of ``model.vision_tower``, going on where a killed call stopped.

    Args:
        model: a ``MobiLlamaVForConditionalGeneration``.
        image_paths: paths as records give them.
        image_root: what they are relative to.
        folder: of the cache.
        batch_size: images of one forward pass.

    Raises:
        ImageError: an image that cannot be read.
        DataError: the folder holds another cache.
    """
    import torch

    tower, transform = model.vision_tower, model.config.spec.image
    shape = (tower.extra + tower.patches, tower.width)
    cache = FeatureCache.create(folder, image_paths, shape, fingerprint(tower, transform))
    todo = cache.missing()
    weight = next(tower.parameters())
    was_training = tower.training
    tower.eval()
    with Progress() as bar:
        for first in range(0, len(todo), batch_size):
            batch = todo[first : first + batch_size]
            pictures = [load_image(image_root / path, target=transform.size) for path in batch]
            pixels = torch.from_numpy(transform.batch(pictures)).to(weight.device, weight.dtype)
            with torch.inference_mode():
                features = tower(pixels).float().cpu().numpy()
            for path, array in zip(batch, features, strict=True):
                cache.write(cache.keys[path], array)
            bar("features", first + len(batch), len(todo))
    tower.train(was_training)
    cache.flush()
    return cache
