"""nano on the page of examples/browser, in headless Chromium: pixels, tokens and answers are those of Python."""

from __future__ import annotations

import functools
import http.server
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import mobillama_v
from mobillama_v.cli.main import app
from mobillama_v.generate import Sampling
from mobillama_v.images import load_image
from nano import scenes
from serving import CHROMIUM, data_url, encoded

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "examples" / "browser"
TEXTS = ["Describe the image.", "Wie spät ist es, 12:30?", "two  blanks,\n\ta tab, NASA's USER: é 日本 🙂 x²"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page with nano's graphs, opened."""
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install -e '.[dev]'"
    )
    if not (PAGE / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("onnxruntime-web is not installed: npm install --prefix examples/browser")
    if not CHROMIUM:
        pytest.skip("no Chromium is installed, so the page was opened in no browser: apt-get install chromium")
    folder = tmp_path_factory.mktemp("browser")
    for name in ("index.html", "nano.js"):
        shutil.copyfile(PAGE / name, folder / name)
    (folder / "node_modules").symlink_to(PAGE / "node_modules")
    result = CliRunner().invoke(app, ["export", "onnx", "nano", str(folder / "nano")])
    assert result.exit_code == 0, result.output
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, playwright.sync_playwright() as started:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        local = f"http://127.0.0.1:{server.server_address[1]}/"
        elsewhere: list[str] = []
        opened.on("request", lambda each: each.url.startswith((local, "blob:", "data:")) or elsewhere.append(each.url))
        opened.goto(f"{local}index.html")
        opened.wait_for_selector("button:enabled", timeout=120_000)
        yield opened
        browser.close()
        server.shutdown()
    assert not elsewhere, "the page asks nobody but its own server"


@pytest.mark.slow
def test_pixels_and_tokens(page: Any) -> None:
    tokenizer = mobillama_v.load("nano", device="cpu").tokenizer
    for text in TEXTS:
        found = page.evaluate(
            """async (text) => {
                const { Tokenizer } = await import("./nano.js");
                const made = new Tokenizer(await (await fetch("./nano/tokenizer.json")).json());
                const ids = made.encode(text);
                return [ids, made.decode(ids)];
            }""",
            text,
        )
        assert found == [tokenizer.encode(text), text]
    rng = np.random.default_rng(0)
    for height, width in ((300, 500), (40, 31), (224, 100), (224, 224)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        pixels = page.evaluate(
            """async (address) => {
                const { pixelsOf, resize } = await import("./nano.js");
                return [...resize(await pixelsOf(await (await fetch(address)).blob()), 224)];
            }""",
            data_url(encoded(picture)),
        )
        expected = np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC)).ravel()
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.slow
def test_answers_of_20_pictures(page: Any, tmp_path: Path) -> None:
    rng = random.Random(0)
    drawn = [scenes.draw(scenes.sample_scene(rng, style)) for style in (scenes.STYLES * 3)[:11]]
    photos = [load_image(path) for path in sorted((ROOT / "docs" / "pictures").glob("*.jpg"))]
    assistant = mobillama_v.load("nano", device="cpu", engine="torch")
    ours, theirs = [], []
    for i, picture in enumerate([*drawn, *photos]):
        asked = ["Describe the image.", "What is this?"][i % 2]
        picture.save(tmp_path / "picture.png")
        ours.append(assistant.ask([picture], asked, Sampling(128)).text)
        page.set_input_files("#file", tmp_path / "picture.png")
        page.fill("#question", asked)
        page.click("#ask")
        page.wait_for_selector("#ask:enabled", timeout=120_000)
        theirs.append(page.inner_text("#answer"))
    assert len(ours) == 20 and theirs == ours
