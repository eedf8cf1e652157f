"""The session layer: the assistant's own answers, within limits, with every picture encoded once for its owner."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobillama_v.assistant import Assistant
from mobillama_v.backends.native import library
from mobillama_v.backends.native.engine import NativeEngine
from mobillama_v.demo.limits import LimitError, Limits
from mobillama_v.demo.service import Picture, Service, Stopped
from mobillama_v.errors import ImageError, ModelNotFoundError, PromptError
from mobillama_v.generate import Sampling
from mobillama_v.loading import load
from mobillama_v.ocr import with_tokens
from mobillama_v.prompt import Message, assistant, user
from mobillama_v.reply import Reply
from serving import RAMP, RED, encoded

SHORT, LONG = Sampling(max_new_tokens=10), Sampling(max_new_tokens=400)


@pytest.fixture(scope="module")
def model(nano_like: Path) -> Assistant:
    return load(str(nano_like), device="cpu")


@pytest.fixture
def service(model: Assistant) -> Iterator[Service]:
    limits = Limits(100_000, 100_000, 150_000, 2, max_new_tokens=400)
    made = Service({"tiny": lambda: model}, limits)
    yield made
    made.close()


def picture(image: Any, name: str = "it") -> Picture:
    return Picture(encoded(image), name)


async def answered(
    service: Service, messages: list[Message], pictures: list[Picture], sampling: Sampling = SHORT, owner: str = "a"
) -> Reply:
    place = service.scheduler.enter(owner)
    items = [item async for item in service.answer(place, "tiny", messages, pictures, sampling)]
    assert isinstance(items[-1], Reply)
    assert "".join(item for item in items if isinstance(item, str)).strip() == items[-1].text
    return items[-1]


def ended(service: Service, reason: str) -> float | None:
    """How many answers ended so."""
    return service.metrics.registry.get_sample_value("mobillama_v_answers_total", {"reason": reason})


def test_the_answer_is_the_assistants(service: Service, model: Assistant) -> None:
    turns = [user("What?", images=1), assistant("Red."), user("And this?", images=1)]
    sampling = Sampling(20, temperature=1.0, seed=1)
    reply = asyncio.run(answered(service, turns, [picture(RED), picture(RAMP)], sampling))
    expected = model.ask([RED, RAMP], turns, sampling)
    assert (reply.text, reply.prompt_tokens, reply.image_tokens) == (expected.text, expected.prompt_tokens, 168)
    assert reply.timings.images > 0


class Sides:
    """Finds a picture's size in place of words."""

    def read(self, picture: Image.Image) -> list[str]:
        return [str(side) for side in picture.size]


