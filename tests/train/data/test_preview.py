"""Views of records: what they show is what is learned."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mobillama_v.images import ImageTransform
from mobillama_v.train.data.encoding import Encoding
from mobillama_v.train.data.preview import page, views

TURNS = [
    {"from": "human", "value": "<image>\nWhat <b>is</b> it?"},
    {"from": "gpt", "value": "A café ☕."},
    {"from": "human", "value": "Sure?"},
    {"from": "gpt", "value": "Yes."},
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    records = [
        {"id": "good", "image": "a.png", "conversations": TURNS},
        {"id": "bad", "image": "a.png", "conversations": TURNS[:3]},
        {"id": "text<i>", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho."}]},
        {"id": "gone", "image": "none.png", "conversations": TURNS},
    ]
    (tmp_path / "data.json").write_text(json.dumps(records))
    return tmp_path / "data.json"


def encoding(folder: Path, max_length: int = 400) -> Encoding:
    return Encoding(folder / "tokenizer.json", 1, 2, 0, "v1", 49, max_length)


def test_a_view_shows_every_token_and_what_is_learned(data: Path, nano_like: Path) -> None:
    found = list(views([data], encoding(nano_like), count=9))
    assert [view.record for view in found] == ["good", "bad", "text<i>", "gone"]
    good = found[0]
    assert (good.images, good.shortened) == (("a.png",), False)
    assert "".join(token.text for token in good.tokens if token.learned) == " A café ☕.</s> Yes.</s>"
    text = "".join(token.text for token in good.tokens)
    assert text.startswith("<s>A chat between")
    assert (
        "USER: image 1: 49 tokens\nWhat <b>is</b> it? ASSISTANT: A café ☕.</s>USER: Sure? ASSISTANT: Yes.</s>" in text
    )
    assert good.length == len(good.tokens) + 48
    assert found[1].problem is not None
    assert "end with an answer" in found[1].summary()


def test_records_of_an_id_are_found_wherever_they_are(data: Path, nano_like: Path) -> None:
    found = list(views([data, data], encoding(nano_like), count=1, records=["gone", "bad"]))
    assert [view.record for view in found] == ["bad", "gone"] * 2
    assert [view.record for view in views([data, data], encoding(nano_like), count=5)][3:] == ["gone", "good"]


def test_a_view_of_a_record_that_is_cut_says_so(data: Path, nano_like: Path) -> None:
    whole = next(views([data], encoding(nano_like), count=1))
    cut = next(views([data], encoding(nano_like, whole.length - 1), count=1))
    assert cut.shortened
    assert "left out" in cut.summary()
    assert "Yes" not in "".join(token.text for token in cut.tokens)


def test_the_page_is_escaped_and_holds_the_pictures(data: Path, nano_like: Path) -> None:
    found = list(views([data], encoding(nano_like), count=9))
    html = page(found, image_root=data.parent, transform=ImageTransform(size=32), title="a <title>")
    assert "<b>" not in html and "<i>" not in html and "a <title>" not in html
    assert html.count("<img ") == 1
    assert "none.png" in html
    learned = re.findall(r'<span title="\d+" class="learned">([^<]*)</span>', html)
    assert "".join(learned).startswith(" A café ☕.&lt;/s&gt; Yes.&lt;/s&gt; Ho.")
    assert "http" not in html.replace("http-equiv", "")


def test_the_command(data: Path, nano_like: Path, tmp_path: Path) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mobillama_v", "data", "preview", str(data), "--model", str(nano_like)]
        return subprocess.run([*command, *args], capture_output=True, text=True, cwd="/")

    done = run("--record", "good")
    assert (done.returncode, done.stderr) == (0, "")
    assert "⟦ A café ☕.</s>⟧USER: Sure? ASSISTANT:⟦ Yes.</s>⟧" in done.stdout
    done = run("--html", str(tmp_path / "a.html"), "--image-root", str(tmp_path), "-n", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "a.html").read_text().count("<article>") == 2
    done = run("--record", "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no record with the id none" in done.stderr
