"""The page holds everything in itself, takes texts for texts, and opens in a browser without a complaint."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import official
import toy
from mobillama_v.errors import DataError
from mobillama_v.eval.benchmarks.registry import get, public
from mobillama_v.eval.report import page, writer
from mobillama_v.eval.report.samples import Pictures, pick
from mobillama_v.eval.results import Judged, Result, judge, read_result, write_result
from mobillama_v.markup import tag, text

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
ATTACK = "<script>document.title='taken'</script><img src=https://example.com/x.png>\"'&"


def result(benchmark, examples, *, said: dict[str, str] | None = None, **about: object) -> Result:
    """Every second answer is right."""
    answers = {
        each.id: {"text": each.answers[0] if i % 2 else "<b>perhaps</b>", "finish_reason": "stop"}
        for i, each in enumerate(examples)
    }
    answers |= {name: {"text": words, "finish_reason": "stop"} for name, words in (said or {}).items()}
    facts = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "settings": benchmark.settings(),
        "questions": len(examples),
        "official_questions": benchmark.official_count,
        "model": "nano",
        "precision": "float32",
        "max_new_tokens": 24,
        "weights_sha256": "ab" * 32,
        "version": "0",
    }
    return judge(benchmark, examples, answers, facts | about)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all four benchmarks, one question of which tries to be more than text."""
    folder = tmp_path_factory.mktemp("report")
    data = official.write_all(folder / "data")
    questions = json.loads((data / "gqa" / "testdev_balanced_questions.json").read_text())
    first = next(iter(questions))
    questions[first]["question"] = ATTACK
    (data / "gqa" / "testdev_balanced_questions.json").write_text(json.dumps(questions))
    for name in public():
        benchmark = get(name)
        (folder / "run" / name).mkdir(parents=True)
        found = result(benchmark, benchmark.load(data / name), said={first: ATTACK + "\ud800"} if name == "gqa" else {})
        write_result(found, folder / "run" / name)
    writer.write(folder / "run")
    return folder / "run"


