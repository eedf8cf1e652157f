"""The processes of one training: which one this is, and work that only the first one does.

torchrun and DeepSpeed's launcher tell each process its place by the same environment variables.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from mobillama_v.errors import MobiLlamaVError

T = TypeVar("T")


def size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process is the one that prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def on_first(work: Callable[[], T]) -> T:
    """What ``work`` gives, done by the first process for all; all go on when it is done.

    Raises:
        MobiLlamaVError: on every process, what the first one raised.
    """
    if size() == 1 or not dist.is_initialized():
        return work()
    box: list[T | MobiLlamaVError | None] = [None, None]
    if is_first():
        try:
            box[0] = work()
        except MobiLlamaVError as error:
            box[1] = error
    dist.broadcast_object_list(box, src=0)
    if isinstance(box[1], MobiLlamaVError):
        raise box[1]
    return box[0]  # type: ignore[return-value]


def gather(value: T) -> list[T]:
    """What every process has, in order, on every process."""
    if size() == 1 or not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Go on when every process is here."""
    if dist.is_initialized():
        dist.barrier()


def part() -> None:
    """End the group of processes, as torch asks a program to do before it ends."""
    if dist.is_initialized():
        dist.destroy_process_group()