def test_words_are_read_in_the_whole_picture(
    service: Service, model: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for its owner, and they stay beside it where parts of it are covered."""
    wide = Image.new("RGB", (300, 260), "navy")
    turn = [user("What does it say?", images=1)]
    expected = model.ask([wide], [user(with_tokens("What does it say?", ["300", "260"]), images=1)], SHORT)
    monkeypatch.setattr(model, "reader", Sides())
    found = [asyncio.run(answered(service, turn, [picture(wide)])) for _ in range(2)]
    assert [(each.text, each.prompt_tokens) for each in found] == [(expected.text, expected.prompt_tokens)] * 2

    async def explained() -> list[Image.Image]:
        place = service.scheduler.enter("a")
        return [each async for each in service.explain(place, "tiny", turn, [picture(wide)], found[0].text)]

    monkeypatch.setattr(Sides, "read", lambda *_: pytest.fail("read again"))
    assert asyncio.run(explained())


def test_answers_at_once_do_not_disturb_each_other(service: Service, model: Assistant) -> None:
    asked = [(user(f"Question {n}?", images=1), image) for n in range(3) for image in (RED, RAMP)]

    async def all_at_once() -> list[Reply]:
        return await asyncio.gather(
            *(answered(service, [turn], [picture(image)], owner=str(n)) for n, (turn, image) in enumerate(asked))
        )

    for reply, (turn, image) in zip(asyncio.run(all_at_once()), asked, strict=True):
        assert reply.text == model.ask([image], [turn], SHORT).text


@pytest.mark.skipif(bool(library.missing()), reason=f"no native library: {library.missing()}")
def test_answers_at_once_are_decoded_together(
    service: Service, model: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with settings of its own and piece by piece; who gives up in the midst disturbs nobody."""
    assert isinstance(model.engine, NativeEngine)
    settings = [Sampling(30), Sampling(40, temperature=1.2, seed=7), Sampling(35, temperature=0.8, top_p=0.9, seed=8)]
    turn = [user("What is this?", images=1)]
    expected = [model.ask([RED], turn, each).text for each in settings]
    widths, started, all_started = [], [], threading.Event()
    forward, start = model.engine.model.forward, service.scheduler.start

    def counted(sequences: Any, inputs: Any) -> Any:
        all_started.wait(30)  # else the first might have ended before the last begins
        widths.append(len(sequences))
        return forward(sequences, inputs)

    def starting(*args: Any) -> None:
        start(*args)
        started.append(args)
        if len(started) == 4:
            all_started.set()

    monkeypatch.setattr(model.engine.model, "forward", counted)
    monkeypatch.setattr(service.scheduler, "start", starting)

    async def gives_up() -> None:
        place = service.scheduler.enter("d")
        with pytest.raises(Stopped):
            async for _ in service.answer(place, "tiny", turn, [picture(RED)], Sampling(200)):
                if len(widths) > 20:
                    place.leave()

    async def all_at_once() -> list[Reply]:
        asked = (answered(service, turn, [picture(RED)], each, owner=str(i)) for i, each in enumerate(settings))
        *replies, _ = await asyncio.gather(*asked, gives_up())
        return replies

    assert [reply.text for reply in asyncio.run(all_at_once())] == expected
    assert max(widths) == 4 and len(widths) < 60, widths  # four prompts, and as many steps as the longest answer has


def test_a_picture_is_encoded_once_for_its_owner(
    service: Service, model: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    original = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda image, *words: seen.append(image) or original(image, *words))
    decoded: list[Picture] = []
    decode = service._decode
    monkeypatch.setattr(service, "_decode", lambda *args: decoded.append(args[1]) or decode(*args))
    texts = {asyncio.run(answered(service, [user("What?", images=1)], [picture(RED)])).text for _ in range(3)}
    fresh = [image for image in seen if not hasattr(image, "features")]
    assert len(texts) == 1 and len(fresh) == len(decoded) == 1
    asyncio.run(answered(service, [user("What?", images=1)], [picture(RED)], owner="b"))
    assert len([image for image in seen if not hasattr(image, "features")]) == 2
    service.seen.forget("a")
    asyncio.run(answered(service, [user("What?", images=1)], [picture(RED)]))
    assert len([image for image in seen if not hasattr(image, "features")]) == 3


def test_over_the_limits(service: Service) -> None:
    for messages, pictures, sampling, error, message in (
        ([user("?", images=3)], [picture(RED)] * 3, SHORT, LimitError, "3 pictures; at most 2"),
        ([user("?", images=1)], [Picture(b"x" * 100_001, "it")], SHORT, LimitError, "it has 100,001 bytes"),
        ([user("?")], [], Sampling(401), LimitError, "401 tokens was asked for; at most 400"),
        ([user("word " * 3000)], [], SHORT, PromptError, "context is 512"),
        ([user("?", images=1)], [], SHORT, PromptError, "0 were given"),
        ([user("?", images=1)], [picture(RED.resize((400, 300)))], SHORT, ImageError, "400 x 300 pixels"),
        ([user("?", images=2)], [picture(RED.resize((300, 300)))] * 2, SHORT, LimitError, "more than 150,000 pixels"),
        ([user("?", images=1)], [Picture(b"x", "it")], SHORT, ImageError, "it is not an image"),
    ):
        with pytest.raises(error, match=message):
            asyncio.run(answered(service, messages, pictures, sampling))
    assert service.scheduler.running == service.scheduler.waiting == 0
    with pytest.raises(ModelNotFoundError, match="no model 'other' here: tiny"):
        service.assistant("other")
    assert ended(service, "error") == 8


def test_a_model_that_is_being_loaded_holds_up_no_other(model: Assistant) -> None:
    begun, loaded, waited = threading.Event(), threading.Event(), []

    def slow() -> Assistant:
        begun.set()
        waited.append(loaded.wait(10))
        return model

    service = Service({"tiny": lambda: model, "slow": slow})
    service.assistant("tiny")
    loading = threading.Thread(target=service.assistant, args=("slow",))
    loading.start()
    try:
        assert begun.wait(20) and service.assistant("tiny") is model
    finally:
        loaded.set()
        loading.join()
        service.close()
    assert waited == [True], "the one had to wait until the other was loaded"


def test_leaving_ends_it_within_a_token(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def leave_after(count: int) -> int:
        place, got = service.scheduler.enter("a"), 0
        with pytest.raises(Stopped):
            async for _ in service.answer(place, "tiny", [user("What?")], [], LONG):
                got += 1
                if got == count:
                    place.leave()
        return got

    got = asyncio.run(leave_after(3))
    assert got < 400 and service.scheduler.running == 0
    assert ended(service, "stopped") == 1


def test_pictures_of_who_has_left_are_not_decoded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    first, go_on = threading.Event(), threading.Event()
    decode = service._decode

    def slow(assistant: Assistant, shown: Picture, read: bool = True) -> Any:
        decoded.append(shown.name)
        first.set()
        assert go_on.wait(20)
        return decode(assistant, shown, read)

    monkeypatch.setattr(service, "_decode", slow)

    async def leave() -> None:
        ticket = service.scheduler.enter("a")
        shown = [picture(RED, "one"), picture(RAMP, "two")]
        items = service.answer(ticket, "tiny", [user("?", images=2)], shown, SHORT)
        answer = asyncio.ensure_future(anext(items))
        await asyncio.to_thread(first.wait, 20)
        ticket.leave()
        go_on.set()
        with pytest.raises(Stopped):
            await answer

    asyncio.run(leave())
    assert decoded == ["one"] and service.scheduler.waiting == 0


def test_small_pictures_do_not_wait_for_large_ones(service: Service) -> None:
    running, go_on = threading.Event(), threading.Event()

    def large() -> bool:
        running.set()
        return go_on.wait(20)

    async def both() -> tuple[bool, Reply]:
        slow = asyncio.ensure_future(service.workers.run(True, large))
        await asyncio.to_thread(running.wait, 20)
        reply = await answered(service, [user("?", images=1)], [picture(RED)])
        go_on.set()
        return await slow, reply

    waited, reply = asyncio.run(both())
    assert waited and reply.image_tokens == 84


def test_an_abandoned_answer_stops(service: Service) -> None:
    async def abandon() -> None:
        items = service.answer(service.scheduler.enter("a"), "tiny", [user("What?")], [], LONG)
        await anext(items)
        await items.aclose()

    asyncio.run(abandon())
    for _ in range(1000):
        if not service.scheduler.running:
            break
    asyncio.run(answered(service, [user("What?")], []))
    assert service.scheduler.running == 0


@pytest.mark.slow
def test_explaining(service: Service) -> None:
    async def explained() -> list[Any]:
        place = service.scheduler.enter("a")
        asked = [user("What?", images=1)]
        return [each async for each in service.explain(place, "tiny", asked, [picture(RAMP)], "A square.")]

    for _ in range(2):  # the second time the picture has been encoded already
        maps = asyncio.run(explained())
        assert len(maps) == 7 and maps[-1].size == (448, 448) and len(set(maps[-1].convert("L").tobytes())) > 20


def test_time_is_limited(model: Assistant) -> None:
    service = Service({"tiny": lambda: model}, Limits(max_seconds=1, max_new_tokens=400))
    object.__setattr__(service.limits, "max_seconds", 1e-6)
    try:
        reply = asyncio.run(answered(service, [user("What?")], [], LONG))
        assert (reply.new_tokens, reply.finish_reason) == (1, "length")
    finally:
        service.close()
