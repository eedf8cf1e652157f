"""A cache of encoded pictures, each for its owner only. Their number and time are bounded."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable

from mobillama_v.reply import EncodedImage


class ImageCache:
    """The ``size`` pictures used last, each for ``seconds`` after its last use; safe to use from several threads."""

    def __init__(self, size: int = 64, seconds: float = 900.0) -> None:
        self.size, self.seconds = size, seconds
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, Hashable], tuple[float, EncodedImage]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, owner: str, key: Hashable) -> EncodedImage | None:
        """The picture that ``owner`` has put under ``key``; None where it is not, or no longer, here."""
        with self._lock:
            self._expire()
            if (owner, key) not in self._entries:
                return None
            _, encoded = self._entries.pop((owner, key))
            self._entries[owner, key] = time.monotonic() + self.seconds, encoded
            return encoded

    def put(self, owner: str, key: Hashable, encoded: EncodedImage) -> None:
        """Keep a picture for its owner."""
        with self._lock:
            self._expire()
            self._entries.pop((owner, key), None)
            self._entries[owner, key] = time.monotonic() + self.seconds, encoded
            while len(self._entries) > self.size:
                self._entries.popitem(last=False)

    def forget(self, owner: str) -> None:
        """Drop everything of one owner."""
        with self._lock:
            for key in [key for key in self._entries if key[0] == owner]:
                del self._entries[key]

    def _expire(self) -> None:
        now = time.monotonic()
        while self._entries and next(iter(self._entries.values()))[0] < now:
            self._entries.popitem(last=False)
