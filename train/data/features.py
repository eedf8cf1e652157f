"""A store of the frozen tower's outputs: pictures are decoded and encoded once, not once an epoch.

A row is found by the content of its picture (:mod:`mobillama_v.train.data.picture_keys`), in the sub-folder of one
tower, image transform and precision. So a changed picture, another ``image_root`` or another tower never gets a row
that is not its own, and more pictures only add rows. A process that adds rows writes a new shard: ``N.rows`` (float16
[n,E+P,Dv]) and, after each batch of them, ``N.keys`` (16 bytes a row). A kill or a full disk costs at most a batch.

Shapes: n images, E+P tokens of an image, Dv tower width.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mobillama_v import distributed
from mobillama_v.errors import DataError, MobiLlamaVError
from mobillama_v.images import ImageTransform, load_image
from mobillama_v.output import require_space
from mobillama_v.progress import Progress
from mobillama_v.train.data.parallel import cores
from mobillama_v.train.data.picture_keys import KEY_BYTES, PictureKeys, content_of, digest, unwritable

if TYPE_CHECKING:
    from io import FileIO

PATHS = "paths.jsonl"
"""In a store's folder: the keys of its pictures by path."""


class FeatureStore:
    """Rows of features by key, of one tower."""

    def __init__(self, folder: Path, fingerprint: str, shape: tuple[int, int]) -> None:
        """Open a store, or one that is to be made.

        Args:
            folder: of all towers.
            fingerprint: of :func:`fingerprint`.
            shape: (E+P, Dv) of one image.
        """
        self.pictures, self.folder, self.shape = PictureKeys(folder / PATHS), folder / fingerprint[:32], shape
        self.row_bytes = 2 * shape[0] * shape[1]
        self._rows: dict[bytes, tuple[Path, int]] = {}
        self.refresh()

    @classmethod
    def of(cls, model: Any, folder: Path, *, precision: str = "fp32") -> FeatureStore:
        """The store of a model's tower (a ``MobiLlamaVForConditionalGeneration``) in ``folder``."""
        tower = model.vision_tower
        mark = fingerprint(tower, model.config.spec.image, precision)
        return cls(folder, mark, (tower.extra + tower.patches, tower.width))

    def refresh(self) -> None:
        """Find the rows that others have added."""
        for keys in sorted(self.folder.glob("*.keys")):
            rows, found = keys.with_suffix(".rows"), keys.read_bytes()
            whole = min(len(found) // KEY_BYTES, rows.stat().st_size // self.row_bytes if rows.is_file() else 0)
            for row in range(whole):
                self._rows.setdefault(found[row * KEY_BYTES : (row + 1) * KEY_BYTES], (rows, row))

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, keys: Iterable[bytes]) -> np.ndarray:
        """Features [n,E+P,Dv] float16 of rows.

        Raises:
            DataError: a shard cannot be read, or has become shorter.
        """
        return np.stack([self._read(*self._rows[key]) for key in keys])

    def _read(self, path: Path, row: int) -> np.ndarray:
        # Not mapped into memory: a file that has become shorter would then kill the process.
        size = self.shape[0] * self.shape[1]
        try:
            found = np.fromfile(path, np.float16, size, offset=row * self.row_bytes)
        except OSError as error:
            raise DataError(f"the features in {path} cannot be read ({error.strerror}); remove that file.") from error
        if len(found) != size:
            raise DataError(f"the features in {path} are cut off; remove that file to compute them again.")
        return found.reshape(self.shape)

    @contextmanager
    def shard(self) -> Iterator[Shard]:
        """A new shard to add rows to.

        Raises:
            DataError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._new_file() as rows, open(Path(str(rows.name)).with_suffix(".keys"), "wb", buffering=0) as keys:
                yield Shard(self, rows, keys)
        except OSError as error:
            raise unwritable(self.folder, error) from error

    def _new_file(self) -> FileIO:
        for number in count():
            with suppress(FileExistsError):
                return open(self.folder / f"{number:05d}.rows", "xb", buffering=0)
        raise AssertionError


class Shard:
    """Rows that one process adds."""

    def __init__(self, store: FeatureStore, rows: FileIO, keys: FileIO) -> None:
        self._store, self._rows, self._keys = store, rows, keys

    def add(self, keys: Sequence[bytes], features: np.ndarray) -> None:
        """Add rows [n,E+P,Dv]; they are on the disk when this returns.

        Raises:
            DataError: values that float16 cannot hold, or the disk is full.
        """
        with np.errstate(over="ignore"):
            values = np.ascontiguousarray(features, np.float16)
        if not np.isfinite(values).all():
            raise DataError("features are not finite in half precision; train with data.features=null.")
        try:
            for file, content in ((self._rows, values.tobytes()), (self._keys, b"".join(keys))):
                if file.write(content) != len(content):  # a disk that is full takes a part first
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):  # give back what is of no use
                os.truncate(self._rows.fileno(), self._whole())
            raise unwritable(self._store.folder, error) from error

    def _whole(self) -> int:
        return os.fstat(self._keys.fileno()).st_size // KEY_BYTES * self._store.row_bytes


@dataclasses.dataclass(frozen=True)
class StoredFeatures:
    """The features of a data set's images by path, as records give it."""

    store: FeatureStore
    keys: dict[str, bytes]

    @property
    def shape(self) -> tuple[int, int]:
        """(E+P, Dv) of one image."""
        return self.store.shape

    def read(self, paths: Iterable[str]) -> np.ndarray:
        """Features [n,E+P,Dv] float16 of images; errors as :meth:`FeatureStore.read`."""
        return self.store.read(self.keys[path] for path in paths)


