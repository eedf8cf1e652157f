"""Records as the model will see them: images after the transform, the template's text, and which tokens are learned.

A view is made by the code that makes training samples, not by a second one that imitates it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby, islice
from pathlib import Path

from PIL import Image

from mobillama_v.errors import ImageError
from mobillama_v.images import ImageTransform, load_image
from mobillama_v.markup import Html, tag
from mobillama_v.tokenization import TextTokenizer
from mobillama_v.train.data.encoding import IMAGE, SUPERVISED, Encoding
from mobillama_v.train.data.json_stream import record_texts
from mobillama_v.train.data.preprocess import Outcome, preprocess_record, record_id

_STYLE = """
body { font: 15px/1.6 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222;
  background: #fff; }
article { border-top: 1px solid #ccc; padding: 1rem 0; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 0; }
p { color: #555; margin: .2rem 0 .6rem; }
img { max-width: 14rem; border: 1px solid #ccc; margin-right: .5rem; vertical-align: top; }
pre { font: 14px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
span { border-right: 1px solid #bbb; padding: 1px 0; }
.learned { background: #b7e4c0; color: #06310f; } .image { background: #d9d2ef; color: #2b1a5e; padding: 1px 4px; }
.bad { color: #a00; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #161616; } p { color: #aaa; }
  article, img { border-color: #444; } span { border-color: #555; } .bad { color: #f88; }
  .learned { background: #1d5a2b; color: #e5ffe9; } .image { background: #43367a; color: #eee; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


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
        cut = ", its last turns are left out to fit" if self.shortened else ""
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
    return document(title, _STYLE, tag("h1", title), legend, *articles)


def document(title: str, style: str, *body: Html) -> str:
    """A page that loads nothing from anywhere."""
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Html(style)),
    ]
    return "<!doctype html>\n" + tag("html", tag("head", *head), tag("body", *body), lang="en") + "\n"


def _article(view: View, image_root: Path, transform: ImageTransform) -> Html:
    head = [tag("h2", f"{view.record} ({view.place})"), tag("p", view.summary(), class_="bad" if view.problem else "")]
    images = [_picture(path, image_root, transform) for path in view.images]
    tokens = [_span(token) for token in view.tokens]
    return tag("article", *head, *images, *([tag("pre", *tokens)] if tokens else []))


def _span(token: Token) -> Html:
    if token.image is not None:
        return tag("span", token.text, class_="image")
    return tag("span", token.text, title=str(token.id), class_="learned" if token.learned else "")


def _picture(path: str, image_root: Path, transform: ImageTransform) -> Html:
    try:
        seen = transform.apply(load_image(image_root / path, target=transform.size))
    except (ImageError, OSError, ValueError) as error:
        return tag("p", str(error), class_="bad")
    return tag("img", src=data_url(seen), alt=path, title=path)


def data_url(image: Image.Image) -> str:
    """An image inside a page."""
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
