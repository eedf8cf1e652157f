"""Pictures that were encoded already, each for its owner only, for a bounded number and time."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable

from mobillama_v.assistant import EncodedImage


class ImageCache:
    """The ``size`` pictures used last, each for ``seconds`` after its last use; safe to use from several threads."""

    def __init__(self, size: int = 64, seconds: float = 900.0) -> None:
        self.size, self.seconds = size, seconds
        self._lock = threading.Lock()
        self._found: OrderedDict[tuple[str, Hashable], tuple[float, EncodedImage]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def get(self, owner: str, key: Hashable) -> EncodedImage | None:
        """What ``owner`` has put under ``key``; None where that is not, or no longer, here."""
        with self._lock:
            self._expire()
            if (owner, key) not in self._found:
                return None
            _, seen = self._found.pop((owner, key))
            self._found[owner, key] = time.monotonic() + self.seconds, seen
            return seen

    def put(self, owner: str, key: Hashable, seen: EncodedImage) -> None:
        """Keep a picture for its owner."""
        with self._lock:
            self._expire()
            self._found.pop((owner, key), None)
            self._found[owner, key] = time.monotonic() + self.seconds, seen
            while len(self._found) > self.size:
                self._found.popitem(last=False)

    def forget(self, owner: str) -> None:
        """Drop everything of one owner."""
        with self._lock:
            for key in [key for key in self._found if key[0] == owner]:
                del self._found[key]

    def _expire(self) -> None:
        now = time.monotonic()
        while self._found and next(iter(self._found.values()))[0] < now:
            self._found.popitem(last=False)
