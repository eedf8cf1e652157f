"""The demo in a real browser: what a visitor does, what another must not see, and what is gone afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import serving
from demo_page import WAIT, answers, ask, choose, pictures, wait_for_answer, watch
from mobillama_v.demo.ui import EXAMPLES
from serving import CHROMIUM, RAMP, RED, Running, encoded


@pytest.fixture(scope="module")
def talkative(nano_like: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a long context, which never ends an answer by itself."""
    from safetensors.numpy import load_file, save_file

    folder = tmp_path_factory.mktemp("models") / "talkative"
    shutil.copytree(nano_like, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 8000
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][config["text_config"]["eos_token_id"]] = 0
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def demo(nano_like: Path, talkative: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    temporary = tmp_path_factory.mktemp("temporary")
    options = ("--model", str(nano_like), "--max-bytes", "500000", "--max-new-tokens", "6000")
    with serving.running("demo", talkative, *options, TMPDIR=str(temporary)) as started:
        yield started
    assert list(temporary.iterdir()) == [], "uploads were left behind"
    assert "Traceback" not in "".join(started.lines), "".join(started.lines)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install -e '.[dev]'"
    )
    if not CHROMIUM:
        pytest.skip("no Chromium is installed, so the demo was opened in no browser: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, demo: Running) -> Iterator[Callable[..., Any]]:
    """Open the demo as a new visitor; whatever the browser complains of fails the test."""
    contexts, complaints = [], []

    def open_page(tokens: int | None = 40, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1240, "height": 860}} | options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)
        page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith((demo.url, "data:", "blob:")) or complaints.append(request.url),
        )
        page.goto(demo.url)
        page.wait_for_selector("#status b")
        if tokens is not None:
            choose(page, tokens)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    RED.save(folder / "red.png")
    RAMP.save(folder / "ramp.png")
    (folder / "broken.jpg").write_bytes(encoded(Image.effect_noise((400, 300), 80).convert("RGB"), "JPEG")[:3000])
    (folder / "large.png").write_bytes(os.urandom(600_000))
    return folder


def test_two_questions_about_a_picture(visit: Callable[..., Any], files: Path, talkative: Path) -> None:
    from mobillama_v.generate import Sampling
    from mobillama_v.loading import load

    model = load(str(talkative), device="cpu")
    chat = model.chat([RED])
    page = visit()
    page.evaluate(
        """() => { window.lengths = new Set(); setInterval(() => {
            const all = document.querySelectorAll('#chat .bot.message');
            if (all.length) lengths.add(all[all.length - 1].innerText.length); }, 5); }"""
    )
    ask(page, "What is this?", files / "red.png")
    first = wait_for_answer(page, 1)
    assert first.split() == chat.ask("What is this?", Sampling(40)).text.split()
    assert page.evaluate("lengths.size") > 1, "the answer did not stream"
    ask(page, "And why?")
    assert wait_for_answer(page, 2).split() == chat.ask("And why?", Sampling(40)).text.split()
    engine = r"(PyTorch float32 on cpu|native 16 bit on cpu \(\w+\))"
    told = rf"talkative · {engine} · first token after [\d.]+ s · \d+ tokens/s · \d+ tokens"
    assert re.search(told, page.inner_text("#status"))
    assert len(pictures(page)) == 1


def test_where_it_looked(visit: Callable[..., Any], files: Path) -> None:
    page = visit()
    page.get_by_text("Where it looked").click()
    look = page.get_by_role("button", name="Show it for the last answer")
    look.click()
    page.wait_for_function("document.querySelector('#status').innerText.includes('no answer about a picture yet')")
    ask(page, "What is this?", files / "red.png")
    wait_for_answer(page, 1)
    look.click()
    page.wait_for_function("document.querySelector('#looked img')?.naturalWidth == 448")
    assert "depends on" in page.inner_text("#status")


def test_several_pictures_and_none(visit: Callable[..., Any], files: Path) -> None:
    page = visit()
    ask(page, "Which is red?", files / "red.png", files / "ramp.png")
    assert wait_for_answer(page, 1) and len(pictures(page)) == 2
    page.get_by_role("button", name="Clear").click()
    page.wait_for_function("!document.querySelector('#chat .message')")
    ask(page, "Hello")
    assert wait_for_answer(page, 1) and not pictures(page)
    ask(page, "", files / "red.png")
    assert wait_for_answer(page, 2) and len(pictures(page)) == 1
    ask(page, "")  # last: the page takes no other question until it has seen that this one is none
    page.wait_for_timeout(500)
    assert len(answers(page)) == 2 and len(pictures(page)) == 1


