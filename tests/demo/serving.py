"""A server or demo as a subprocess on loopback, for tests."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
RED = Image.new("RGB", (300, 200), (200, 30, 30))
RAMP = Image.linear_gradient("L").convert("RGB")


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of a picture's file."""
    out = BytesIO()
    image.save(out, kind)
    return out.getvalue()


def data_url(data: bytes) -> str:
    """A picture as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def question(text: str, *urls: str) -> dict[str, Any]:
    """A user's message with pictures."""
    pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}


class Running:
    """A started server: where it is, its process, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[str], url: str, lines: list[str]) -> None:
        self.process, self.url, self.lines = process, url, lines

    def cpu(self) -> float:
        """Seconds of CPU that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss(self) -> int:
        """Bytes of memory that the process holds."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def running(command: str, model: Path, *options: str, **environment: str) -> Iterator[Running]:
    """``mobillama-v COMMAND`` on a free port of loopback, ended with SIGTERM."""
    args = [sys.executable, "-m", "mobillama_v", command, "--model", str(model), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(
        [*args, *options], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}, cwd="/"
    )
    lines: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stderr.readline, "")), daemon=True)
    reader.start()
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"at (http://[^ /]+)", "".join(lines))):
            assert process.poll() is None and time.monotonic() < deadline, "".join(lines)
            time.sleep(0.05)
        yield Running(process, found[1], lines)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        reader.join(5)


def refusal(command: str, *options: str) -> str:
    """The one line with which ``mobillama-v COMMAND`` refuses to start."""
    args = [sys.executable, "-m", "mobillama_v", command, *options]
    done = subprocess.run(args, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr
