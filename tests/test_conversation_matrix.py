"""One meaning through every door: the same token ids and the same image slots."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mobillama_v import Assistant, load
from mobillama_v.conversation import read_chat, read_record
from mobillama_v.demo.history import conversation, user_messages
from mobillama_v.demo.limits import Limits
from mobillama_v.demo.protocol import parse
from mobillama_v.demo.request_bodies import ChatBody
from mobillama_v.generate import Prompt
from mobillama_v.hf.processing import MobiLlamaVProcessor
from mobillama_v.prompt import Encoded, Message, Slot, assistant, user
from mobillama_v.train.data.records import parse_record

FIRST, SAID, NEXT = "What color is the cross?", "orange", "And the circle?"
RED = Image.new("RGB", (40, 30), (200, 40, 40))


@pytest.fixture(scope="module")
def model(nano_like: Path) -> Assistant:
    return load(str(nano_like), device="cpu")


@pytest.fixture(scope="module")
def processor(nano_like: Path) -> MobiLlamaVProcessor:
    return MobiLlamaVProcessor.from_pretrained(nano_like)


def url() -> str:
    buffer = BytesIO()
    RED.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


TEXT: dict[str, Any] = {"type": "text", "text": FIRST}
IMAGE: dict[str, Any] = {"type": "image", "image": RED}
URL: dict[str, Any] = {"type": "image_url", "image_url": {"url": url()}}


def chat(parts: Any) -> list[dict[str, Any]]:
    later = [{"role": "assistant", "content": SAID}, {"role": "user", "content": NEXT}]
    return [{"role": "user", "content": parts}, *later]


def captured(model: Assistant, monkeypatch: pytest.MonkeyPatch, *args: Any) -> Encoded:
    """What the engine is asked to run."""
    seen: list[Prompt] = []
    monkeypatch.setattr(model.engine, "prefill", lambda prompts, *_: seen.extend(prompts) or [][1])
    with pytest.raises(IndexError):
        model.ask(*args)
    return seen[0].encoded


@pytest.mark.parametrize(
    "messages",
    [
        chat([IMAGE, TEXT]),
        chat([TEXT, IMAGE]),
        chat([URL, TEXT]),
        [{"role": "user", "content": [IMAGE]}, *chat(FIRST)],
        [*chat([TEXT])[:1], {"role": "user", "content": [IMAGE]}, *chat("")[1:]],
        [{"role": "assistant", "content": "Welcome."}, *chat([TEXT, IMAGE])],
        {"messages": chat(FIRST), "images": [RED]},
        {"conversations": [{"from": t["role"], "value": t["content"]} for t in chat(FIRST)], "image": RED},
    ],
    ids=range(8),
)
def test_chats_of_one_meaning_are_one_prompt(
    messages: Any, model: Assistant, processor: MobiLlamaVProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = model.encode_messages([user(FIRST, images=1), assistant(SAID), user(NEXT)])
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert inputs["input_ids"].tolist() == [wanted.input_ids] and inputs["image_mask"].tolist() == [wanted.image_mask]
    pixels = processor(images=RED, text="x")["pixel_values"]
    assert inputs["pixel_values"].tolist() == pixels.tolist()
    asked = captured(model, monkeypatch, [], messages)
    assert (asked.input_ids, asked.image_mask) == (wanted.input_ids, wanted.image_mask)


def test_doors_of_one_meaning_are_one_prompt(
    model: Assistant, processor: MobiLlamaVProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = model.encode_messages([user(FIRST, images=1), assistant(SAID), user(NEXT)])
    request = parse({"model": "nano", "messages": chat([TEXT, URL])}, ChatBody, Limits())
    marked = [{"from": "human", "value": f"{FIRST}\n<image>"}, {"from": "gpt", "value": SAID}]
    record = {
        "image": "a.png",
        "conversations": [*marked, {"from": "human", "value": NEXT}, {"from": "gpt", "value": "x"}],
    }
    shown = [*user_messages(FIRST, ["a.png"]), {"role": "assistant", "content": SAID}, *user_messages(NEXT, [])]
    ours = (Message("user", (FIRST, Slot.IMAGE)), assistant(SAID), user(NEXT))
    doors = {
        "server": request.messages,
        "training": list(parse_record(record, source="f", place="1").messages)[:-1],
        "record": read_record(record).messages[:-1],
        "demo": conversation(shown)[0],
        "messages": ours,
        "chat": read_chat(chat(FIRST), [RED]).messages,
    }
    for door, messages in doors.items():
        found = model.encode_messages(messages)
        assert (door, found.input_ids, found.image_mask) == (door, wanted.input_ids, wanted.image_mask)
    talk = model.chat([RED])
    talk.messages, talk.images, talk.waiting = [user(FIRST, images=1), assistant(SAID)], talk.waiting, []
    seen: list[Prompt] = []
    monkeypatch.setattr(model.engine, "prefill", lambda prompts, *_: seen.extend(prompts) or [][1])
    with pytest.raises(IndexError):
        talk.ask(NEXT)
    assert seen[0].encoded.input_ids == wanted.input_ids


def test_one_question_is_one_prompt(
    model: Assistant, processor: MobiLlamaVProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = model.encode_messages([user(FIRST, images=1)]).input_ids
    assert processor(images=RED, text=f" {FIRST}\n")["input_ids"].tolist() == [wanted]
    assert captured(model, monkeypatch, [RED], f" {FIRST}\n").input_ids == wanted