def fingerprint(tower: Any, transform: ImageTransform, precision: str = "fp32") -> str:
    """What features depend on besides the picture: the tower's weights and spec, the transform, the arithmetic."""
    about = [dataclasses.asdict(tower.spec), dataclasses.asdict(transform), precision]
    state = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tower.state_dict().items()):
        values = tensor.detach().cpu().contiguous().float().numpy()
        state.update(f"{name} {values.shape}".encode())
        state.update(values.data)
    return state.hexdigest()


def compute(
    model: Any,
    image_paths: Sequence[str],
    image_root: Path,
    folder: Path,
    *,
    batch_size: int = 32,
    workers: int = 0,
    precision: str = "fp32",
) -> StoredFeatures:
    """Add what is missing of the outputs of ``model.vision_tower`` to a store.

    Every process of a training does its share, on its own device; the tower is back on the CPU afterwards.

    Args:
        model: a ``MobiLlamaVForConditionalGeneration``.
        image_paths: paths as records give them.
        image_root: what they are relative to.
        folder: of the store.
        batch_size: images of one forward pass.
        workers: processes that decode images; 0: this one.
        precision: of the arithmetic, ``fp32`` or ``bf16``.

    Raises:
        ImageError: an image that cannot be read.
        DataError: the disk has no room for the features.
    """
    store = FeatureStore.of(model, folder, precision=precision)
    keys, todo = distributed.on_rank0(lambda: _plan(store, image_paths, image_root))
    error = None
    try:
        mine = list(islice(todo.items(), distributed.rank(), None, distributed.world_size()))
        if mine:
            _fill(model, store, mine, image_root, batch_size, workers, precision)
    except MobiLlamaVError as raised:
        error = raised
    for each in distributed.all_gather(error):  # also of those whose own share is done
        if each is not None:
            raise each
    store.refresh()
    if lacking := sum(key not in store for key in todo):
        raise DataError(f"{folder} lacks {lacking} features that another process has; data.features must be shared.")
    return StoredFeatures(store, keys)


def _plan(store: FeatureStore, paths: Sequence[str], root: Path) -> tuple[dict[str, bytes], dict[bytes, str]]:
    """Keys by path, and a path for each key that has no row yet."""
    workers = cores(alone=True)  # the other ranks wait for the first
    keys = dict(zip(paths, store.pictures.of([root / path for path in paths], workers=workers), strict=True))
    todo = {key: path for path, key in keys.items() if key not in store}
    require_space(store.folder, len(todo) * (store.row_bytes + KEY_BYTES))
    return keys, todo


class _Pictures:
    """Pictures as the tower takes them, or why one cannot be read: a worker's errors lose their type."""

    def __init__(self, items: Sequence[tuple[bytes, str]], root: Path, transform: ImageTransform) -> None:
        self._items, self._root, self._transform = items, root, transform

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[bytes, np.ndarray | MobiLlamaVError]:
        key, path = self._items[index]
        try:
            content = content_of(self._root / path)
            if digest(content) != key:
                raise DataError(f"the image {self._root / path} changes while it is read; run the same command again.")
            name, size = str(self._root / path), self._transform.size
            return key, self._transform(load_image(content, name=name, target=size))
        except MobiLlamaVError as error:
            return key, error


def _fill(
    model: Any,
    store: FeatureStore,
    items: Sequence[tuple[bytes, str]],
    root: Path,
    batch_size: int,
    workers: int,
    precision: str,
) -> None:
    import torch
    from torch.utils.data import DataLoader

    transform = model.config.spec.image
    loader: Any = DataLoader(
        _Pictures(items, root, transform),  # type: ignore[arg-type]
        batch_size,
        num_workers=workers,
        collate_fn=list,
    )
    with store.shard() as shard, Progress("images") as bar, _encoder(model.vision_tower, precision) as encode:
        done = 0
        for batch in loader:
            for _, found in batch:
                if isinstance(found, MobiLlamaVError):
                    raise found
            pixels = torch.from_numpy(np.stack([found for _, found in batch]))
            shard.add([key for key, _ in batch], encode(pixels).float().cpu().numpy())
            done += len(batch)
            bar("features", done, len(items))


@contextmanager
def _encoder(tower: Any, precision: str) -> Iterator[Callable[[Any], Any]]:
    """The tower as a function of pixels [n,3,S,S], for a while on this process's device."""
    import torch

    weight, was_training = next(tower.parameters()), tower.training
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else weight.device
    assert device is not None

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return tower(pixels.to(device, weight.dtype))  # type: ignore[no-any-return]

    before = weight.device
    tower.eval().to(device)
    try:
        yield encode
    finally:
        tower.to(before).train(was_training)


def tower_seconds(tower: Any, size: int, images: int, precision: str) -> float:
    """Seconds that the tower takes for one of ``images`` of ``size`` pixels a side, on this process's device."""
    import torch

    with _encoder(tower, precision) as encode:
        started = 0.0
        for _ in range(2):  # the first one warms up
            started = time.perf_counter()
            encode(torch.zeros(images, 3, size, size)).cpu()
    return (time.perf_counter() - started) / images
