"""Which answers are computed next: a bounded queue before one thread that computes a token of every running answer.

A request takes a ticket before its pictures are decoded, so that what waits is bounded too. It gives the ticket back
when the answer ends or nobody wants it any more; the computation then stops before its next token.

Each :meth:`Scheduler.step` is one batch: the next tokens of all running answers are run in one pass of the decoder
(continuous batching). An answer joins after its prompt has run, and leaves at its end, without the others waiting.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from mobillama_v.demo.limits import BusyError, Limits
from mobillama_v.generate import decode_step
from mobillama_v.reply import ReplyStream

Work = Callable[[], Iterator[Any]]
_LONGEST_RETRY = 60  # seconds


class Finished:
    """Delivered after the last item of an answer: the ``error`` that ended it, or whether its ticket was given back."""

    def __init__(self, error: BaseException | None = None, *, left: bool = False) -> None:
        self.error, self.left = error, left


class Ticket:
    """One request's place in the queue; from :meth:`Scheduler.enter`, and to be given back in any case."""

    def __init__(self, scheduler: Scheduler, owner: str) -> None:
        self.owner, self.seconds = owner, 0.0
        self.left = False
        self.work: Work | None = None
        self.deliver: Callable[[Any], None] = lambda _: None
        self.items: Iterator[Any] | None = None
        self.answer: ReplyStream | None = None
        self._scheduler = scheduler

    def start(self, work: Work, deliver: Callable[[Any], None]) -> None:
        """Compute as soon as it is this ticket's turn.

        Args:
            work: makes the iterator whose items are computed one by one, in the scheduler's thread. Where an item is a
                :class:`~mobillama_v.assistant.ReplyStream`, its pieces are delivered in its place, and computed
                together with those of other tickets.
            deliver: is given every item and at last a :class:`Finished`, in that thread; it must not block.
        """
        self._scheduler.start(self, work, deliver)

    def leave(self) -> None:
        """Give the ticket back; what is being computed for it stops before its next item. Harmless when done."""
        self._scheduler.leave(self)

    def advance(self) -> Any:
        """Compute the next item.

        Raises:
            StopIteration: there is none.
        """
        if self.items is None:
            assert self.work is not None
            self.items = self.work()
        while True:
            if self.answer is None:
                item = next(self.items)
                if not isinstance(item, ReplyStream):
                    return item
                self.answer = item
            try:
                return next(self.answer)
            except StopIteration:
                self.answer = None

    def close(self) -> None:
        """Free what the computation held."""
        items, answer = self.items, self.answer
        self.items = self.answer = None
        if answer is not None:
            answer.close()
        if items is not None and hasattr(items, "close"):
            items.close()


class Scheduler:
    """Tickets of running and waiting answers, and the thread that computes.

    Users share it fairly: of those who wait, the one with the fewest running answers comes first, then the one whose
    turn is longest ago. Nobody has all of several running answers, so that a newcomer waits for one answer to end and
    not for a user.
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
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
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
        """Hand out a ticket for a request of ``owner``.

        Raises:
            BusyError: none is free.
        """
        with self._changed:
            self._check(owner)
            ticket = Ticket(self, owner)
            self._waiting.append(ticket)
            return ticket

    def _check(self, owner: str) -> None:
        if self._closed:
            raise BusyError("the server is shutting down; ask again when it is back.", _LONGEST_RETRY)
        ahead = len(self._waiting) + len(self._running)
        later = min(_LONGEST_RETRY, max(1, math.ceil(self._mean_seconds * ahead)))
        free = max(0, self.limits.running - len(self._running))
        if len(self._waiting) >= self.limits.waiting + free:
            raise BusyError(f"{ahead} answers are being computed or wait already; ask again in {later} s.", later)
        mine = sum(ticket.owner == owner for ticket in self._waiting)
        if mine >= self.limits.waiting_each + free:
            raise BusyError(f"{mine} of your own requests wait already; ask again in {later} s.", later, own=True)

    def start(self, ticket: Ticket, work: Work, deliver: Callable[[Any], None]) -> None:
        """See :meth:`Ticket.start`."""
        with self._changed:
            ticket.work, ticket.deliver = work, deliver
            if ticket.left:
                self._deliver(ticket, Finished(left=True))
            self._changed.notify_all()

    def leave(self, ticket: Ticket) -> None:
        """See :meth:`Ticket.leave`."""
        with self._changed:
            if ticket.left:
                return
            ticket.left = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                self._deliver(ticket, Finished(left=True))
            self._changed.notify_all()

    def close(self, seconds: float = 0.0) -> None:
        """Take nothing any more, let what is here go on for up to ``seconds``, then stop it. Returns when it has."""
        deadline = time.monotonic() + seconds
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._waiting or self._running), max(0.0, deadline - time.monotonic()))
        for ticket in [*self._waiting, *self._running]:
            self.leave(ticket)
        self._thread.join()

    def _work(self) -> None:
        while self.step():
            pass

    def step(self) -> bool:
        """Wait for work, and compute one item of every running answer; whether there will be more to compute.

        Where the pass for all fails, each answer runs alone, so that only the one to blame ends.
        """
        batch = self._admit()
        start = time.perf_counter()
        with contextlib.suppress(Exception):
            decode_step([ticket.answer.generation for ticket in batch if ticket.answer and not ticket.left])
        shared = (time.perf_counter() - start) / max(1, len(batch))
        for ticket in batch:
            ticket.seconds += shared
            self._advance(ticket)
        return bool(batch)

    def _admit(self) -> list[Ticket]:
        """The tickets that run now, those that waited included; none where the scheduler is closed."""
        with self._changed:
            self._promote()
            while not self._running:
                if self._closed and not self._waiting:
                    return []
                self._changed.wait()
                self._promote()
            return list(self._running)

    def _promote(self) -> None:
        """Let waiting places run while there is room for them."""
        while len(self._running) < self.limits.running:
            counts = Counter(ticket.owner for ticket in self._running)
            most = max(1, self.limits.running - 1)
            ready = [ticket for ticket in self._waiting if ticket.work is not None and counts[ticket.owner] < most]
            if not ready:
                return
            chosen = min(ready, key=lambda ticket: (counts[ticket.owner], self._served.get(ticket.owner, 0)))
            self._served[chosen.owner] = next(self._clock)
            self._waiting.remove(chosen)
            self._running.append(chosen)
            present = {ticket.owner for ticket in (*self._waiting, *self._running)}
            self._served = {owner: turn for owner, turn in self._served.items() if owner in present}

    def _advance(self, ticket: Ticket) -> None:
        """Compute one item of a ticket's answer, or end it."""
        if ticket.left:
            self._end(ticket, Finished(left=True))
            return
        start = time.perf_counter()
        try:
            item = ticket.advance()
        except StopIteration:
            self._end(ticket, Finished())
        except Exception as error:  # whoever asked gets the error; the other answers go on
            self._end(ticket, Finished(error))
        else:
            ticket.seconds += time.perf_counter() - start
            self._deliver(ticket, item)

    def _end(self, ticket: Ticket, finished: Finished) -> None:
        ticket.close()
        with self._changed:
            ticket.left = True
            self._running.remove(ticket)
            if finished.error is None and not finished.left:
                self._mean_seconds += (ticket.seconds - self._mean_seconds) / 8
            self._changed.notify_all()
        self._deliver(ticket, finished)

    def _deliver(self, ticket: Ticket, item: Any) -> None:
        try:
            ticket.deliver(item)
        except Exception:  # the event loop of whoever asked has gone
            ticket.left = True
