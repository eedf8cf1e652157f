"""Records as the model will see them: images after the transform, the template's text, and which tokens are learned.

A view is made by the code that makes training samples, not by a second one that imitates it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

from mobillama_v.images import ImageTransform
from mobillama_v.json_stream import record_texts
from mobillama_v.markup import Html, tag
from mobillama_v.tokenization import TextTokenizer
from mobillama_v.train.data.encoding import IMAGE, SUPERVISED, Encoding
from mobillama_v.train.data.html_page import document, picture
from mobillama_v.train.data.preprocess import Outcome, preprocess_record, record_id

_STYLE = """
pre { font: 14px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
span { border-right: 1px solid #bbb; padding: 1px 0; }
.learned { background: #b7e4c0; color: #06310f; } .image { background: #d9d2ef; color: #2b1a5e; padding: 1px 4px; }
@media (prefers-color-scheme: dark) { span { border-color: #555; } .learned { background: #1d5a2b; color: #e5ffe9; }
  .image { background: #43367a; color: #eee; } }
"""


@dataclass(frozen=True)
class Token:
    """A token's text and id, and whether it is learned; or, with ``image``, all slots of the image of that number."""

    text: str
    id: int
    learned: bool
    image: int | None = None


@dataclass(frozen=True)
class View:
    """One record; ``problem`` in place of all else where it cannot be learned from."""

    record: str
    place: str
    images: tuple[str, ...] = ()
    tokens: tuple[Token, ...] = ()
    length: int = 0
    """Positions, every slot of an image counted."""
    shortened: bool = False
    problem: str | None = None

    @property
    def learned(self) -> int:
        """Tokens that are learned."""
        return sum(token.learned for token in self.tokens)

    def summary(self) -> str:
        """What it is, in a line."""
        if self.problem is not None:
            return self.problem
        cut = ", its end is left out to fit" if self.shortened else ""
        return f"{len(self.images)} images, {self.length} tokens, {self.learned} of them learned{cut}"


def views(files: Sequence[Path], encoding: Encoding, *, count: int, records: Sequence[str] = ()) -> Iterator[View]:
    """The first ``count`` records of the files, or all that have one of the ids ``records``.

    Raises:
        DataError: a file that cannot be read.
        CheckpointError: no tokenizer where the encoding says.
    """
    tokenizer = encoding.open()
    found = ((path, place, text) for path in files for place, text in record_texts(path))
    chosen = (each for each in found if record_id(each[2], each[1]) in records) if records else islice(found, count)
    for path, place, text in chosen:
        yield _view(preprocess_record((str(path), place, text), encoding=encoding), encoding, tokenizer)


def _view(outcome: Outcome, encoding: Encoding, tokenizer: TextTokenizer) -> View:
    if outcome.problem is not None:
        return View(outcome.record, outcome.place, problem=outcome.problem.reason)
    found = outcome.tokens
    assert found is not None
    ids, flags = found.ids.tolist(), found.flags.tolist()
    tokens: list[Token] = []
    image = start = 0
    for is_image, run in groupby(flags, lambda flag: bool(flag & IMAGE)):
        end = start + len(list(run))
        if is_image:
            for _ in range((end - start) // encoding.tokens_per_image):
                image += 1
                tokens.append(Token(f"image {image}: {encoding.tokens_per_image} tokens", 0, False, image))
        else:
            texts = _texts(ids[start:end], tokenizer)
            tokens += [
                Token(text, token, bool(flag & SUPERVISED))
                for text, token, flag in zip(texts, ids[start:end], flags[start:end], strict=True)
            ]
        start = end
    images = outcome.images[: found.images]
    return View(outcome.record, outcome.place, images, tuple(tokens), len(ids), found.shortened)


def _texts(ids: list[int], tokenizer: TextTokenizer) -> list[str]:
    """What each token adds to the text; one that ends amid a character adds nothing, and the next one all of it."""
    special = {tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>"}
    out: list[str] = []
    start, known = 0, ""
    for place, token in enumerate(ids):
        if token in special:
            out.append(special[token])
            start, known = place + 1, ""
            continue
        text = tokenizer.decode(ids[start : place + 1])
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            out.append("")
        else:
            out.append(text[len(known) :])
            known = text
    return out


def page(found: Sequence[View], *, image_root: Path, transform: ImageTransform, title: str) -> str:
    """All views as one HTML page that needs nothing but itself."""
    legend = tag(
        "p",
        "Green is learned; lines part the tokens, whose ids show under the pointer. Images are as the tower sees them.",
    )
    articles = [_article(view, image_root, transform) for view in found]
    return document(title, _STYLE, legend, *articles)


def _article(view: View, image_root: Path, transform: ImageTransform) -> Html:
    head = [
        tag("h2", f"{view.record} ({view.place})"),
        tag("p", view.summary(), class_="wrong" if view.problem else "small"),
    ]
    images = [picture(path, image_root, transform) for path in view.images]
    tokens = [_span(token) for token in view.tokens]
    return tag("article", *head, *images, *([tag("pre", *tokens)] if tokens else []))


def _span(token: Token) -> Html:
    if token.image is not None:
        return tag("span", token.text, class_="image")
    return tag("span", token.text, title=str(token.id), class_="learned" if token.learned else "")
