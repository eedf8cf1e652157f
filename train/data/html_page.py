"""HTML pages that load nothing from anywhere: records as a model sees them, answers of a model while it learns."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path

from mobillama_v.errors import ImageError
from mobillama_v.images import ImageTransform, load_image
from mobillama_v.markup import Html, tag

_STYLE = """
body { font: 15px/1.6 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #222;
  background: #fff; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 0; }
article { border-top: 1px solid #ccc; padding: 1rem 0; }
img { max-width: 14rem; border: 1px solid #ccc; margin-right: .5rem; vertical-align: top; }
p { margin: .2rem 0 .6rem; overflow-wrap: anywhere; } .small { color: #555; }
.right { color: #17602a; } .wrong { color: #a00; }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #161616; } .small { color: #aaa; }
  article, img { border-color: #444; } .right { color: #7fd495; } .wrong { color: #f88; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, style: str, *body: Html) -> str:
    """A page with a heading; ``style`` is CSS added to that of all pages."""
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Html(_STYLE + style)),
    ]
    return "<!doctype html>\n" + tag("html", tag("head", *head), tag("body", tag("h1", title), *body), lang="en") + "\n"


def picture(path: str, image_root: Path, transform: ImageTransform, *, side: int | None = None) -> Html:
    """An image as the tower sees it, at most ``side`` pixels wide and high; or why it cannot be read."""
    try:
        image = transform.apply(load_image(image_root / path, target=transform.size))
    except (ImageError, OSError, ValueError) as error:
        return tag("p", str(error), class_="wrong")
    if side is not None:
        image.thumbnail((side, side))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=85)
    source = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return tag("img", src=source, alt=path, title=path)
