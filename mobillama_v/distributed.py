"""The processes of one run: which one this is, and what they do together.

torchrun and DeepSpeed's launcher tell each process its place by the same environment variables. Nothing here imports
torch where there is only one process.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from mobillama_v.errors import MobiLlamaVError

T = TypeVar("T")
_PATIENCE = datetime.timedelta(days=7)  # the fastest process waits for the slowest


def rank() -> int:
    """This process's number; process 0 prints and writes."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes run together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Connect the processes through gloo, where there are several; for programs that no library connects."""
    if world_size() > 1:
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_PATIENCE)


def local_device(name: str) -> str:
    """The device of this process: ``auto`` gives each of several processes a GPU of its own."""
    if name == "auto" and world_size() > 1:
        import torch

        if torch.cuda.is_available():
            return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return name


def on_rank0(work: Callable[[], T]) -> T:
    """The value of ``work``, which only process 0 does; all processes go on when it is done.

    Raises:
        MobiLlamaVError: on every process, what process 0 raised.
    """
    group = _group()
    if world_size() == 1 or group is None:
        return work()
    box: list[T | MobiLlamaVError | None] = [None, None]
    if rank() == 0:
        try:
            box[0] = work()
        except MobiLlamaVError as error:
            box[1] = error
    group.broadcast_object_list(box, src=0)
    if isinstance(box[1], MobiLlamaVError):
        raise box[1]
    return box[0]  # type: ignore[return-value]


def all_gather(value: T) -> list[T]:
    """The values of all processes in the order of their numbers, on every process."""
    group = _group()
    if world_size() == 1 or group is None:
        return [value]
    values: list[Any] = [None] * world_size()
    group.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every process is here."""
    if group := _group():
        group.barrier()


def cleanup() -> None:
    """End the connection, as torch asks a program to do before it ends."""
    if group := _group():
        group.destroy_process_group()


def _group() -> Any:
    """``torch.distributed`` where it connects processes; otherwise None."""
    dist = sys.modules.get("torch.distributed")
    return dist if dist is not None and dist.is_available() and dist.is_initialized() else None
