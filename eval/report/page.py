"""The report as one HTML page that needs nothing but itself: no script, no request, pictures inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.resources import files

from mobillama_v.eval.benchmarks.mme import COGNITION, PERCEPTION
from mobillama_v.eval.compare import figure, headline, question
from mobillama_v.eval.evaluate import TOO_LONG
from mobillama_v.eval.report.samples import Pictures, pick, tag_of
from mobillama_v.eval.results import PAPER, Judged, Result
from mobillama_v.markup import Html, join, tag

_SHOWN = 8  # right ones, and as many wrong ones, of each benchmark
_PICTURES = 5_000_000  # bytes of all pictures in a page
_TITLES = {
    "ocr": "OCR",
    "structural": "structural type",
    "semantic": "semantic type",
    "steps": "steps of reasoning",
    "words": "words in the question",
}
_WIDE = 24  # characters of a setting, from which it takes a whole row
_LONG = 9  # bars, from which a group takes two places
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(results: Sequence[Result], title: str) -> str:
    """The page of a run's results."""
    style = Html(files("mobillama_v.eval.report").joinpath("templates/report.css").read_text(encoding="utf-8"))
    pictures = [Pictures(_PICTURES // len(results)) for _ in results]
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            tag("title", title),
            tag("link", rel="icon", href="data:,"),
            tag("style", style),
        ]
    )
    body = join(
        [
            tag("header", tag("div", tag("h1", title), tag("p", _about(results), class_="about"))),
            tag(
                "main",
                tag("div", *[_card(result) for result in results], class_="scores"),
                *[_section(result, room) for result, room in zip(results, pictures, strict=True)],
            ),
            tag("footer", _small_print(results)),
        ]
    )
    return "<!doctype html>\n" + tag("html", tag("head", head), tag("body", body), lang="en") + "\n"


def _about(results: Sequence[Result]) -> str:
    about = results[0].about
    count = sum(len(result.questions) for result in results)
    parts = [f"{count:,} questions", f"model {about.get('model', 'unknown')}"]
    if about.get("precision"):
        parts.append(str(about["precision"]))
    if about.get("weights_sha256"):
        parts.append(f"weights {about['weights_sha256'][:12]}")
    return ", ".join(parts)


def _small_print(results: Sequence[Result]) -> str:
    paper = any(result.benchmark in PAPER for result in results)
    return (
        "Greedy answers. Intervals: 95 %, bootstrap over images with their questions, seed 0. "
        + ("Paper: MobiLlama-V 0.8B, arXiv 2402.16840, table 8. " if paper else "")
        + f"Made by MobiLlama-V {results[0].about.get('version', '')}."
    )


def _card(result: Result) -> Html:
    """A benchmark at a glance: its score on a ruler, with its interval and the paper's score."""
    score, top = result.score, _top(result)
    ruler = [tag("i", class_="track")]
    legend = []
    if result.interval:
        low, high = result.interval
        left, width = f"{100 * low / top:.2f}%", f"{100 * (high - low) / top:.2f}%"
        ruler.append(tag("i", class_="band", style=f"left:{left};width:{width}"))
        legend.append(tag("span", "95 %: ", tag("b", f"{figure(low, 1)} to {figure(high, 1)}")))
    if result.benchmark in PAPER:
        paper = PAPER[result.benchmark]
        ruler.append(tag("i", class_="tick", style=f"left:{100 * paper / top:.2f}%"))
        legend.append(tag("span", tag("i", class_="key p"), "paper: ", tag("b", figure(paper, 1))))
    ruler.append(tag("i", class_="dot", style=f"left:{100 * score.headline / top:.2f}%"))
    return tag(
        "a",
        tag("div", result.about["title"], class_="name"),
        tag("div", ", ".join([score.headline_name, *_brief(result)]), class_="measure"),
        tag("div", figure(score.headline, result.digits), tag("small", _unit(result)), class_="big"),
        tag("div", *ruler, class_="ruler", aria_hidden="true"),
        tag("div", *legend, class_="legend"),
        class_="score",
        href=f"#{result.benchmark}",
    )


