"""The desk: bounded, fair, and stopped before the next item."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mobillama_v.demo.limits import BusyError, Limits
from mobillama_v.demo.scheduler import Done, Scheduler, Ticket
from mobillama_v.errors import ConfigError


@pytest.fixture
def desks() -> Iterator[Any]:
    made: list[Scheduler] = []

    def make(**limits: int) -> Scheduler:
        made.append(Scheduler(Limits(**limits)))
        return made[-1]

    yield make
    for desk in made:
        desk.close()


class Job:
    """An answer of ``length`` numbers; each waits for ``step`` where one is given."""

    def __init__(self, place: Ticket, length: int, step: threading.Semaphore | None = None) -> None:
        self.place, self.step, self.made, self.closed = place, step, 0, False
        self.items: queue.SimpleQueue[Any] = queue.SimpleQueue()
        place.start(lambda: self._work(length), self.items.put)

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
        while not found or not isinstance(found[-1], Done):
            found.append(self.items.get(timeout=20))
        return found


def test_items_come_in_order_and_then_the_end(desks: Any) -> None:
    desk = desks()
    *items, done = Job(desk.enter("a"), 5).all()
    assert items == [0, 1, 2, 3, 4] and done.error is None and not done.left
    assert (desk.running, desk.waiting) == (0, 0)


def test_an_error_ends_one_answer_only(desks: Any) -> None:
    desk = desks()

    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("no")

    place, items = desk.enter("a"), queue.SimpleQueue[Any]()
    place.start(broken, items.put)
    assert items.get(timeout=20) == 1 and isinstance(items.get(timeout=20).error, ValueError)
    assert len(Job(desk.enter("a"), 3).all()) == 4
    deaf = desk.enter("a")
    deaf.start(lambda: iter([1, 2]), lambda _: 1 / 0)  # whoever asked has gone
    assert len(Job(desk.enter("a"), 3).all()) == 4 and desk.running == 0


def test_leaving_stops_before_the_next_item(desks: Any) -> None:
    desk, step = desks(), threading.Semaphore(0)
    job = Job(desk.enter("a"), 1000, step)
    step.release()
    assert job.items.get(timeout=20) == 0
    job.place.leave()
    step.release()  # for the item that may have been begun
    assert isinstance(done := job.all()[-1], Done) and done.left and done.error is None
    assert job.made <= 2 and job.closed and desk.running == 0
    job.place.leave()


def test_leaving_before_the_turn_comes(desks: Any) -> None:
    desk, step = desks(running=1), threading.Semaphore(0)
    first, second = Job(desk.enter("a"), 1, step), Job(desk.enter("a"), 1)
    second.place.leave()
    assert second.all()[0].left and second.made == 0
    late = desk.enter("a")
    late.leave()
    assert Job(late, 1).all()[0].left
    step.release()
    assert len(first.all()) == 2 and desk.waiting == 0


def test_running_answers_take_turns(desks: Any) -> None:
    desk, step = desks(running=3), threading.Semaphore(0)
    order: list[str] = []

    def work(name: str) -> Iterator[int]:
        for number in range(50):
            assert step.acquire(timeout=20)
            order.append(name)
            yield number

    ends: queue.SimpleQueue[Any] = queue.SimpleQueue()
    places = [desk.enter(name) for name in "abc"]
    for name, place in zip("abc", places, strict=True):
        place.start(lambda name=name: work(name), lambda item: isinstance(item, Done) and ends.put(item))
    for _ in range(150):
        step.release()
    for _ in places:
        assert ends.get(timeout=20).error is None
    middle = order[10:140]
    assert all(set(middle[i : i + 3]) == {"a", "b", "c"} for i in range(0, 129, 3))


def test_places_are_bounded_and_come_back(desks: Any) -> None:
    desk, step = desks(running=1, waiting=2, waiting_each=1), threading.Semaphore(0)
    jobs = [Job(desk.enter("a"), 1, step)]
    while not desk.running:
        pass
    jobs.append(Job(desk.enter("a"), 1, step))
    with pytest.raises(BusyError, match="your own requests") as own:
        desk.enter("a")
    assert own.value.own and own.value.retry_after >= 1
    jobs.append(Job(desk.enter("b"), 1, step))
    with pytest.raises(BusyError, match="3 answers are being computed or wait") as full:
        desk.enter("c")
    assert not full.value.own
    step.release(3)
    for job in jobs:
        assert len(job.all()) == 2
    desk.enter("c").leave()


def test_a_newcomer_comes_before_whoever_has_many(desks: Any) -> None:
    desk, step = desks(running=2), threading.Semaphore(0)
    greedy = [Job(desk.enter("greedy"), 3, step) for _ in range(4)]
    while not desk.running:
        pass
    assert desk.running == 1  # the last place is kept for another user
    other = Job(desk.enter("other"), 3, step)
    step.release(7)
    assert len(other.all()) == 4
    assert sum(job.made == 3 for job in greedy) <= 2
    step.release(20)
    for job in greedy:
        assert len(job.all()) == 4


def test_closing_waits_and_then_stops() -> None:
    desk = Scheduler(Limits())
    job = Job(desk.enter("a"), 3)
    desk.close(20)
    assert len(job.all()) == 4
    with pytest.raises(BusyError, match="shutting down"):
        desk.enter("a")
    desk, step = Scheduler(Limits()), threading.Semaphore(0)
    job = Job(desk.enter("a"), 1000, step)
    threading.Timer(0.3, step.release, [2]).start()
    desk.close(0.1)
    assert job.all()[-1].left and job.made <= 2


def test_limits_that_cannot_be() -> None:
    for wrong in ({"max_bytes": 0}, {"running": 0}, {"waiting": -1}, {"max_seconds": float("nan")}):
        with pytest.raises(ConfigError, match=f"the limit {next(iter(wrong))} must be"):
            Limits(**wrong)
