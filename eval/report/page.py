"""The report as one HTML page that needs nothing but itself: no script, no request, pictures inside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.resources import files

from mobillama_v.eval.benchmarks.base import Chart
from mobillama_v.eval.evaluate import TOO_LONG
from mobillama_v.eval.report.samples import Pictures, pick
from mobillama_v.eval.results import Judged, Result
from mobillama_v.eval.stats import INTERVALS
from mobillama_v.markup import Html, join, tag

_SHOWN = 8  # right ones, and as many wrong ones, of each benchmark
_PICTURES = 5_000_000  # bytes of all pictures in a page
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
    paper = any(result.kind.paper_score is not None for result in results)
    return (
        f"Greedy answers. {INTERVALS}. "
        + ("Paper: MobiLlama-V 0.8B, arXiv 2402.16840, table 8. " if paper else "")
        + f"Made by MobiLlama-V {results[0].about.get('version', '')}."
    )


def _card(result: Result) -> Html:
    """A benchmark at a glance: its score on a ruler, with its interval and the paper's score."""
    score, paper, top = result.score, result.kind.paper_score, result.kind.top(result.score)
    ruler = [tag("i", class_="track")]
    legend = []
    if result.interval:
        low, high = result.interval
        left, width = f"{100 * low / top:.2f}%", f"{100 * (high - low) / top:.2f}%"
        ruler.append(tag("i", class_="band", style=f"left:{left};width:{width}"))
        legend.append(tag("span", "95 %: ", tag("b", f"{low:,.1f} to {high:,.1f}")))
    if paper is not None:
        ruler.append(tag("i", class_="tick", style=f"left:{100 * paper / top:.2f}%"))
        legend.append(tag("span", tag("i", class_="key p"), "paper: ", tag("b", f"{paper:,.1f}")))
    ruler.append(tag("i", class_="dot", style=f"left:{100 * score.headline / top:.2f}%"))
    return tag(
        "a",
        tag("div", result.about["title"], class_="name"),
        tag("div", ", ".join([score.headline_name, *_brief(result)]), class_="measure"),
        tag("div", result.figure(score.headline), tag("small", "%" if top == 100 else f"of {top:,.0f}"), class_="big"),
        tag("div", *ruler, class_="ruler", aria_hidden="true"),
        tag("div", *legend, class_="legend"),
        tag("div", f"Partial: {result.partial}", class_="partial") if result.partial else Html(""),
        class_="score",
        href=f"#{result.benchmark}",
    )


def _brief(result: Result) -> list[str]:
    """Split and OCR mode, which a score must not be without."""
    settings = result.about.get("settings", {})
    names = {"split": "split", "ocr": "OCR"}
    return [f"{shown} {settings[name]}" for name, shown in names.items() if name in settings]


def _section(result: Result, pictures: Pictures) -> Html:
    groups = _charts(result)
    asked = tag("div", tag("h3", "How it was asked"), _settings(result), class_="panel")
    bars = tag("div", _metrics(result), tag("div", *groups, class_="groups"), class_="panel")
    right = sum(each.correct == 1 for each in result.questions)
    return tag(
        "section",
        tag(
            "div",
            tag("h2", result.about["title"]),
            tag("p", tag("b", result.headline), f" {result.score.headline_name}"),
            tag("p", f"{right:,} of {len(result.questions):,} questions wholly right"),
            class_="head",
        ),
        *[tag("p", note, class_="note") for note in notes(result)],
        tag("div", asked, bars, class_="two") if groups else asked,
        _samples(result, pictures),
        id=result.benchmark,
    )


def settings_of(result: Result) -> dict[str, str]:
    """Everything that must be known to compare a score, as it is printed beside it."""
    about = result.about
    found = {"OCR" if name == "ocr" else name: str(value) for name, value in about.get("settings", {}).items()}
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
        tag("div", tag("b", result.figure(value)), tag("span", name)) for name, value in result.score.metrics.items()
    ]
    return tag("div", *items, class_="metrics")


def _charts(result: Result) -> list[Html]:
    found = []
    legend: tuple[str, ...] = ()
    for chart in result.kind.charts(result.score):
        counts = Counter(row.group.get(chart.group) for row in result.questions)
        rows = [_bar(chart, label, f"of {counts[label]:,}" if counts[label] else "") for label in chart.bars]
        found.append(_group(chart.title, rows))
        legend = chart.legend
    if legend:
        keys = [tag("span", tag("i", class_=f"key {key}"), name) for key, name in zip("ab", legend, strict=True)]
        found.append(tag("div", *keys, class_="legend"))
    return found


def _group(title: str, rows: Sequence[Html]) -> Html:
    kind = "group long" if len(rows) >= _LONG else "group"
    return tag("div", tag("h3", title), tag("div", *rows, class_="bars"), class_=kind)


def _bar(chart: Chart, label: str, count: str) -> Html:
    values = chart.bars[label]
    fill = [tag("i", style=f"width:{100 * value / chart.top:.2f}%") for value in values]
    return join(
        [
            tag("span", label, class_="label"),
            tag("span", *fill, class_="bar"),
            tag("span", f"{sum(values):,.1f}", tag("small", count) if count else "", class_="value"),
        ]
    )


def _samples(result: Result, pictures: Pictures) -> Html:
    category = result.kind.category
    right = [row for row in result.questions if row.correct == 1]
    wrong = [row for row in result.questions if row.correct < 1]
    shown = [row for pair in _alternated(pick(wrong, _SHOWN, category), pick(right, _SHOWN, category)) for row in pair]
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
        tag("div", *[_question(result, row, pictures) for row in shown], class_="cards"),
        class_="samples",
    )


def _alternated(wrong: list[Judged], right: list[Judged]) -> list[list[Judged]]:
    """One of each in turn."""
    return [[*wrong[i : i + 1], *right[i : i + 1]] for i in range(max(len(wrong), len(right)))]


def _question(result: Result, row: Judged, pictures: Pictures) -> Html:
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
            tag("div", mark, tag("em", row.group.get(result.kind.category, "").replace("_", " ")), class_="mark"),
            tag("div", result.question(row), class_="question", tabindex="0"),
            tag("div", *reply, class_="reply"),
            class_="text",
        ),
        class_=f"card {kind}" if shots else f"card {kind} bare",
    )