def _brief(result: Result) -> list[str]:
    """Split and OCR mode, which a score must not be without."""
    settings = result.about.get("settings", {})
    names = {"split": "split", "ocr": "OCR"}
    return [f"{shown} {settings[name]}" for name, shown in names.items() if name in settings]


def _top(result: Result) -> float:
    """The best score there could be."""
    if result.benchmark != "mme":
        return 100.0
    return 200.0 * max(1, len(result.score.categories.get("perception", {})))


def _unit(result: Result) -> str:
    return f"of {_top(result):,.0f}" if result.benchmark == "mme" else "%"


def _section(result: Result, pictures: Pictures) -> Html:
    groups = _mme_groups(result) if result.benchmark == "mme" else _groups(result)
    asked = tag("div", tag("h3", "How it was asked"), _settings(result), class_="panel")
    bars = tag("div", _metrics(result), tag("div", *groups, class_="groups"), class_="panel")
    right = sum(each.correct == 1 for each in result.questions)
    return tag(
        "section",
        tag(
            "div",
            tag("h2", result.about["title"]),
            tag("p", tag("b", headline(result)), f" {result.score.headline_name}"),
            tag("p", f"{right:,} of {len(result.questions):,} questions wholly right"),
            class_="head",
        ),
        *[tag("p", note, class_="note") for note in notes(result)],
        tag("div", asked, bars, class_="two") if groups else asked,
        _gallery(result, pictures),
        id=result.benchmark,
    )


def settings_of(result: Result) -> dict[str, str]:
    """Everything that must be known to compare a score, as it is printed beside it."""
    about = result.about
    found = {_TITLES.get(name, name): str(value) for name, value in about.get("settings", {}).items()}
    found["questions"] = f"{len(result.questions):,}"
    for key, name in (("model", "model"), ("precision", "precision"), ("max_new_tokens", "longest answer, tokens")):
        if about.get(key) is not None:
            found[name] = str(about[key])
    return found


def notes(result: Result) -> list[str]:
    """What a reader must know before believing a score."""
    found = []
    official, count = result.about.get("official_questions"), len(result.questions)
    if official and official != count:
        found.append(f"{count:,} of the owners' {official:,} questions: not comparable with published scores.")
    if result.score.missing:
        found.append(f"{len(result.score.missing):,} questions have no answer; they count as wrong.")
    too_long = sum(each.finish_reason == TOO_LONG for each in result.questions)
    if too_long:
        found.append(f"{too_long:,} prompts do not fit the model's context; they count as wrong.")
    return found


def _settings(result: Result) -> Html:
    items = []
    for name, value in settings_of(result).items():
        wide = len(value) > _WIDE or "\n" in value
        shown = tag("code", value) if name == "prompt" else value
        items.append(tag("div", tag("dt", name), tag("dd", shown), class_="wide" if wide else "narrow"))
    return tag("dl", *items)


def _metrics(result: Result) -> Html:
    if len(result.score.metrics) < 2:
        return Html("")
    items = [
        tag("div", tag("b", figure(value, result.digits)), tag("span", name))
        for name, value in result.score.metrics.items()
    ]
    return tag("div", *items, class_="metrics")


def _groups(result: Result) -> list[Html]:
    """Bars of percentages, one group for each way to break the score down."""
    found = []
    for name, values in result.score.categories.items():
        if not values:
            continue
        counts = Counter(row.group.get(name) for row in result.questions)
        rows = [
            _bar(label, [value], 100, figure(value, 1), f"of {counts[label]:,}" if counts[label] else "")
            for label, value in _sorted(values)
        ]
        found.append(_group(f"By {_TITLES.get(name, name)}, % right", rows))
    return found


def _sorted(values: Mapping[str, float]) -> list[tuple[str, float]]:
    """Numbers by size, everything else as it comes."""
    items = list(values.items())
    return sorted(items, key=lambda item: int(item[0])) if all(name.isdecimal() for name in values) else items


