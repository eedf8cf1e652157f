"""The API's kinds of requests and options, in this process: streams equal to whole answers, keys, hosts, origins."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from mobillama_v.assistant import Assistant
from mobillama_v.demo import read_body
from mobillama_v.demo.api import Access, build
from mobillama_v.demo.limits import Limits
from mobillama_v.demo.service import Service
from mobillama_v.generate import Sampling
from mobillama_v.loading import load
from serving import RED, data_url, encoded, question

CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"


@pytest.fixture(scope="module")
def model(nano_like: Path) -> Assistant:
    return load(str(nano_like), device="cpu")


@pytest.fixture
def service(model: Assistant) -> Iterator[Service]:
    made = Service({"tiny": lambda: model}, Limits(max_new_tokens=30, max_choices=3))
    yield made
    made.close()


def post(service: Service, path: str, access: Access | None = None, **body: Any) -> httpx.Response:
    return TestClient(build(service, access)).post(path, json={"model": "tiny"} | body)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


ASKED = {"messages": [question("What is this?", data_url(encoded(RED)))]}


def test_choices_and_log_probabilities(service: Service, model: Assistant) -> None:
    body = ASKED | {"n": 3, "temperature": 1.0, "seed": 5, "max_tokens": 9, "logprobs": True, "top_logprobs": 2}
    whole = post(service, CHAT, **body).json()
    expected = [model.ask([RED], "What is this?", Sampling(9, 1.0, seed=5 + i)) for i in range(3)]
    assert [each["message"]["content"] for each in whole["choices"]] == [each.text for each in expected]
    assert whole["usage"]["completion_tokens"] == sum(each.new_tokens for each in expected)
    for choice, reply in zip(whole["choices"], expected, strict=True):
        found = choice["logprobs"]["content"]
        spelled = bytes(value for each in found for value in each["bytes"]).decode(errors="replace")
        assert len(found) == reply.new_tokens and spelled.strip() == reply.text
        for each in found:
            top = [other["logprob"] for other in each["top_logprobs"]]
            assert len(top) == 2 and top == sorted(top, reverse=True) and each["logprob"] <= top[0] <= 0
    streamed = events(post(service, CHAT, **body, stream=True, stream_options={"include_usage": True}))
    assert streamed[-1]["usage"] == whole["usage"]
    parts = [part["choices"][0] for part in streamed if part["choices"]]
    for index, choice in enumerate(whole["choices"]):
        mine = [part for part in parts if part["index"] == index]
        assert "".join(part["delta"].get("content", "") for part in mine) == choice["message"]["content"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        # The remembered prompt is read in other sums, which differ in the last digits.
        both = zip(mine[-1]["logprobs"]["content"], choice["logprobs"]["content"], strict=True)
        for streamed_token, token in both:
            assert streamed_token["bytes"] == token["bytes"]
            assert streamed_token["logprob"] == pytest.approx(token["logprob"], abs=1e-4)


def test_log_probabilities_are_those_of_scoring(model: Assistant) -> None:
    reply = model.ask([RED], "What is this?", Sampling(6, top_log_probs=1))
    ids = [each.token for each in reply.log_probs]
    row = model._row([RED], "What is this?")
    scores = model.engine.score([row.prompt], ids)
    assert [each.log_prob for each in reply.log_probs] == pytest.approx(scores.log_probs[0].tolist(), abs=1e-4)
    assert all(each.top == ((each.token, each.log_prob),) for each in reply.log_probs)
    assert model.ask([RED], "What is this?", Sampling(6)).log_probs == ()


def test_responses(service: Service, model: Assistant) -> None:
    parts = [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": data_url(encoded(RED))}]
    body = {"input": [{"role": "user", "content": parts}], "instructions": "Be brief.", "max_output_tokens": 8}
    whole = post(service, RESPONSES, **body).json()
    text = whole["output"][0]["content"][0]["text"]
    assert text and whole["status"] == "incomplete" and whole["usage"]["output_tokens"] == 8
    streamed = events(post(service, RESPONSES, **body, stream=True))
    assert [each["sequence_number"] for each in streamed] == list(range(len(streamed)))
    assert "".join(each["delta"] for each in streamed if each["type"] == "response.output_text.delta") == text
    assert [each["type"] for each in streamed if not each["type"].endswith("delta")] == [
        *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
        *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
        "response.incomplete",
    ]
    assert streamed[-1]["response"]["output"][0]["content"] == whole["output"][0]["content"]
    assert streamed[-1]["response"]["usage"] == whole["usage"]


def test_completions(service: Service, model: Assistant) -> None:
    text = model.ask([], "Hello", Sampling(8)).text
    whole = post(service, COMPLETIONS, prompt="Hello", max_tokens=8, logprobs=1, echo=True).json()["choices"][0]
    assert whole["text"] == f"Hello{text}" and whole["logprobs"]["text_offset"][0] == len("Hello")
    assert len(whole["logprobs"]["tokens"]) == len(whole["logprobs"]["top_logprobs"]) == 8
    streamed = events(post(service, COMPLETIONS, prompt=["Hello"], max_tokens=8, stream=True))
    assert "".join(part["choices"][0]["text"] for part in streamed) == text


def test_the_schema_holds_the_bodies_and_follows_the_key(service: Service) -> None:
    client = TestClient(build(service, Access("key", key_for_all=True)))
    assert client.get("/health").status_code == 200
    for path in ("/metrics", "/openapi.json", "/v1/models"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer key"}).status_code == 200
    open_client = TestClient(build(service, Access("key")))
    assert open_client.get("/metrics").status_code == 200
    paths = open_client.get("/openapi.json").json()["paths"]
    for path, field in ((CHAT, "messages"), (COMPLETIONS, "prompt"), (RESPONSES, "input")):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert field in schema["required"] and schema["properties"]["temperature"]["maximum"] == 2


def test_origins(service: Service) -> None:
    asked = {"origin": "https://a.example", "access-control-request-method": "POST"}
    asked["access-control-request-headers"] = "authorization,content-type"
    closed = TestClient(build(service)).options(CHAT, headers=asked)
    assert closed.status_code == 405 and "access-control-allow-origin" not in closed.headers
    for origins, right in ((("https://a.example",), True), (("https://b.example",), False), (("*",), True)):
        client = TestClient(build(service, Access("key", cors=origins)))
        preflight = client.options(CHAT, headers=asked)
        assert (preflight.status_code == 200) == right
        refused = client.post(CHAT, json={}, headers={"origin": "https://a.example"})
        assert refused.status_code == 401 and ("access-control-allow-origin" in refused.headers) == right


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain;charset=UTF-8", ""])
def test_json_of_any_type_is_read_but_of_foreign_pages(service: Service, kind: str) -> None:
    """``curl -d`` calls JSON a form, and a page may send what a form may without asking the server."""
    body = json.dumps(ASKED | {"model": "tiny", "max_tokens": 1}).encode()
    given = {"content-type": kind} if kind else {}
    client = TestClient(build(service, Access(cors=("https://b.example",))))
    for origin, right in (
        (None, True),
        ("http://testserver", True),
        ("https://b.example", True),
        *((name, False) for name in ("https://a.example", "null", "", "http://testserver:81", "https://testserver")),
    ):
        headers = given | ({} if origin is None else {"origin": origin})
        answer = client.post(CHAT, content=body, headers=headers)
        assert answer.status_code == (200 if right else 403), origin
        assert right or answer.json()["error"]["code"] == "foreign_page"
    assert client.post(CHAT, content=body, headers={"content-type": "multipart/form-data"}).status_code == 415


@pytest.mark.parametrize(
    ("host", "right"),
    [
        *((name, True) for name in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "vision.example.")),
        *((name, False) for name in ("evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "", "[::2]")),
    ],
)
def test_only_known_names_are_served(service: Service, host: str, right: bool) -> None:
    hosts = frozenset({"localhost", "127.0.0.1", "::1", "vision.example"})
    answer = TestClient(build(service, Access(hosts=hosts))).get("/v1/models", headers={"host": host})
    assert answer.status_code == (200 if right else 403)
    assert right or answer.json()["error"]["code"] == "unknown_host"


def test_what_is_ignored_is_logged_in_one_line(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    extra = {"top_k": 40, "options": {}, "new\nline": 1, "guided_json": None}
    with caplog.at_level(logging.WARNING, "mobillama_v"):
        assert post(service, CHAT, **ASKED, max_tokens=1, **extra).status_code == 200
    assert [record.getMessage() for record in caplog.records] == [
        r"ignored in a request from testclient: 'top_k', 'new\nline'"
    ]
    strict = post(service, CHAT, Access(strict=True), **ASKED, top_k=40)
    assert strict.status_code == 400 and strict.json()["error"]["param"] == "top_k"


def test_a_request_of_which_half_has_come_holds_no_place(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_body, "BODY_SECONDS", 0.3)
    seen = []

    async def body() -> Any:
        yield b'{"model": "tiny", '
        seen.append(service.scheduler.waiting + service.scheduler.running)
        await asyncio.sleep(5)

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(build(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post(CHAT, content=body(), headers={"content-type": "application/json"})

    answer = asyncio.run(ask())
    assert answer.status_code == 408 and seen == [0]


def test_memory_of_all_requests_is_bounded(model: Assistant) -> None:
    service = Service({"tiny": lambda: model}, Limits(max_held=1000))
    try:
        asked = {"messages": [{"role": "user", "content": "x" * 600}]}
        answer = post(service, CHAT, **asked)
        assert answer.status_code == 429 and int(answer.headers["retry-after"]) == 5
        small = TestClient(build(service))
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 300}], "max_tokens": 1}
        assert [small.post(CHAT, json=body).status_code for _ in range(4)] == [200] * 4  # it is given back
    finally:
        service.close()
