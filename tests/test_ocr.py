"""Words that a library reads in pictures stand in the prompt, wherever it is made."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from PIL import Image
from signs import sign
from typer.testing import CliRunner

from mobillama_v.assistant import Assistant
from mobillama_v.cli.main import app
from mobillama_v.errors import ImageError, MissingExtraError
from mobillama_v.loading import load
from mobillama_v.ocr import Reader, reading_order, with_tokens
from mobillama_v.prompt import SHORT_ANSWER, user

HAVE_IT = all(importlib.util.find_spec(name) for name in ("rapidocr", "onnxruntime"))


class Fake:
    """Finds the picture's size in place of words."""

    def read(self, picture: Image.Image) -> list[str]:
        return [str(side) for side in picture.size]


@pytest.fixture(scope="module")
def reading() -> Assistant:
    assistant = load("nano")
    assistant.reader = Fake()  # type: ignore[assignment]
    return assistant


def test_the_line_of_tokens_stands_before_the_request_for_a_short_answer() -> None:
    assert (
        with_tokens(f"What is it?{SHORT_ANSWER}", ["A", "B"]) == f"What is it?\nReference OCR token: A, B{SHORT_ANSWER}"
    )
    assert with_tokens("What is it?", []) == "What is it?\nReference OCR token: "


def test_words_are_part_of_the_prompt(reading: Assistant, tmp_path: Path) -> None:
    """The whole picture is read, not what the tower needs; the prompt is that of a user who types the line."""
    path = tmp_path / "large.jpg"
    Image.new("RGB", (1200, 900), "navy").save(path)
    seen = reading.encode_image(path)
    assert seen.words == ("1200", "900")
    plain = load("nano")
    typed = plain.ask([path], with_tokens("What is written?", ["1200", "900"]))
    asked = reading.ask([path], "What is written?")
    assert (asked.text, asked.prompt_tokens) == (typed.text, typed.prompt_tokens)


def test_every_turn_keeps_the_words_of_its_own_images(reading: Assistant) -> None:
    small, wide = Image.new("RGB", (30, 40)), Image.new("RGB", (60, 50))
    chat = reading.chat([small])
    chat.ask("What is written?")
    chat.add_image(wide)
    chat.ask("And here?")
    texts = [message.text for message in chat.messages if message.role == "user"]
    assert texts == ["\nWhat is written?", "\nAnd here?"]  # what was said stays as it was said
    messages = [
        user(with_tokens("What is written?", ["30", "40"]), images=1),
        chat.messages[1],
        user(with_tokens("And here?", ["60", "50"]), images=1),
    ]
    images = [reading.encode_image(each) for each in (small, wide)]
    plain = load("nano")
    typed = plain.ask([small, wide], messages)
    asked = reading.ask(images, chat.messages[:3])
    assert (asked.text, asked.prompt_tokens) == (typed.text, typed.prompt_tokens)


@pytest.mark.parametrize("command", ["describe", "chat"])
def test_without_the_library_its_extra_is_named(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    result = CliRunner().invoke(app, [command, str(tmp_path / "a.png"), "--ocr"], input="What is it?\n")
    assert isinstance(result.exception, MissingExtraError) or result.exit_code == 2
    with pytest.raises(MissingExtraError, match=r"pip install 'mobillama-v\[ocr\]'"):
        load("nano", ocr=True)


@pytest.mark.parametrize("command", ["serve", "demo"])
def test_a_server_without_the_library_does_not_start(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="needs the extra demo")
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    result = CliRunner().invoke(app, [command, "--ocr", "--port", "0"])
    assert "pip install 'mobillama-v[ocr]'" in result.stderr + str(result.exception)
    assert isinstance(result.exception, MissingExtraError) or result.exit_code == 2


@pytest.mark.skipif(not HAVE_IT, reason="the extra ocr is not installed")
def test_the_library_reads_drawn_words_in_order(tmp_path: Path) -> None:
    reader = Reader()
    assert reader.read(sign(("OPEN", (30, 40, 190, 90)), ("DAILY", (30, 120, 190, 170)))) == ["OPEN", "DAILY"]
    assert reader.read(Image.new("RGB", (64, 64), "green")) == []
    # Grey and with transparency, as any picture may be.
    sign(("STOP", (30, 80, 190, 140))).convert("LA").save(tmp_path / "grey.png")
    assert reader.read(tmp_path / "grey.png") == ["STOP"]
    with pytest.raises(ImageError, match=r"none\.png"):
        reader.read(tmp_path / "none.png")


def test_rows_are_read_from_the_top_and_each_from_the_left() -> None:
    def box(left: float, top: float, *, width: float = 50, height: float = 20) -> list[list[float]]:
        right, bottom = left + width, top + height
        return [[left, top], [right, top], [right, bottom], [left, bottom]]

    # The second row is written slightly upwards; its large word begins above its small ones.
    boxes = [box(100, 44), box(60, 0), box(160, 30, height=40), box(0, 48), box(0, 2)]
    assert reading_order(boxes) == [4, 1, 3, 0, 2]
    assert reading_order([box(0, 30 * i) for i in (2, 0, 1)]) == [1, 2, 0]
    assert reading_order([]) == []