def _mme_groups(result: Result) -> list[Html]:
    """MME's categories, each bar in two parts of up to 100 points: accuracy and accuracy+."""
    parts = result.score.categories
    found = []
    for area, names in (("Perception", PERCEPTION), ("Cognition", COGNITION)):
        rows = []
        for name in names:
            if name in parts["accuracy"]:
                values = [parts["accuracy"][name], parts["accuracy+"][name]]
                rows.append(_bar(name.replace("_", " "), values, 200, figure(sum(values), 1), ""))
        if rows:
            found.append(_group(f"{area}, points of 200", rows))
    if found:
        key = [tag("span", tag("i", class_="key a"), "accuracy")]
        key.append(tag("span", tag("i", class_="key b"), "accuracy+: both of a picture right"))
        found.append(tag("div", *key, class_="legend"))
    return found


def _group(title: str, rows: Sequence[Html]) -> Html:
    kind = "group long" if len(rows) >= _LONG else "group"
    return tag("div", tag("h3", title), tag("div", *rows, class_="bars"), class_=kind)


def _bar(label: str, values: Sequence[float], top: float, shown: str, count: str) -> Html:
    fill = [tag("i", style=f"width:{100 * value / top:.2f}%") for value in values]
    return join(
        [
            tag("span", label, class_="label"),
            tag("span", *fill, class_="bar"),
            tag("span", shown, tag("small", count) if count else "", class_="value"),
        ]
    )


def _gallery(result: Result, pictures: Pictures) -> Html:
    right = [row for row in result.questions if row.correct == 1]
    wrong = [row for row in result.questions if row.correct < 1]
    shown = [row for pair in _pairs(pick(wrong, _SHOWN), pick(right, _SHOWN)) for row in pair]
    name = result.benchmark
    kinds = {"all": "All shown", "wrong": "Wrong", "right": "Right"}
    inputs = [tag("input", type="radio", name=name, id=f"{name}-{kind}", checked=kind == "all") for kind in kinds]
    labels = [tag("label", text, for_=f"{name}-{kind}") for kind, text in kinds.items()]
    # The rules are the page's own, since they name the benchmark's switches.
    rules = "".join(
        f"#{name}-{kind}:checked~.tabs label[for={name}-{kind}]{{background:var(--ink);color:var(--page)}}"
        f"#{name}-{kind}:focus-visible~.tabs label[for={name}-{kind}]{{outline:2px solid var(--accent)}}"
        for kind in kinds
    )
    rules += f"#{name}-wrong:checked~.cards .right,#{name}-right:checked~.cards :is(.wrong,.part){{display:none}}"
    return tag(
        "div",
        tag("style", Html(rules)),
        *inputs,
        tag("div", tag("h3", "Questions and answers"), *labels, class_="tabs"),
        tag("div", *[_question(row, pictures) for row in shown], class_="cards"),
        class_="gallery",
    )


def _pairs(wrong: list[Judged], right: list[Judged]) -> list[list[Judged]]:
    """One of each in turn."""
    return [[*wrong[i : i + 1], *right[i : i + 1]] for i in range(max(len(wrong), len(right)))]


def _question(row: Judged, pictures: Pictures) -> Html:
    shots = [
        tag("img", src=shot, alt="The picture of this question") if shot.startswith("data:") else tag("p", shot)
        for shot in pictures.of(row)
    ]
    kind, mark = ("right", "✓ right") if row.correct == 1 else ("wrong", "✗ wrong")
    if 0 < row.correct < 1:
        kind, mark = "part", f"◐ {100 * row.correct:.0f} % right"
    said = row.text or ("prompt too long" if row.finish_reason == TOO_LONG else "no answer")
    reply = [tag("span", "said"), tag("b", said, class_="said")]
    if kind != "right":
        reply += [tag("span", "expected"), tag("b", ", ".join(dict.fromkeys(row.answers)))]
    return tag(
        "article",
        tag("div", *shots, class_="shots") if shots else Html(""),
        tag(
            "div",
            tag("div", mark, tag("em", tag_of(row).replace("_", " ")), class_="mark"),
            tag("div", question(row), class_="question", tabindex="0"),
            tag("div", *reply, class_="reply"),
            class_="text",
        ),
        class_=f"card {kind}" if shots else f"card {kind} bare",
    )
