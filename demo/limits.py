"""What one request, one user and all users together may ask for, and the errors that say so."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mobillama_v.errors import ConfigError, MobiLlamaVError


class LimitError(MobiLlamaVError):
    """A request asks for more than the limits allow."""


class BusyError(MobiLlamaVError):
    """No place is free; one should be in ``retry_after`` seconds. ``own``: the user's own requests fill them."""

    def __init__(self, message: str, retry_after: int, *, own: bool = False) -> None:
        super().__init__(message)
        self.retry_after, self.own = retry_after, own


@dataclass(frozen=True)
class Limits:
    """Bounds that hold for the demo and the server.

    Attributes:
        max_bytes: of one picture's file.
        max_pixels: of one picture, judged by its header.
        max_images: pictures of one conversation.
        max_new_tokens: the longest answer that may be asked for.
        max_seconds: computing one answer, its pictures not included; the answer ends there.
        running: answers that are computed at once, in turns; each holds its own keys and values in memory.
        waiting: answers that wait for that.
        waiting_each: of these, those of one user.

    Raises:
        ConfigError: a bound below 1, or 0 for those that wait.
    """

    max_bytes: int = 10_000_000
    max_pixels: int = 50_000_000
    max_images: int = 8
    max_new_tokens: int = 1024
    max_seconds: float = 120.0
    running: int = 4
    waiting: int = 32
    waiting_each: int = 8

    def __post_init__(self) -> None:
        for field in fields(self):
            least = 0 if field.name.startswith("waiting") else 1
            if not getattr(self, field.name) >= least:
                raise ConfigError(f"the limit {field.name} must be {least} or more, not {getattr(self, field.name)}.")

    @property
    def max_body(self) -> int:
        """Bytes of one request: three of the largest pictures in base64, or more smaller ones, and 1 MB for words."""
        return 4 * self.max_bytes + 1_000_000
