"""A chat window's messages as a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from mobillama_v.demo.history import FAILED, conversation, edited, last_answer, take_back, turn_of
from mobillama_v.prompt import assistant, user


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def test_turns_and_pictures_in_order() -> None:
    history = [
        *turn_of("What?", ["a.png", "b.png"]),
        said(" A cat. "),
        *turn_of("And this?", ["c.png"]),
    ]
    messages, paths = conversation(history)
    assert messages == [user("What?", images=2), assistant("A cat."), user("And this?", images=1)]
    assert paths == ["a.png", "b.png", "c.png"]


def test_a_picture_alone_is_described_and_neighbours_are_one_turn() -> None:
    assert conversation([*turn_of("", ["a.png"])]) == ([user("Describe the image.", images=1)], ["a.png"])
    history = [*turn_of("", ["a.png"]), *turn_of("What?", ["b.png"])]
    assert conversation(history) == ([user("What?", images=2)], ["a.png", "b.png"])
    assert conversation([{"role": "user", "content": "What?"}]) == ([user("What?")], [])


def test_what_was_not_answered_is_not_told() -> None:
    history = [
        *turn_of("broken", ["bad.png"]),
        said(f"{FAILED}The picture is damaged."),
        *turn_of("stopped", ["a.png"]),
        said(""),
        *turn_of("half", ["b.png"]),
        said("An answer that was"),
        said(f"{FAILED}The server is shutting down."),
        *turn_of("now", []),
    ]
    messages, paths = conversation(history)
    assert [message.text.strip() for message in messages][::2] == ["half", "now"] and paths == ["b.png"]
    assert messages[1].text.startswith("An answer that was")


def test_a_history_must_end_with_a_question() -> None:
    for history in ([], [*turn_of("What?", []), said("A cat.")]):
        with pytest.raises(ValueError, match="user's turn"):
            conversation(history)


def test_taking_back_and_editing() -> None:
    history = [*turn_of("one", ["a.png"]), said("1"), *turn_of("", ["b.png"]), *turn_of("two", []), said("2")]
    assert take_back(history) == (history[:3], "two", ["b.png"])
    assert take_back([]) == ([], "", [])
    assert edited(history, 1, "other") == turn_of("other", ["a.png"])
    assert edited(history, 4, "other") == [*history[:4], *turn_of("other", [])]


def test_the_last_answer() -> None:
    history = [*turn_of("one", ["a.png"]), said("1"), *turn_of("two", []), said(f"{FAILED}No.")]
    assert last_answer(history) == (history[:2], "1")
    assert last_answer(history[:2]) is None and last_answer([]) is None