def test_what_fails_is_said_and_the_talk_goes_on(visit: Callable[..., Any], files: Path) -> None:
    page = visit()
    ask(page, "What is this?", files / "broken.jpg")
    assert "'broken.jpg' is damaged" in wait_for_answer(page, 1)
    ask(page, "What is this?", files / "red.png")
    assert "⚠" not in wait_for_answer(page, 2)
    choose(page, 40, "nano-like")
    ask(page, "word " * 300)
    assert "the model's context is 512" in wait_for_answer(page, 3)
    choose(page, 40)
    ask(page, "Hello")
    assert "⚠" not in wait_for_answer(page, 4)


def test_another_name_is_not_served(demo: Running) -> None:
    for host, status in (("localhost", 200), ("rebound.example", 403)):
        assert httpx.get(demo.url, headers={"host": host}).status_code == status


def test_a_file_that_is_too_large_is_refused(files: Path, demo: Running) -> None:
    with (files / "large.png").open("rb") as file:
        answer = httpx.post(f"{demo.url}/gradio_api/upload", files={"files": file})
    assert answer.status_code == 413


def test_retry_undo_edit_and_examples(visit: Callable[..., Any], files: Path) -> None:
    page = visit()
    page.get_by_text("What shape is green?").click()
    first = wait_for_answer(page, 1)
    assert len(pictures(page)) == 1 and pictures(page)[0].endswith("shapes.png")
    watch(page)
    page.get_by_role("button", name="Retry").click()
    page.wait_for_function("window.answering")
    assert wait_for_answer(page, 1) == first
    page.get_by_label("Edit").click()
    page.locator("#chat textarea").fill("How many shapes are there?")
    watch(page)
    page.get_by_label("Submit").first.click()
    page.wait_for_function("window.answering")
    assert "How many shapes" in page.inner_text("#chat")
    assert wait_for_answer(page, 1) != first and len(pictures(page)) == 1
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function("!document.querySelector('#chat .message')")
    assert page.input_value("#box textarea") == "How many shapes are there?"
    page.press("#box textarea", "Enter")
    assert wait_for_answer(page, 1) and len(pictures(page)) == 1


def busy(demo: Running, seconds: float = 0.5) -> float:
    """The share of one CPU that the demo uses."""
    before = demo.cpu()
    time.sleep(seconds)
    return (demo.cpu() - before) / seconds


@pytest.mark.parametrize("how", ["stop", "close"])
def test_stopping_and_leaving_stop_the_computation(
    visit: Callable[..., Any], files: Path, demo: Running, how: str
) -> None:
    page = visit()
    choose(page, 6000)
    ask(page, "Tell me everything", files / "red.png")
    page.wait_for_function("(document.querySelector('#chat .bot.message')?.innerText.length || 0) > 50")
    working = max(busy(demo) for _ in range(3))  # something else may have had the CPU meanwhile
    if how == "stop":
        page.locator("#box .stop-button").click()
    else:
        page.context.close()
    time.sleep(1.5)
    resting = busy(demo)
    assert resting < 0.3 * working, f"{resting:.2f} of a CPU after it, {working:.2f} before"
    if how == "stop":
        partial = answers(page)[0]
        page.wait_for_selector("#box .submit-button")
        assert len(partial) > 50
        choose(page, 40)
        ask(page, "Hello")
        assert wait_for_answer(page, 2) and answers(page)[0] == partial