class Elements(HTMLParser):
    """Names and attributes of everything in a page, and its text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_one_file_without_scripts_and_requests(run: Path) -> None:
    source = (run / "report.html").read_text(encoding="utf-8")
    elements = Elements(source)
    assert not [name for name, _ in elements.found if name in ("script", "iframe", "object", "embed", "form")]
    assert not [attrs for _, attrs in elements.found if any(name.startswith("on") for name in attrs)]
    targets = [attrs[name] for _, attrs in elements.found for name in ("src", "href") if name in attrs]
    assert targets and all(target and target.startswith(("data:", "#")) for target in targets)
    assert "url(" not in source and "@import" not in source
    assert ATTACK in elements.text  # as text, whole


def test_every_score_has_its_circumstances_beside_it(run: Path) -> None:
    said = Elements((run / "report.html").read_text(encoding="utf-8")).text
    plain = re.sub(r"\\(.)", r"\1", (run / "report.md").read_text(encoding="utf-8"))
    for name in public():
        found = read_result(run / name)
        score = f"{found.figure(found.score.headline)}"
        for words in (said, plain):
            assert score in words and found.about["title"] in words
            for setting, value in page.settings_of(found).items():
                assert setting in words
                assert value.strip() in words or value.replace("\n", "\\n") in words
    assert "rosetta" in said and "testdev_balanced" in said and "58.5" in said and "1,191.9" in said
    assert "Partial: 6 of 12,578 questions" in said and "partial: 6 of 12,578 questions" in plain
    assert "of the owners' 12,578 questions" in said and "of the owners' 12,578 questions" in plain
    for category in ("commonsense reasoning", "landmark", "query", "verify", "natural science"):
        assert category in said


def test_bars_are_as_long_as_their_numbers(run: Path) -> None:
    found = read_result(run / "gqa")
    source = (run / "report.html").read_text(encoding="utf-8")
    for name, value in found.score.categories["structural"].items():
        bar = f'<span class="label">{name}</span><span class="bar"><i style="width:{value:.2f}%"></i></span>'
        assert bar in source
    area = read_result(run / "mme").score.categories
    halves = [area["accuracy"]["count"] / 2, area["accuracy+"]["count"] / 2]
    fill = "".join(f'<i style="width:{half:.2f}%"></i>' for half in halves)
    assert f'<span class="label">count</span><span class="bar">{fill}</span>' in source


def test_what_is_missing_or_too_long_is_said(tmp_path: Path) -> None:
    toy.draw(tmp_path / "toy", pictures=1)
    benchmark = toy.Toy()
    examples = benchmark.load(tmp_path / "toy")
    answers = {"0-0": {"text": "yes", "finish_reason": "stop"}, "0-1": {"text": "", "finish_reason": "prompt_too_long"}}
    found = judge(benchmark, examples, answers, {"benchmark": "toy", "title": benchmark.title, "settings": {}})
    assert any(note.startswith("3 questions have no answer") for note in page.notes(found))
    assert any(note.startswith("1 prompts do not fit") for note in page.notes(found))
    source = page.page([found], "toy")
    assert "3 questions have no answer" in source and "Toy &lt;b&gt;questions&lt;/b&gt;" in source
    write_result(found, tmp_path)
    assert read_result(tmp_path) == found


def test_pictures_are_small_and_bounded(tmp_path: Path) -> None:
    import random

    noise = random.Random(0)
    Image.frombytes("RGB", (900, 600), noise.randbytes(900 * 600 * 3)).save(tmp_path / "a.png")

    def row(*images: str) -> Judged:
        return Judged("1", "1", 1.0, "?", "", (), {}, tuple(str(tmp_path / each) for each in images))

    (url,) = Pictures(10**6).of(row("a.png"))
    assert url.startswith("data:image/jpeg;base64,") and len(url) < 200_000
    pictures = Pictures(len(url) + 10)
    assert [found[:5] for found in pictures.of(row("a.png", "a.png", "gone.png"))] == ["data:", "Left ", "The p"]


def test_the_samples_show_every_category_and_fresh_pictures() -> None:
    rows = [
        Judged(f"{kind}{i}", f"{kind}{i % 3}.png", 1.0, "?", "", (), {"category": kind})
        for kind in "abc"
        for i in range(20)
    ]
    chosen = pick(rows, 6, "category")
    assert (
        sorted(each.group["category"] for each in chosen) == list("aabbcc") and len({each.unit for each in chosen}) == 6
    )
    assert pick(list(reversed(rows)), 6, "category") == chosen
    assert len(pick(rows, 30, "category")) == 30


def test_elements_escape_what_they_are_given() -> None:
    assert tag("p", "a<b", tag("b", "&"), class_='x"y') == '<p class="x&quot;y">a&lt;b<b>&amp;</b></p>'
    assert tag("input", checked=True, disabled=False) == "<input checked>"
    assert text("\ud800<") == "?&lt;"


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no scores"):
        writer.write(tmp_path)


@pytest.mark.parametrize(("width", "scheme"), [(1240, "light"), (390, "dark")])
def test_the_page_opens_in_a_browser(run: Path, tmp_path: Path, width: int, scheme: str) -> None:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install -e '.[dev]'"
    )
    if not CHROMIUM:
        pytest.skip("no Chromium is installed, so the report was opened in no browser: apt-get install chromium")
    complaints: list[str] = []
    requests: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto((run / "report.html").as_uri())
        images = tab.evaluate("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
        assert len(images) > 20 and all(images)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the screen"
        tab.locator("label[for=mme-wrong]").click()
        assert (
            tab.locator("#mme .card.wrong").first.is_visible()
            and not tab.locator("#mme .card.right").first.is_visible()
        )
        assert tab.locator("#gqa .card.right").first.is_visible()
        shot = tmp_path / "report.png"
        tab.screenshot(path=str(shot), full_page=True)
        title = tab.title()
        browser.close()
    assert complaints == [] and title.startswith("nano on ")
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    with Image.open(shot) as picture:
        assert picture.width == width and len(picture.convert("L").getcolors(256) or []) > 50
