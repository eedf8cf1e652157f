"""The scheduler: bounded, fair, and stopped before the next item."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mobillama_v.demo.limits import BusyError, Limits
from mobillama_v.demo.scheduler import Finished, Scheduler, Ticket
from mobillama_v.errors import ConfigError


@pytest.fixture
def schedulers() -> Iterator[Any]:
    made: list[Scheduler] = []

    def make(**limits: int) -> Scheduler:
        made.append(Scheduler(Limits(**limits)))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.close()


class Job:
    """An answer of ``length`` numbers; each waits for ``step`` where one is given."""

    def __init__(self, ticket: Ticket, length: int, step: threading.Semaphore | None = None) -> None:
        self.ticket, self.step, self.made, self.closed = ticket, step, 0, False
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        ticket.start(lambda: self._work(length), self.items.put)

    def _work(self, length: int) -> Iterator[int]:
        try:
            for number in range(length):
                if self.step is not None:
                    assert self.step.acquire(timeout=20)
                self.made += 1
                yield number
        finally:
            self.closed = True

    def all(self) -> list[Any]:
        """Every item, and what ended the answer."""
        found = []
        while not found or not isinstance(found[-1], Finished):
            found.append(self.items.get(timeout=20))
        return found


def test_items_come_in_order_and_then_the_end(schedulers: Any) -> None:
    scheduler = schedulers()
    *items, done = Job(scheduler.enter("a"), 5).all()
    assert items == [0, 1, 2, 3, 4] and done.error is None and not done.left
    assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_an_error_ends_one_answer_only(schedulers: Any) -> None:
    scheduler = schedulers()

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("no")

    ticket, items = scheduler.enter("a"), queue.SimpleQueue[Any]()
    ticket.start(broken, items.put)
    assert items.get(timeout=20) == 1 and isinstance(items.get(timeout=20).error, ValueError)
    assert len(Job(scheduler.enter("a"), 3).all()) == 4
    deaf = scheduler.enter("a")
    deaf.start(lambda: iter([1, 2]), lambda _: 1 / 0)  # whoever asked has gone
    assert len(Job(scheduler.enter("a"), 3).all()) == 4 and scheduler.running == 0


def test_leaving_stops_before_the_next_item(schedulers: Any) -> None:
    scheduler, step = schedulers(), threading.Semaphore(0)
    job = Job(scheduler.enter("a"), 1000, step)
    step.release()
    assert job.items.get(timeout=20) == 0
    job.ticket.leave()
    step.release()  # for the item that may have been begun
    assert isinstance(done := job.all()[-1], Finished) and done.left and done.error is None
    assert job.made <= 2 and job.closed and scheduler.running == 0
    job.ticket.leave()


def test_leaving_before_the_turn_comes(schedulers: Any) -> None:
    scheduler, step = schedulers(running=1), threading.Semaphore(0)
    first, second = Job(scheduler.enter("a"), 1, step), Job(scheduler.enter("a"), 1)
    second.ticket.leave()
    assert second.all()[0].left and second.made == 0
    late = scheduler.enter("a")
    late.leave()
    assert Job(late, 1).all()[0].left
    step.release()
    assert len(first.all()) == 2 and scheduler.waiting == 0


def test_running_answers_take_turns(schedulers: Any) -> None:
    scheduler, step = schedulers(running=3), threading.Semaphore(0)
    order: list[str] = []

    def work(name: str) -> Iterator[int]:
        for number in range(50):
            assert step.acquire(timeout=20)
            order.append(name)
            yield number

    ends: queue.SimpleQueue[Any] = queue.SimpleQueue()
    tickets = [scheduler.enter(name) for name in "abc"]
    for name, ticket in zip("abc", tickets, strict=True):
        ticket.start(lambda name=name: work(name), lambda item: isinstance(item, Finished) and ends.put(item))
    for _ in range(150):
        step.release()
    for _ in tickets:
        assert ends.get(timeout=20).error is None
    middle = order[10:140]
    assert all(set(middle[i : i + 3]) == {"a", "b", "c"} for i in range(0, 129, 3))


def test_tickets_are_bounded_and_come_back(schedulers: Any) -> None:
    scheduler, step = schedulers(running=1, waiting=2, waiting_each=1), threading.Semaphore(0)
    jobs = [Job(scheduler.enter("a"), 1, step)]
    while not scheduler.running:
        pass
    jobs.append(Job(scheduler.enter("a"), 1, step))
    with pytest.raises(BusyError, match="your own requests") as own:
        scheduler.enter("a")
    assert own.value.own and own.value.retry_after >= 1
    jobs.append(Job(scheduler.enter("b"), 1, step))
    with pytest.raises(BusyError, match="3 answers are being computed or wait") as full:
        scheduler.enter("c")
    assert not full.value.own
    step.release(3)
    for job in jobs:
        assert len(job.all()) == 2
    scheduler.enter("c").leave()


def test_a_newcomer_comes_before_whoever_has_many(schedulers: Any) -> None:
    scheduler, step = schedulers(running=2), threading.Semaphore(0)
    greedy = [Job(scheduler.enter("greedy"), 3, step) for _ in range(4)]
    while not scheduler.running:
        pass
    assert scheduler.running == 1  # the last ticket is kept for another user
    other = Job(scheduler.enter("other"), 3, step)
    step.release(7)
    assert len(other.all()) == 4
    assert sum(job.made == 3 for job in greedy) <= 2
    step.release(20)
    for job in greedy:
        assert len(job.all()) == 4


def test_closing_waits_and_then_stops() -> None:
    scheduler = Scheduler(Limits())
    job = Job(scheduler.enter("a"), 3)
    scheduler.close(20)
    assert len(job.all()) == 4
    with pytest.raises(BusyError, match="shutting down"):
        scheduler.enter("a")
    scheduler, step = Scheduler(Limits()), threading.Semaphore(0)
    job = Job(scheduler.enter("a"), 1000, step)
    threading.Timer(0.3, step.release, [2]).start()
    scheduler.close(0.1)
    assert job.all()[-1].left and job.made <= 2


def test_limits_that_cannot_be() -> None:
    for wrong in ({"max_bytes": 0}, {"running": 0}, {"waiting": -1}, {"max_seconds": float("nan")}):
        with pytest.raises(ConfigError, match=f"the limit {next(iter(wrong))} must be"):
            Limits(**wrong)
