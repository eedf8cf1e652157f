"""A chat window's messages as a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from mobillama_v.demo.history import FAILED, conversation, edit_message, last_answer, pop_question, user_messages
from mobillama_v.prompt import assistant, user


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def test_turns_and_pictures_in_order() -> None:
    history = [
        *user_messages("What?", ["a.png", "b.png"]),
        said(" A cat. "),
        *user_messages("And this?", ["c.png"]),
    ]
    messages, paths = conversation(history)
    assert messages == [user("What?", images=2), assistant("A cat."), user("And this?", images=1)]
    assert paths == ["a.png", "b.png", "c.png"]


def test_a_picture_alone_is_described_and_neighbours_are_one_turn() -> None:
    assert conversation([*user_messages("", ["a.png"])]) == ([user("Describe the image.", images=1)], ["a.png"])
    history = [*user_messages("", ["a.png"]), *user_messages("What?", ["b.png"])]
    assert conversation(history) == ([user("What?", images=2)], ["a.png", "b.png"])
    assert conversation([{"role": "user", "content": "What?"}]) == ([user("What?")], [])


def test_what_was_not_answered_is_not_told() -> None:
    history = [
        *user_messages("broken", ["bad.png"]),
        said(f"{FAILED}The picture is damaged."),
        *user_messages("stopped", ["a.png"]),
        said(""),
        *user_messages("half", ["b.png"]),
        said("An answer that was"),
        said(f"{FAILED}The server is shutting down."),
        *user_messages("now", []),
    ]
    messages, paths = conversation(history)
    assert [message.text.strip() for message in messages][::2] == ["half", "now"] and paths == ["b.png"]
    assert messages[1].text.startswith("An answer that was")


def test_a_history_must_end_with_a_question() -> None:
    for history in ([], [*user_messages("What?", []), said("A cat.")]):
        with pytest.raises(ValueError, match="user's turn"):
            conversation(history)


def test_taking_back_and_editing() -> None:
    history = [
        *user_messages("one", ["a.png"]),
        said("1"),
        *user_messages("", ["b.png"]),
        *user_messages("two", []),
        said("2"),
    ]
    assert pop_question(history) == (history[:3], "two", ["b.png"])
    assert pop_question([]) == ([], "", [])
    assert edit_message(history, 1, "other") == user_messages("other", ["a.png"])
    assert edit_message(history, 4, "other") == [*history[:4], *user_messages("other", [])]


def test_the_last_answer() -> None:
    history = [*user_messages("one", ["a.png"]), said("1"), *user_messages("two", []), said(f"{FAILED}No.")]
    assert last_answer(history) == (history[:2], "1")
    assert last_answer(history[:2]) is None and last_answer([]) is None
