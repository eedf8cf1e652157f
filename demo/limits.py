"""Limits of one request, of one user, and of all users together, and the errors that report them."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any

from mobillama_v.errors import ConfigError, MobiLlamaVError


class LimitError(MobiLlamaVError):
    """A request asks for more than the limits allow."""


class BusyError(MobiLlamaVError):
    """No place is free; one should be in ``retry_after`` seconds. ``own``: the user's own requests fill them."""

    def __init__(self, message: str, retry_after: int, *, own: bool = False) -> None:
        super().__init__(message)
        self.retry_after, self.own = retry_after, own


def least(name: str) -> int:
    """The smallest value of the limit ``name``."""
    return 0 if name.startswith("waiting") else 1


def _limit(default: float, help: str, only: str = "") -> Any:
    return field(default=default, metadata={"help": help, "only": only})


@dataclass(frozen=True)
class Limits:
    """Limits of the demo and the server; each is an option of theirs, or of the one that it is ``only`` for.

    Raises:
        ConfigError: a limit below 1, or below 0 for those that wait.
    """

    max_bytes: int = _limit(10_000_000, "Largest picture file, in bytes.")
    max_pixels: int = _limit(50_000_000, "Largest picture, in pixels, as its header says.")
    max_request_pixels: int = _limit(100_000_000, "Most pixels of all pictures in one conversation.")
    max_images: int = _limit(8, "Most pictures in one conversation.")
    max_new_tokens: int = _limit(1024, "Longest answer, in tokens.")
    max_seconds: float = _limit(120.0, "Most seconds to compute one answer, after its pictures. It is cut off there.")
    running: int = _limit(4, "Answers computed at the same time; each has its own keys and values in memory.")
    waiting: int = _limit(32, "Answers that may wait in the queue. More are refused.")
    waiting_each: int = _limit(8, "Answers of one user that may wait in the queue.")
    max_choices: int = _limit(4, "Most answers to one request ('n').", "serve")
    max_held: int = _limit(
        500_000_000, "Bytes of all requests being received or answered. One client may have half of them.", "serve"
    )
    max_uploads: int = _limit(2_000_000_000, "Bytes of all uploads that are kept.", "demo")

    def __post_init__(self) -> None:
        for each in fields(self):
            if not getattr(self, each.name) >= least(each.name):
                raise ConfigError(
                    f"the limit {each.name} must be {least(each.name)} or more, not {getattr(self, each.name)}."
                )

    @property
    def max_body(self) -> int:
        """Bytes of one request: three of the largest pictures in base64, or more smaller ones, and 1 MB for words."""
        return 4 * self.max_bytes + 1_000_000


class HeldBytes:
    """Counts the bytes that requests hold, up to ``most``; one owner may hold half. Safe from several threads."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._held: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """What all requests hold now."""
        return self._held.total()

    def take(self, owner: str, size: int) -> None:
        """Count ``size`` more bytes of ``owner``.

        Raises:
            BusyError: that would be too many; nothing is counted.
        """
        with self._lock:
            own = self._held[owner] + size > self.most // 2
            if own or self._held.total() + size > self.most:
                whose = "your own requests" if own else "the requests that are being answered"
                raise BusyError(f"{whose} hold too much memory; ask again in 5 s.", 5, own=own)
            self._held[owner] += size

    def give_back(self, owner: str, size: int) -> None:
        """Count ``size`` bytes of ``owner`` no more."""
        with self._lock:
            self._held[owner] -= size
            self._held += Counter()  # forgets owners that hold nothing
