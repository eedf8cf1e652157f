"""The processes of one evaluation, as ``torchrun --nproc_per_node 2 -m mobillama_v eval run …`` starts them."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from typing import Any

_PATIENCE = datetime.timedelta(days=7)  # the fastest process waits for the slowest


@dataclass(frozen=True)
class World:
    """This process's number among ``size``, and its number on its machine, which is that of its GPU."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls) -> World:
        """Find the other processes, where torchrun's variables tell of any."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=_PATIENCE)
        return cls(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_RANK", "0")))

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in the order of their numbers; none goes on before all are here."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def leave(self) -> None:
        """End the connection; call it when nothing is shared any more."""
        if self.size > 1:
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()

    def device(self, name: str) -> str:
        """The device of this process: ``auto`` gives each one its own GPU where there are several processes."""
        if name == "auto" and self.size > 1:
            import torch

            if torch.cuda.is_available():
                return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return name
