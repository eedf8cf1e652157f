"""The server as clients see it: OpenAI's own client and plain HTTP, against a subprocess on loopback."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

import serving
from mobillama_v.demo.ui import EXAMPLES
from mobillama_v.generate import Sampling
from mobillama_v.loading import load
from mobillama_v.prompt import assistant, user
from serving import RAMP, RED, Running, data_url, encoded, question

KEY = "a key"
LONG: dict[str, Any] = {"max_tokens": 400, "stream": True}


@pytest.fixture(scope="module")
def server(nano_like: Path) -> Iterator[Running]:
    # By the variable: an option would be seen in the list of processes.
    limits = ("--max-bytes", "200000", "--max-pixels", "1000000", "--max-images", "2", "--max-new-tokens", "400")
    queue = ("--running", "2", "--waiting", "1", "--waiting-each", "1")
    with serving.running("serve", nano_like, *limits, *queue, MOBILLAMA_V_API_KEY=KEY) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60)


def post(server: Running, body: Any, **options: Any) -> httpx.Response:
    content = body if isinstance(body, (str, bytes, Iterator)) else json.dumps(body)
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"} | options.pop("headers", {})
    return httpx.post(f"{server.url}/v1/chat/completions", content=content, headers=headers, timeout=60, **options)


def asked(*messages: Any, **more: Any) -> dict[str, Any]:
    return {"model": "nano-like", "messages": list(messages) or [{"role": "user", "content": "Hello"}]} | more


def test_the_answer_is_that_of_describe(client: openai.OpenAI, nano_like: Path, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(encoded(RED))
    run = [sys.executable, "-m", "mobillama_v", "describe", str(path), "--model", str(nano_like), "--device", "cpu"]
    done = subprocess.run([*run, "--prompt", "What is this?", "--json"], capture_output=True, text=True, check=True)
    described = json.loads(done.stdout)["text"]
    messages = [question("What is this?", data_url(path.read_bytes()))]
    whole = client.chat.completions.create(model="nano-like", messages=messages)
    assert whole.choices[0].message.content == described and described
    assert whole.usage is not None and whole.choices[0].finish_reason in ("stop", "length")
    for with_usage in (False, True):
        extra = {"stream_options": {"include_usage": True}} if with_usage else {}
        chunks = list(client.chat.completions.create(model="nano-like", messages=messages, stream=True, **extra))
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert "".join(delta.content or "" for delta in deltas) == described and len(deltas) > 4
        assert deltas[0].role == "assistant" and len({chunk.id for chunk in chunks}) == 1
        usages = [chunk.usage for chunk in chunks if chunk.usage]
        if with_usage:
            assert usages == [whole.usage] and chunks[-1].choices == []
        else:
            assert usages == [] and chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


@pytest.mark.slow
def test_nano_answers_as_it_describes() -> None:
    path = EXAMPLES / "shapes.png"
    run = [sys.executable, "-m", "mobillama_v", "describe", str(path), "--device", "cpu", "--json"]
    with serving.running("serve", Path("nano")) as nano:
        client = openai.OpenAI(base_url=f"{nano.url}/v1", api_key="none", max_retries=0, timeout=120)
        for text in ("What shape is green?", "Describe the image."):
            done = subprocess.run([*run, "--prompt", text], capture_output=True, text=True, check=True)
            described = json.loads(done.stdout)["text"]
            messages = [question(text, data_url(path.read_bytes()))]
            whole = client.chat.completions.create(model="nano", messages=messages)
            chunks = client.chat.completions.create(model="nano", messages=messages, stream=True)
            streamed = [chunk.choices[0].delta.content or "" for chunk in chunks]
            assert whole.choices[0].message.content == "".join(streamed) == described
            assert "ring" in described.lower()
            assert len([piece for piece in streamed if piece]) > (5 if text.startswith("Describe") else 0)


def test_conversations_and_sampling(client: openai.OpenAI, nano_like: Path) -> None:
    model = load(str(nano_like), device="cpu")
    sampling = Sampling(20, temperature=1.5, top_p=0.9, seed=3, stop=("e",))
    turns = [user("What?", images=1), assistant("A square."), user("And this?", images=1)]
    expected = model.ask([RED, RAMP], turns, sampling)
    answer = client.chat.completions.create(
        model="nano-like",
        messages=[
            # Words before the picture: the model has learnt pictures before words.
            {"role": "user", "content": question("What?", data_url(encoded(RED)))["content"][::-1]},
            {"role": "assistant", "content": "A square."},
            question("And this?", data_url(encoded(RAMP))),
        ],
        max_completion_tokens=20,
        temperature=1.5,
        top_p=0.9,
        seed=3,
        stop="e",
        user="somebody",
        n=1,
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.usage is not None and answer.usage.prompt_tokens == expected.prompt_tokens
    system: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert client.chat.completions.create(model="nano-like", messages=system, max_tokens=3).choices


def test_models_health_and_metrics(server: Running, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["nano-like"]
    assert client.models.retrieve("nano-like").owned_by == "mobillama-v"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("gpt-4o")
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    client.chat.completions.create(**asked(max_tokens=3))
    found = httpx.get(f"{server.url}/metrics")
    assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = dict(line.rsplit(" ", 1) for line in found.text.splitlines() if not line.startswith("#"))
    assert float(values['mobillama_v_requests_total{status="200"}']) >= 1
    assert float(values["mobillama_v_new_tokens_total"]) >= 3
    assert values["mobillama_v_answer_seconds_count"] == values['mobillama_v_answer_seconds_bucket{le="+Inf"}']
    assert float(values["mobillama_v_running"]) == 0


def test_the_key(server: Running) -> None:
    for headers in ({"authorization": ""}, {"authorization": "Bearer"}, {"authorization": f"Basic {KEY}"}):
        answer = post(server, asked(), headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="other", max_retries=0).models.list()


PICTURE = data_url(encoded(RED))
TALK = ({"role": "user", "content": "Hello"},)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ("{", None, "not valid JSON"),
        ("[" * 100_000, None, "not valid JSON"),
        ('{"temperature": NaN}', None, "NaN is no number"),
        ('{"\\ud800": 1}', None, "half a character"),
        (b'{"model": "\xff"}', None, "not valid JSON"),
        ([], None, "must be a JSON object"),
        ({"model": "nano-like"}, "messages", "Missing required parameter"),
        ({"messages": []}, "model", "Missing required parameter"),
        (asked("hi"), "messages", "1 is no mapping"),
        (asked({"role": "cat", "content": "x"}), "messages", "from 'cat', a role that is unknown"),
        (asked({"role": "user"}), "messages", "no role and content"),
        (asked({"role": "user", "content": [{"type": "input_audio"}]}), "messages", "a part that cannot be used"),
        (asked(*TALK, {"role": "assistant", "content": "x"}), "messages", "must end with the user's"),
        (asked(temperature="hot"), "temperature", "valid number"),
        (asked(temperature=3), "temperature", "less than or equal to 2"),
        (asked(temperature=10**400), "temperature", "valid number"),
        (asked(top_p=-1), "top_p", "greater than or equal to 0"),
        (asked(max_tokens=[]), "max_tokens", "valid integer"),
        (asked(max_tokens=0), "max_tokens", "at least 1 token"),
        (asked(stop=["a"] * 5), "stop", "at most 4"),
        (asked(stop=[""]), "stop", "at least 1 character"),
        (asked(seed=2**70), "seed", "less than 9223372036854775808"),
        (asked(n=5), "n", "from 1 to 4"),
        (asked(tools=[{"type": "function"}]), "tools", "not supported"),
        (asked(response_format={"type": "json_object"}), "response_format", "of type 'json_object' is not supported"),
        (asked(modalities=["text", "audio"]), "modalities", "text alone"),
        (asked(logprobs=True, top_logprobs=21), "top_logprobs", "less than or equal to 20"),
        (asked(question("?", "file:///etc/passwd")), "messages", "neither a data URL"),
        (asked(question("?", "/etc/passwd")), "messages", "neither a data URL"),
        (asked(question("?", "http://127.0.0.1/x")), "messages", "none are fetched here"),
        (asked(question("?", "data:text/html;base64,AAAA")), "messages", "not an image"),
        (asked(question("?", "data:image/png;base64,@@@@")), "messages", "cannot be decoded"),
        (asked(question("?", data_url(b"no picture"))), "messages", "not an image"),
        (asked(question("?", data_url(encoded(RAMP)[:500]))), "messages", "damaged"),
        (asked(question("?", PICTURE, PICTURE, PICTURE)), "messages", "more than the 2"),
        (asked({"role": "user", "content": "word " * 1000}), "messages", "context is 512"),
        (asked({"role": "user", "content": "word " * 3000}), "messages", "bytes of text"),
        (
            asked({"role": "system", "content": question("?", PICTURE)["content"]}),
            "messages",
            "has a part that",
        ),
    ],
)
def test_malformed_requests(server: Running, body: Any, param: str | None, message: str) -> None:
    answer = post(server, body)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == param and message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_over_the_limits_is_refused_before_it_is_decoded(server: Running) -> None:
    # Its size and no pixels: who decodes it finds it damaged.
    answer = post(server, asked(question("?", data_url(b"P6 1001 1001 255\n"))))
    assert answer.status_code == 400 and "1001 x 1001 pixels" in answer.json()["error"]["message"]
    answer = post(server, asked(question("?", "data:image/png;base64," + "@" * 300_000)))  # would be no base64
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "over_the_limits"
    answer = post(server, "x" * 2_000_000)  # would be no JSON
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"
    answer = post(server, iter([b"x" * 500_000] * 4))
    assert answer.status_code == 413
    assert post(server, "x", headers={"content-type": "multipart/form-data; boundary=x"}).status_code == 415
    assert httpx.get(f"{server.url}/v1/chat/completions").status_code == 405
    missing = httpx.get(f"{server.url}/v1/nothing")
    assert missing.status_code == 404 and missing.json()["error"]["type"] == "invalid_request_error"
    unknown = post(server, asked(model="gpt-4o"))
    assert unknown.status_code == 404 and unknown.json()["error"]["code"] == "model_not_found"


def gauge(server: Running, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics").text
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def until(server: Running, name: str, wanted: float) -> None:
    deadline = time.monotonic() + 20
    while gauge(server, name) != wanted:
        assert time.monotonic() < deadline, f"{name} is {gauge(server, name)} and not {wanted}"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_stops_the_computation(nano_like: Path, stream: bool) -> None:
    with serving.running("serve", nano_like, "--engine", "torch") as slow:  # the native one would be done before
        client = openai.OpenAI(base_url=f"{slow.url}/v1", api_key="none", max_retries=0)
        if stream:
            chunks = client.chat.completions.create(**asked(**LONG))
            assert [next(chunks) for _ in range(3)]
            chunks.close()
        else:
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.15).chat.completions.create(**asked(max_tokens=900))
        until(slow, "mobillama_v_running", 0)
        assert gauge(slow, 'mobillama_v_answers_total{reason="stopped"}') == 1


@pytest.mark.slow
def test_a_full_queue_says_when_to_come_back(server: Running, client: openai.OpenAI) -> None:
    until(server, "mobillama_v_running", 0)
    streams = [client.chat.completions.create(**asked(**LONG))]
    next(streams[0])
    answers: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda: answers.append(post(server, asked(max_tokens=400)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    streams[0].close()
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused and len(refused) < 8
    for answer in refused:
        assert answer.status_code in (429, 503) and answer.json()["error"]["code"] == "queue_full"
        assert 1 <= int(answer.headers["retry-after"]) <= 60
    until(server, "mobillama_v_running", 0)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:{port}/health", "not a public address"),
        ("http://localhost/x", "not a public address"),
        ("http://169.254.169.254/latest/meta-data", "not a public address"),
        ("http://[::1]/x", "not a public address"),
        ("http://2130706433/x", "not a public address"),
    ],
)
def test_allowed_addresses_are_public_ones(urls_server: Running, url: str, message: str) -> None:
    url = url.format(port=urls_server.url.rsplit(":", 1)[1])
    answer = httpx.post(f"{urls_server.url}/v1/chat/completions", json=asked(question("?", url)), timeout=60)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]


@pytest.fixture(scope="module")
def urls_server(nano_like: Path) -> Iterator[Running]:
    with serving.running("serve", nano_like, "--allow-urls") as started:
        yield started


@pytest.mark.slow
def test_shutdown_lets_a_running_answer_end(nano_like: Path) -> None:
    with serving.running("serve", nano_like) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        chunks = client.chat.completions.create(**asked(max_tokens=300, stream=True))
        next(chunks)
        server.process.send_signal(signal.SIGTERM)
        assert [chunk.choices[0].finish_reason for chunk in chunks][-1] in ("stop", "length")
        assert server.process.wait(20) in (0, -signal.SIGTERM)
        assert "Traceback" not in "".join(server.lines)


@pytest.mark.slow
def test_shutdown_stops_what_takes_longer_than_its_grace(nano_like: Path) -> None:
    with serving.running("serve", nano_like, "--grace", "0", "--engine", "torch") as server:  # the slower one
        body = asked(max_tokens=900, stream=True)
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = list(lines)
        assert "data: [DONE]" not in rest
        server.process.wait(20)


def test_what_cannot_be_served(nano_like: Path, server: Running) -> None:
    port = server.url.rsplit(":", 1)[1]
    for options, message in (
        (["--model", str(nano_like), "--port", port], f"port {port} cannot be listened at"),
        (["--model", "no/such-folder/x"], "there is no model"),
        (["--model", str(nano_like), "--api-key", " "], "the API key is empty"),
        (["--model", str(nano_like), "--host", "no such host"], "cannot be listened at"),
    ):
        assert message in serving.refusal("serve", *options)


def test_pictures_are_encoded_once(server: Running, client: openai.OpenAI) -> None:
    url = data_url(encoded(Image.new("RGB", (50, 50), (1, 2, 3))))
    before = gauge(server, "mobillama_v_pictures_total")
    answers = {
        client.chat.completions.create(**asked(question("?", url), max_tokens=5)).choices[0].message.content
        for _ in range(3)
    }
    assert len(answers) == 1 and gauge(server, "mobillama_v_pictures_total") == before + 1