def test_visitors_never_see_each_other(visit: Callable[..., Any], files: Path, demo: Running) -> None:
    mine, other = visit(), visit()
    ask(mine, "My secret question", files / "red.png")
    wait_for_answer(mine, 1)
    [url] = pictures(mine)
    path = url.partition("/file=")[2]
    assert mine.evaluate("url => fetch(url).then(r => r.status)", url) == 200
    assert httpx.get(url).status_code == 403
    cookies = {cookie["name"]: cookie["value"] for cookie in other.context.cookies()}
    assert httpx.get(url, cookies=cookies).status_code == 403
    other.reload()
    other.wait_for_selector("#status b")
    choose(other, 40)
    assert "secret" not in other.inner_text("body") and not pictures(other)
    # Nor by naming it in a call.
    history = [{"role": "user", "content": [{"type": "file", "file": {"path": path}}]}]
    call = {"data": [history, "talkative", 0, 1, 8, None], "fn_index": 2, "session_hash": "x"}
    for way in ("queue/join", "run/answer", "call/answer"):
        answer = httpx.post(f"{demo.url}/gradio_api/{way}", json=call, cookies=cookies)
        assert answer.status_code == 403, way
    # The same content from both is each one's own.
    ask(other, "Mine too", files / "red.png")
    wait_for_answer(other, 1)
    assert Path(path).exists()
    mine.context.close()
    other.wait_for_timeout(500)
    assert Path(path).exists() and other.evaluate("url => fetch(url).then(r => r.status)", url) == 200
    other.context.close()
    deadline = time.monotonic() + 10
    while Path(path).exists():
        assert time.monotonic() < deadline, "the picture is still there after its last visitor has gone"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "../../../../etc/passwd", "file:///etc/passwd", "%2Fetc%2Fpasswd", "{examples}/../ui.py"),
        *("http://127.0.0.1:1/x", "http://169.254.169.254/latest/meta-data", "https://example.org/x.png", ""),
    ],
)
def test_nothing_else_is_served(demo: Running, path: str) -> None:
    examples = str(EXAMPLES)
    assert httpx.get(f"{demo.url}/gradio_api/file={examples}/hearts.png").status_code == 200
    for way in ("file=", "file/", "proxy="):
        answer = httpx.get(f"{demo.url}/gradio_api/{way}{path.format(examples=examples)}")
        assert answer.status_code in (403, 404), (way, path)
    for named in ({"path": path}, {"path": path, "url": path}, {"url": "data:image/png;base64,AAAA"}):
        call = {"data": [{"text": "x", "files": [named]}, []], "fn_index": 0, "session_hash": "x"}
        assert httpx.post(f"{demo.url}/gradio_api/queue/join", json=call).status_code == 403
    call = {"data": [[{"role": "user", "content": [{"type": "component", "component": "image"}]}]], "fn_index": 2}
    assert httpx.post(f"{demo.url}/gradio_api/queue/join", json=call | {"session_hash": "x"}).status_code == 403


@pytest.mark.parametrize(
    ("name", "width", "scheme"), [("light", 1240, "light"), ("dark", 1240, "dark"), ("phone", 390, "light")]
)
def test_looks(visit: Callable[..., Any], tmp_path: Path, files: Path, name: str, width: int, scheme: str) -> None:
    folder = Path(os.environ.get("MOBILLAMA_V_SCREENSHOTS", tmp_path))
    page = visit(None, viewport={"width": width, "height": 860}, color_scheme=scheme)
    page.get_by_text("How many shapes are there?").click()
    wait_for_answer(page, 1)
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
    for selector in ("#chat", "#box textarea", "#status"):
        box = page.locator(selector).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= 860
    page.screenshot(path=str(folder / f"demo-{name}.png"))
    with Image.open(folder / f"demo-{name}.png") as shot:
        corner = shot.convert("L").getpixel((3, 3))
    assert corner < 60 if scheme == "dark" else corner > 200


def test_nano_answers_truly(browser: Any) -> None:
    with serving.running("demo", Path("nano")) as demo:
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(demo.url)
        page.wait_for_selector("#status b")
        ask(page, "What shape is red?", EXAMPLES / "hearts.png")
        assert "heart" in wait_for_answer(page, 1).lower()
        page.get_by_role("button", name="Clear").click()
        page.wait_for_function("!document.querySelector('#chat .message')")
        ask(page, "What shape is green?", EXAMPLES / "shapes.png")
        assert "ring" in wait_for_answer(page, 1).lower()
        ask(page, "What shape is orange?")
        assert "cross" in wait_for_answer(page, 2).lower()
        page.close()


def test_a_password(nano_like: Path) -> None:
    started = serving.running("demo", nano_like, MOBILLAMA_V_AUTH="me:secret")
    with started as demo, httpx.Client(base_url=demo.url) as client:
        assert client.get("/config").status_code == 401
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 401
        assert client.post("/login", data={"username": "me", "password": "wrong"}).status_code == 400
        assert client.post("/login", data={"username": "me", "password": "secret"}).status_code == 200
        assert client.get("/config").status_code == 200


def test_under_a_path(nano_like: Path) -> None:
    with serving.running("demo", nano_like, "--root-path", "/vision", "--allow-host", "example.org") as demo:
        page = httpx.get(f"{demo.url}/", headers={"host": "example.org"})
        assert page.status_code == 200 and "/vision" in page.text


def test_what_cannot_be_shown(nano_like: Path, demo: Running) -> None:
    port = demo.url.rsplit(":", 1)[1]
    for options, message in (
        (["--model", str(nano_like), "--port", port], f"port {port} cannot be listened at"),
        (["--model", "no/such-folder/x"], "there is no model"),
        (["--model", str(nano_like), "--auth", "me"], "must be USER:PASSWORD"),
    ):
        assert message in serving.refusal("demo", *options)
