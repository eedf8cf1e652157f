"""The server and the clients that people have: OpenAI's own, LangChain, LiteLLM, and the page that uses a camera."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import serving
from mobillama_v.generate import Sampling
from mobillama_v.loading import load
from serving import CHROMIUM, RED, Running, data_url, encoded, question

EXAMPLES = Path(__file__).parents[2] / "examples"
PICTURE = data_url(encoded(RED))
ASKED = question("What is this?", PICTURE)


@pytest.fixture(scope="module")
def pages() -> Iterator[str]:
    """Where the examples are served."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=EXAMPLES)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as started:
        threading.Thread(target=started.serve_forever, daemon=True).start()
        yield f"http://localhost:{started.server_port}"
        started.shutdown()


@pytest.fixture(scope="module")
def server(nano_like: Path, pages: str) -> Iterator[Running]:
    with serving.running("serve", nano_like, "--cors", pages) as started:
        yield started


@pytest.fixture(scope="module")
def expected(nano_like: Path) -> str:
    return load(str(nano_like), device="cpu").ask([RED], "What is this?", Sampling(12)).text


def test_openai(server: Running, expected: str) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "nano-like", "messages": [ASKED], "max_tokens": 12}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2, reasoning_effort="low")
    assert whole.choices[0].message.content == expected and whole.choices[0].logprobs.content[0].top_logprobs[1]
    parts = client.chat.completions.create(**asked, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected
    content = [{"type": "input_image", "image_url": PICTURE}, {"type": "input_text", "text": "What is this?"}]
    spoken: dict[str, Any] = {"model": "nano-like", "input": [{"role": "user", "content": content}]}
    assert client.responses.create(**spoken, max_output_tokens=12).output_text == expected
    with client.responses.stream(**spoken, max_output_tokens=12) as events:
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == expected and len(deltas) > 3
    completed = client.completions.create(model="nano-like", prompt="Hello", max_tokens=3)
    chat = client.chat.completions.create(
        model="nano-like", messages=[{"role": "user", "content": "Hello"}], max_tokens=3
    )
    assert completed.choices[0].text == chat.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="'json_object' is not supported with this model"):
        client.chat.completions.create(**asked, response_format={"type": "json_object"})


def test_langchain(server: Running, expected: str) -> None:
    name = "langchain_openai"
    langchain = pytest.importorskip(name, reason="LangChain is not installed: pip install langchain-openai")
    model = langchain.ChatOpenAI(
        model="nano-like", base_url=f"{server.url}/v1", api_key="none", max_retries=0, max_tokens=12
    )
    own = {"type": "image", "base64": PICTURE.split(",")[1], "mime_type": "image/png"}
    for picture in (ASKED["content"][0], own):
        asked = [("system", ""), ("user", [{"type": "text", "text": "What is this?"}, picture])]
        whole = model.invoke(asked)
        assert whole.content == expected and whole.usage_metadata["output_tokens"] == 12
        assert "".join(part.content for part in model.stream(asked)) == expected
    assert [each.content for each in model.batch([asked, asked])] == [expected] * 2


def test_litellm(server: Running, expected: str) -> None:
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it is fetched
    litellm = pytest.importorskip("litellm", reason="LiteLLM is not installed: pip install litellm")
    litellm.telemetry = False
    asked: dict[str, Any] = {"model": "openai/nano-like", "api_base": f"{server.url}/v1", "api_key": "none"}
    asked |= {"messages": [ASKED], "max_tokens": 12, "num_retries": 0}
    assert litellm.completion(**asked).choices[0].message.content == expected
    parts = litellm.completion(**asked, stream=True)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == expected


def test_the_page_that_uses_a_camera(server: Running, pages: str) -> None:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install -e '.[dev]'"
    )
    if not CHROMIUM:
        pytest.skip("no Chromium is installed, so the page was opened in no browser: apt-get install chromium")
    fake = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=fake)
        page = browser.new_page()
        for where in (f"{server.url}/v1", "http://127.0.0.1:1/v1"):
            page.goto(f"{pages}/webcam.html?server={where}")
            page.wait_for_function("document.getElementById('camera').videoWidth > 0")
            page.get_by_role("button", name="Ask").click()
            page.wait_for_function("document.getElementById('answer').textContent")
            page.wait_for_selector("button:enabled")
            said = page.locator("#answer").inner_text()
            assert ("No answer from" in said) == where.endswith(":1/v1"), said
        browser.close()
