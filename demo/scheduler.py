"""Who is computed next: a bounded queue before one thread that computes a token of every running answer in turn.

A place is taken before a request's pictures are decoded, so that what waits is bounded too, and left when the answer
ends or nobody wants it any more; the computation then stops before its next token.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from mobillama_v.demo.limits import BusyError, Limits

Work = Callable[[], Iterator[Any]]
_LONGEST_RETRY = 60  # seconds


class Done:
    """Delivered after the last item of an answer; ``error`` is what ended it, ``left`` whether its place was left."""

    def __init__(self, error: BaseException | None = None, *, left: bool = False) -> None:
        self.error, self.left = error, left


class Ticket:
    """One request's place at the desk; from :meth:`Scheduler.enter`, and to be left in any case."""

    def __init__(self, desk: Scheduler, owner: str) -> None:
        self.owner, self.seconds = owner, 0.0
        self.left = False
        self.work: Work | None = None
        self.deliver: Callable[[Any], None] = lambda _: None
        self.items: Iterator[Any] | None = None
        self._desk = desk

    def start(self, work: Work, deliver: Callable[[Any], None]) -> None:
        """Compute as soon as it is this place's turn.

        Args:
            work: makes the iterator whose items are computed one by one, in the desk's thread.
            deliver: is given every item and at last a :class:`Done`, in that thread; it must not block.
        """
        self._desk.start(self, work, deliver)

    def leave(self) -> None:
        """Give the place up; what is being computed for it stops before its next item. Harmless when done."""
        self._desk.leave(self)


class Scheduler:
    """Places for running and waiting answers, and the thread that computes.

    Users share it fairly: of those who wait, the one with the fewest running answers comes first, then the one whose
    turn is longest ago; and nobody runs in all of several places, so that a newcomer waits for a place, not for a user.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._changed = threading.Condition()
        self._waiting: list[Ticket] = []
        self._running: list[Ticket] = []
        self._served: dict[str, int] = {}
        self._clock = itertools.count(1)
        self._mean_seconds = 1.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="desk", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many answers wait, those whose pictures are still being decoded included."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many answers are being computed."""
        return len(self._running)

    @property
    def closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._closed

    def enter(self, owner: str) -> Ticket:
        """Take a place for a request of ``owner``.

        Raises:
            BusyError: none is free.
        """
        with self._changed:
            self._check(owner)
            place = Ticket(self, owner)
            self._waiting.append(place)
            return place

    def _check(self, owner: str) -> None:
        if self._closed:
            raise BusyError("the server is shutting down; ask again when it is back.", _LONGEST_RETRY)
        ahead = len(self._waiting) + len(self._running)
        later = min(_LONGEST_RETRY, max(1, math.ceil(self._mean_seconds * ahead)))
        free = max(0, self.limits.running - len(self._running))
        if len(self._waiting) >= self.limits.waiting + free:
            raise BusyError(f"{ahead} answers are being computed or wait already; ask again in {later} s.", later)
        mine = sum(place.owner == owner for place in self._waiting)
        if mine >= self.limits.waiting_each + free:
            raise BusyError(f"{mine} of your own requests wait already; ask again in {later} s.", later, own=True)

    def start(self, place: Ticket, work: Work, deliver: Callable[[Any], None]) -> None:
        """See :meth:`Ticket.start`."""
        with self._changed:
            place.work, place.deliver = work, deliver
            if place.left:
                self._deliver(place, Done(left=True))
            self._changed.notify_all()

    def leave(self, place: Ticket) -> None:
        """See :meth:`Ticket.leave`."""
        with self._changed:
            if place.left:
                return
            place.left = True
            if place in self._waiting:
                self._waiting.remove(place)
                self._deliver(place, Done(left=True))
            self._changed.notify_all()

    def close(self, seconds: float = 0.0) -> None:
        """Take nothing any more, let what is here go on for up to ``seconds``, then stop it. Returns when it has."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._waiting or self._running), max(0.0, deadline - time.monotonic()))
        for place in [*self._waiting, *self._running]:
            self.leave(place)
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._promote()
                while not self._running:
                    if self._closed and not self._waiting:
                        return
                    self._changed.wait()
                    self._promote()
                turn = list(self._running)
            for place in turn:
                self._step(place)

    def _promote(self) -> None:
        """Let waiting places run while there is room for them."""
        while len(self._running) < self.limits.running:
            counts = Counter(place.owner for place in self._running)
            most = max(1, self.limits.running - 1)
            ready = [place for place in self._waiting if place.work is not None and counts[place.owner] < most]
            if not ready:
                return
            chosen = min(ready, key=lambda place: (counts[place.owner], self._served.get(place.owner, 0)))
            self._served[chosen.owner] = next(self._clock)
            self._waiting.remove(chosen)
            self._running.append(chosen)
            present = {place.owner for place in (*self._waiting, *self._running)}
            self._served = {owner: turn for owner, turn in self._served.items() if owner in present}

    def _step(self, place: Ticket) -> None:
        """Compute one item of a place's answer, or end it."""
        if place.left:
            self._end(place, Done(left=True))
            return
        start = time.perf_counter()
        try:
            if place.items is None:
                assert place.work is not None
                place.items = place.work()
            item = next(place.items)
        except StopIteration:
            self._end(place, Done())
        except Exception as error:  # whoever asked is told; the other answers go on
            self._end(place, Done(error))
        else:
            place.seconds += time.perf_counter() - start
            self._deliver(place, item)

    def _end(self, place: Ticket, done: Done) -> None:
        items, place.items = place.items, None
        if items is not None and hasattr(items, "close"):
            items.close()
        with self._changed:
            place.left = True
            self._running.remove(place)
            if done.error is None and not done.left:
                self._mean_seconds += (place.seconds - self._mean_seconds) / 8
            self._changed.notify_all()
        self._deliver(place, done)

    def _deliver(self, place: Ticket, item: Any) -> None:
        try:
            place.deliver(item)
        except Exception:  # the event loop of whoever asked has gone
            place.left = True
