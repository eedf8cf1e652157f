"""The page's answers, without the page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mobillama_v.demo.history import FAILED, user_messages
from mobillama_v.demo.limits import Limits
from mobillama_v.demo.service import Service
from mobillama_v.demo.sessions import Sessions
from mobillama_v.demo.ui import ChatHandler
from mobillama_v.generate import Sampling
from mobillama_v.loading import load


@pytest.fixture
def handler(nano_like: Path, tmp_path: Path) -> Iterator[ChatHandler]:
    service = Service({"tiny": lambda: load(str(nano_like), device="cpu")}, Limits(max_images=2))
    yield ChatHandler(service, Sessions(tmp_path, shared=tmp_path / "shared"))
    service.close()


async def answered(handler: ChatHandler, history: list[dict[str, Any]]) -> str:
    *_, (shown, _) = [each async for each in handler.answer(history, "tiny", Sampling(5), "token", "tab")]
    return shown[-1]["content"][0]["text"]


def test_too_many_pictures_are_refused_before_they_are_read(handler: ChatHandler, tmp_path: Path) -> None:
    path = str(tmp_path / "gone.png")
    handler.sessions.upload("token", [path])
    for count, expected in (
        (3, "The conversation has 3 pictures; at most 2"),
        (2, "That picture is not here any more"),
    ):
        found = asyncio.run(answered(handler, user_messages("What?", [path] * count)))
        assert found.startswith(f"{FAILED}{expected}")
    assert handler.service.scheduler.waiting == 0


def test_pictures_are_read_in_a_place(handler: ChatHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[int] = []
    monkeypatch.setattr(handler, "_read", lambda *_: waiting.append(handler.service.scheduler.waiting) or [])
    assert asyncio.run(answered(handler, user_messages("What?", [])))
    assert waiting == [1]
