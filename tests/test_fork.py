"""Processes that are forked while other threads answer: each must answer too, and none may wait for ever."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mobillama_v.backends.native import library

PICTURE = str(Path(__file__).parents[1] / "demo" / "examples" / "shapes.png")
SECONDS = 120  # that a hanging process gets before it is ended: no measure of speed
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# `busy` keeps threads at work in a loop; `answered` waits for children, and ends those that hang.
COMMON = """
import os, signal, sys, threading, time
from contextlib import contextmanager

@contextmanager
def busy(*works):
    stop = threading.Event()
    def loop(work):
        while not stop.is_set():
            work()
    threads = [threading.Thread(target=loop, args=(work,)) for work in works]
    [thread.start() for thread in threads]
    time.sleep(0.1)
    yield
    stop.set()
    [thread.join() for thread in threads]

def forked(check):
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)  # ends a child that hangs
        os._exit(0 if check() else 3)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 0, code
"""

LIBRARY = """
import numpy, torch
from mobillama_v.backends.native.layers import ThreadPool
from mobillama_v.backends.native.runtime import NativeModel, NativeSequence
from mobillama_v.backends.native.tiles import pack_matrix
from mobillama_v.backends.native.torch_convert import pack
from mobillama_v.config import DecoderConfig
from mobillama_v.model.decoder import Decoder
torch.set_num_threads(1)
spec = DecoderConfig(97, 64, 176, 3, 4, 4, 300)
model = NativeModel(pack(Decoder(spec), torch.nn.Linear(64, 97, bias=False), spec, 8), threads=2)
pool, tiles, x = ThreadPool(2), pack_matrix(torch.randn(64, 96), 8).numpy(), torch.randn(40, 96).numpy()
prompt = torch.randn(50, 64).numpy()
run = lambda: model.forward([NativeSequence(model, 60)], [prompt])
map_ = lambda: pool.linear(tiles, None, x, 64)
logits, mapped = run(), map_()
kept = NativeSequence(model, 60)
model.forward([kept], [prompt])
copied = lambda: NativeSequence(model, 60).copy(kept, 40)
def check():
    return numpy.array_equal(run(), logits) and numpy.array_equal(map_(), mapped)
forked(check)
with busy(run, run, map_, map_, copied):
    for _ in range(20):
        forked(check)
"""
ASSISTANT = """
from mobillama_v import load
picture, engine = sys.argv[1:]
assistant = load("nano", engine=engine)
ask = lambda: assistant.ask([picture], "Describe the image.").text
wanted = ask()
with busy(ask, ask):
    for _ in range(3):
        forked(lambda: ask() == wanted)
"""

MULTIPROCESSING = """
import multiprocessing
from mobillama_v import load
assistant = load("nano")
def answer(picture, given=assistant):
    return given.ask([picture], "Describe the image.").text
def fresh(picture):
    return answer(picture, load("nano"))
if __name__ == "__main__":
    picture, method = sys.argv[1:]
    with busy(lambda: answer(picture)), multiprocessing.get_context(method).Pool(2) as pool:
        work = answer if method == "fork" else fresh
        assert pool.map_async(work, [picture] * 4).get(90) == [answer(picture)] * 4
"""

# As gunicorn --preload and others do: the model is loaded and warm, and workers forked from it share one socket.
PREFORK = """
import socket
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer
from mobillama_v import load
picture = sys.argv[1]
assistant = load("nano")
ask = lambda: assistant.ask([picture], "Describe the image.").text
wanted = ask()

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        text = ask().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *_):
        pass

server = HTTPServer(("127.0.0.1", 0), Handler)
workers = []
with busy(ask):
    for _ in range(2):
        workers.append(os.fork())
        if workers[-1] == 0:
            signal.alarm(90)
            server.serve_forever()
try:
    for _ in range(4):
        connection = HTTPConnection(*server.server_address, timeout=60)
        connection.request("GET", "/")
        assert connection.getresponse().read().decode() == wanted
finally:
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
"""


def run(tmp_path: Path, code: str, *arguments: str) -> None:
    """Run a script: multiprocessing's spawn reads it again."""
    script = tmp_path / "script.py"
    script.write_text(COMMON + code)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), *arguments], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(bool(library.missing()), reason=f"no native library: {library.missing()}")
def test_the_library_is_whole_in_a_process_forked_from_a_busy_one(tmp_path: Path) -> None:
    run(tmp_path, LIBRARY)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_an_assistant_answers_in_a_process_forked_from_a_busy_one(engine: str, tmp_path: Path) -> None:
    run(tmp_path, ASSISTANT, PICTURE, engine)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_of_processes_answers(method: str, tmp_path: Path) -> None:
    run(tmp_path, MULTIPROCESSING, PICTURE, method)


@pytest.mark.slow
def test_a_pre_fork_server_answers(tmp_path: Path) -> None:
    run(tmp_path, PREFORK, PICTURE)
