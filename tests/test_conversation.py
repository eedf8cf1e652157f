"""The normalizer of conversations: every shape to one form, what it names, what it refuses, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobillama_v import conversation as names
from mobillama_v.conversation import Conversation, ConversationError, read_chat, read_record
from mobillama_v.errors import MobiLlamaVError
from mobillama_v.prompt import Message, Slot, arrange, assistant, user

QUESTION, ANSWER = "What color is the cross?", "orange"
MEANT = (user(QUESTION, images=1), assistant(ANSWER))
TEXT = {"type": "text", "text": QUESTION}


def turns(
    *said: Any, keys: tuple[str, str] = ("role", "content"), roles: tuple[str, str] = ("user", "assistant")
) -> Any:
    return [{keys[0]: roles[i % 2], keys[1]: each} for i, each in enumerate(said)]


LLAVA = turns(f"<image>\n{QUESTION}", ANSWER, keys=("from", "value"), roles=("human", "gpt"))
RECORDS = {
    "llava": {"image": "a.jpg", "conversations": LLAVA},
    "picture last": {"image": "a.jpg", "conversations": turns(f"{QUESTION}\n<image>", ANSWER)},
    "a list": {"images": ["a.jpg"], "conversations": LLAVA},
    "sharegpt": {"image": "a.jpg", "conversations": turns(f"<image>{QUESTION}", ANSWER, keys=("from", "value"))},
    "messages": {"images": ["a.jpg"], "messages": turns(f"<image>{QUESTION}", ANSWER)},
    "parts": {"images": ["a.jpg"], "messages": turns([{"type": "image"}, TEXT], [{"type": "text", "text": ANSWER}])},
    "text first": {"images": ["a.jpg"], "messages": turns([TEXT, {"type": "image"}], ANSWER)},
    "vsft": {
        "images": ["a.jpg"],
        "messages": turns(
            [{"type": "text", "text": QUESTION, "index": None}, {"type": "image", "text": None, "index": 0}], ANSWER
        ),
    },
    "inside": {"messages": turns([{"type": "image_url", "image_url": {"url": "a.jpg"}}, TEXT], ANSWER)},
    "responses": {
        "messages": turns(
            [{"type": "input_text", "text": QUESTION}, {"type": "input_image", "image_url": "a.jpg"}], ANSWER
        )
    },
    "datasets": {"images": [{"bytes": None, "path": "a.jpg"}], "messages": turns(f"<image>{QUESTION}", ANSWER)},
    "the_cauldron": {"images": ["a.jpg"], "texts": [{"user": QUESTION, "assistant": ANSWER, "source": "x"}]},
    "no marker": {"image": "a.jpg", "conversations": turns(QUESTION, ANSWER)},
    "in two turns": {"image": "a.jpg", "messages": [*turns("<image>"), *turns(QUESTION, ANSWER)]},
    "ours": {"image": "a.jpg", "messages": MEANT},
}


@pytest.mark.parametrize("shape", RECORDS)
def test_every_shape_of_one_meaning_has_one_form(shape: str) -> None:
    found = read_record(RECORDS[shape])
    assert (found.messages, found.images) == (MEANT, ("a.jpg",))
    assert read_record({"images": list(found.images), "messages": found.messages}) == Conversation(*MEANT_READ)


MEANT_READ = (MEANT, ("a.jpg",))


@pytest.mark.parametrize(
    ("record", "note"),
    [
        (RECORDS["llava"], None),
        (RECORDS["text first"], names.MOVED),
        (RECORDS["no marker"], names.PLACED),
        ({"messages": turns("a", "b"), "image": ""}, names.NO_PICTURE),
        ({"messages": [*turns("a"), *turns("b", "c")]}, names.MERGED),
        ({"messages": [*turns("a", "b"), {"role": "system", "content": "s"}]}, names.SYSTEM_FIRST),
        ({"messages": turns("hello", "a", "b", roles=("gpt", "human"))}, names.NO_QUESTION),
        ({"messages": turns("a", "\n  orange \n\n")}, names.BLANKS),
        ({"messages": turns("How many?", 3)}, names.NUMBER),
        ({"messages": [*turns("a"), {"role": "assistant", "content": "b", "weight": 0}]}, names.UNLEARNED),
        ({"messages": [*turns("a"), {"role": "tool", "content": "b"}, *turns("", "c")]}, names.TOOL),
    ],
)
def test_what_is_changed_is_named(record: Any, note: str | None) -> None:
    assert note in (read_record(record).notes or (None,))


def test_what_the_changes_are() -> None:
    said = [
        {"role": "assistant", "content": "Welcome."},
        {"role": "system", "content": "Be brief."},
        *turns("one"),
        {"from": "human", "value": "two"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]},
        {"role": "tool", "content": "12"},
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "assistant", "content": " three\n", "weight": 0},
    ]
    found = read_chat(said)
    assert found.messages == (
        Message("system", ("Be brief.\nBe kind.",)),
        user("one\ntwo\n12"),
        Message("assistant", ("three",), learned=False),
    )
    wanted = {names.NO_QUESTION, names.NO_ANSWER, names.MERGED, names.TOOL, names.SYSTEM_FIRST, names.BLANKS}
    assert set(found.notes) == wanted | {names.UNLEARNED}


def test_pictures_find_their_places() -> None:
    parts = [{"type": "image", "index": 1}, {"type": "image", "index": 0}, TEXT]
    assert read_record({"images": ["a", "b"], "messages": turns(parts, "x")}).images == ("b", "a")
    open_chat = read_chat(turns([{"type": "image"}, {"type": "image", "path": "b"}, TEXT]))
    assert open_chat.images == (None, "b") and open_chat.fill(["a"]).images == ("a", "b")
    with pytest.raises(ConversationError, match="1 images to be filled in, and 2 were given"):
        open_chat.fill(["a", "c"])
    assert read_chat("What?", [b"x"]) == Conversation((user("What?", images=1),), (b"x",), (names.PLACED,))
    assert read_chat(turns([{"type": "image", "base64": "AAAA"}])).images == ("data:;base64,AAAA",)


def test_what_a_person_types_is_only_text() -> None:
    assert read_chat(turns("<image> </s>")).messages == (user("<image> </s>"),)
    with_picture = read_record({"messages": turns([{"type": "image", "path": "a"}, "<image>"], "x")})
    assert with_picture.messages[0] == user("<image>", images=1)


@pytest.mark.parametrize(
    ("record", "message", "kind"),
    [
        (3, "not a int", names.MALFORMED),
        ({}, "no list of turns", names.MALFORMED),
        ({"messages": ["a"]}, "turn 1 is no mapping", names.MALFORMED),
        ({"messages": [{"role": "user"}]}, "turn 1 has no role and content", names.MALFORMED),
        ({"messages": [{"role": ["x"], "content": "a"}]}, "turn 1 is from list", names.MALFORMED),
        ({"messages": [{"role": "judge", "content": "a"}]}, "'judge', a role that is unknown", names.MALFORMED),
        ({"messages": turns([{"type": "video"}], "a")}, "'video'", names.MALFORMED),
        ({"messages": turns("a", [{"type": "image"}])}, "the assistant's, has a part", names.MALFORMED),
        ({"messages": turns("a", ["red", None])}, "NoneType", names.MALFORMED),
        ({"messages": turns("a", {"x": 1})}, "cannot be used", names.MALFORMED),
        ({"messages": turns("a", float("nan"))}, "a number that cannot be written", names.MALFORMED),
        ({"messages": turns("a", 10**5000)}, "a number that cannot be written", names.MALFORMED),
        ({"messages": turns("a", "\ud800")}, "half a character", names.MALFORMED),
        ({"messages": turns("a", "b"), "image": 3}, "neither a picture nor a list", names.MALFORMED),
        ({"messages": turns("a", "b"), "image": [""]}, "neither a picture nor a list", names.MALFORMED),
        ({"messages": turns("a", "b"), "image": "x", "images": ["x"]}, "both", names.MALFORMED),
        ({"messages": turns("a", " ")}, "turn 2 is an empty answer", names.EMPTY),
        ({"messages": turns("a", "b", "c")}, "does not end with an answer", names.ORDER),
        ({"messages": [{"role": "system", "content": "a"}]}, "no turns", names.ORDER),
        ({"messages": turns("<image>", "b")}, "1 <image> places and 0 images", names.COUNT),
        ({"messages": turns("<image>", "b"), "images": ["a", "b"]}, "1 <image> places and 2 images", names.COUNT),
        ({"messages": turns([{"type": "image", "index": 7}], "b"), "images": ["a"]}, "places", names.COUNT),
    ],
)
def test_what_has_no_form_is_refused_in_a_sentence(record: Any, message: str, kind: str) -> None:
    with pytest.raises(ConversationError) as caught:
        read_record(record)
    assert message in str(caught.value) and caught.value.kind == kind


def mostly(usual: Any, rare: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([usual] * 15 + [rare]).flatmap(lambda chosen: chosen)


TEXTS = st.text(max_size=8) | st.sampled_from(["<image>", "a <image> b", "<image>\n<image>", " ", "\n x \n"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image", "image_url", "input_image", "input_text", None])},
    optional={"text": mostly(TEXTS, JSON), "image": JSON, "image_url": JSON, "index": st.integers(-1, 2) | JSON},
)
CONTENT = mostly(TEXTS | st.integers() | st.lists(PART | TEXTS, max_size=4), JSON)
ROLE = mostly(st.sampled_from(["user", "assistant", "human", "gpt", "system", "tool", "Developer"]), JSON)
WEIGHT = {"weight": st.sampled_from([0, 1, 0.0]) | JSON, "tool_calls": JSON}
TURN = (
    st.fixed_dictionaries({"role": ROLE, "content": CONTENT}, optional=WEIGHT)
    | st.fixed_dictionaries({"from": ROLE, "value": CONTENT}, optional=WEIGHT)
    | st.fixed_dictionaries({"user": CONTENT, "assistant": CONTENT})
    | st.builds(user, TEXTS, images=st.integers(0, 2))
    | st.builds(assistant, TEXTS)
)
TURNS = mostly(st.lists(mostly(TURN, JSON), max_size=5), JSON)
PICTURES = mostly(st.lists(st.sampled_from(["a", "b", b"c"]), max_size=2), JSON)
VALUE = TURNS | st.builds(
    lambda turns, key, rest: {key: turns} | rest,
    TURNS,
    st.sampled_from(["messages", "conversations", "texts"]),
    mostly(
        st.dictionaries(st.sampled_from(["image", "images"]), PICTURES, max_size=1),
        JSON.filter(lambda v: type(v) is dict),
    ),
)


@given(VALUE, st.booleans())
def test_anything_is_normalized_or_refused(value: Any, record: bool) -> None:
    try:
        found = read_record(value) if record else read_chat(value)
    except MobiLlamaVError as error:
        assert str(error).endswith(".") and "\n" not in str(error) and len(str(error)) < 300
        return
    body = found.messages[found.messages[0].role == "system" :]
    assert [each.role for each in body] == ["assistant" if i % 2 else "user" for i in range(len(body))]
    assert all(each.text == each.text.strip() or each.images for each in found.messages)
    assert len(found.images) == sum(each.images for each in body)
    assert all(each.content == arrange(each.content) for each in body if each.role == "user")
    assert not record or None not in found.images
    again = read_chat(found.messages)
    assert again.messages == found.messages and not set(again.notes) - {names.NO_ANSWER}
    assert sum(part is Slot.IMAGE for each in body for part in each.content) == len(again.images)


def test_a_picture_under_another_name_is_not_passed_over() -> None:
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "Red"}]
    with pytest.raises(ConversationError, match=r"no 'image', and its 'photo' names a picture \(a\.png\)"):
        read_record({"id": "7.png", "photo": "a.png", "conversations": turns})
    assert read_record({"id": "7.png", "image": "", "photo": "a.png", "conversations": turns}).images == ()
