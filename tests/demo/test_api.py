"""The server's own failures, told as OpenAI's clients expect them and counted."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from mobillama_v.demo.api import Access, build
from mobillama_v.demo.service import Service
from mobillama_v.errors import CheckpointError
from mobillama_v.images import fetch
from mobillama_v.loading import load

ASKED = {"messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def service(nano_like: Path) -> Iterator[Service]:
    def damaged() -> Any:
        raise CheckpointError("'model.safetensors' is damaged; copy it again.")

    made = Service({"tiny": lambda: load(str(nano_like), device="cpu"), "damaged": damaged})
    yield made
    made.close()


def ask(service: Service, model: str) -> httpx.Response:
    client = TestClient(build(service), raise_server_exceptions=False)
    return client.post("/v1/chat/completions", json=ASKED | {"model": model})


def counted(service: Service, status: str) -> float | None:
    return service.metrics.registry.get_sample_value("mobillama_v_requests_total", {"status": status})


def test_a_model_that_cannot_be_loaded_is_the_servers_fault(service: Service) -> None:
    answer = ask(service, "damaged")
    error = answer.json()["error"]
    assert answer.status_code == 500 and "is damaged" in error["message"]
    assert (error["type"], error["param"]) == ("server_error", None) and counted(service, "500") == 1


def test_a_bug_has_the_shape_of_an_error_and_tells_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "check", lambda *_: 1 / 0)
    answer = ask(service, "tiny")
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "zero" not in json.dumps(answer.json()) and counted(service, "500") == 1
    assert service.scheduler.waiting == 0


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://127.0.0.2/x", "127.0.0.2, which is not a public address"),
        ("http://169.254.169.254/latest/meta-data", "169.254.169.254, which is not a public address"),
        ("file:///etc/passwd", "not an http or https address"),
    ],
)
def test_a_public_address_that_leads_to_a_private_one_is_refused(
    service: Service, target: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    is_public = fetch.is_public
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1" or is_public(address))
    with http.server.HTTPServer(("127.0.0.1", 0), Redirect) as public:
        threading.Thread(target=public.handle_request, daemon=True).start()
        picture = {"type": "image_url", "image_url": {"url": f"http://127.0.0.1:{public.server_port}/cat.png"}}
        asked = {"model": "tiny", "messages": [{"role": "user", "content": [picture]}]}
        answer = TestClient(build(service, Access(allow_urls=True))).post("/v1/chat/completions", json=asked)
    assert answer.status_code == 400 and message in answer.json()["error"]["message"]
    assert service.scheduler.waiting == 0
