"""What is fuzzed in Python: each target takes bytes and may only return, or raise a MobiLlamaVError.

The parts that are changed most cleverly are those that a coverage-guided fuzzer can see: Python's. What libraries do in
C or Rust is covered as far as their errors go.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from mobillama_v.backends.native import library
from mobillama_v.backends.native.packed_format import FILE, Packed, layout, read, write
from mobillama_v.backends.native.runtime import NativeModel, NativeSequence
from mobillama_v.backends.numpy.decoder import NumpyModel, NumpySequence
from mobillama_v.config import DecoderConfig
from mobillama_v.demo.limits import Limits
from mobillama_v.demo.protocol import parse
from mobillama_v.demo.read_json import read_json
from mobillama_v.demo.request_bodies import ChatBody, CompletionBody, ResponseBody
from mobillama_v.errors import MobiLlamaVError
from mobillama_v.hub import read_spec
from mobillama_v.images import ImageTransform, load_image
from mobillama_v.model.vision import HYBRID
from mobillama_v.tokenization import TextTokenizer
from mobillama_v.train.recipe_files import load_recipe, to_yaml

SPEC = DecoderConfig(32, 16, 32, 2, 2, 1, 16)
"""Of the packed decoder that is damaged."""
SEPARATOR = b"\n---\n"
"""Between the two files of an input of :func:`config`."""
_MAX_PIXELS = 1 << 16
_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def images(data: bytes) -> None:
    """A picture's file: decoded, and made the array that a tower takes."""
    picture = load_image(data, max_pixels=_MAX_PIXELS)
    assert picture.mode == "RGB" and picture.width * picture.height <= _MAX_PIXELS
    for mode in ("pad", "crop", "squash"):
        pixels = ImageTransform(8, mode)(picture)
        assert pixels.shape == (3, 8, 8) and np.isfinite(pixels).all()


def requests(data: bytes) -> None:
    """The body of a request to the server, at each of its addresses."""
    body = read_json(bytearray(data))
    for kind in (ChatBody, CompletionBody, ResponseBody):
        with contextlib.suppress(MobiLlamaVError):
            parse(body, kind, Limits())


def packed(data: bytes) -> None:
    """A packed decoder.

    Its first byte says what the rest is: a whole file, the header of a valid file, or changes of the bytes of one.
    """
    kind, rest = data[:1], data[1:]
    if kind == b"h":
        rest = len(rest).to_bytes(8, "little") + rest + valid_file()[-_body() :]
    elif kind != b"f":
        whole = bytearray(valid_file())
        for i in range(0, len(rest) - 2, 3):
            whole[int.from_bytes(rest[i : i + 2], "little") % len(whole)] = rest[i + 2]
        rest = bytes(whole)
    (_FOLDER / FILE).write_bytes(rest)
    found = read(_FOLDER, SPEC)
    slow = NumpyModel(found)
    with np.errstate(all="ignore"):
        assert slow.forward([NumpySequence(slow, 8)], [np.arange(5)]).shape == (1, SPEC.vocab_size)
    if not library.missing():
        model = NativeModel(found, threads=1)
        assert model.forward([NativeSequence(model, 8)], [np.arange(5)]).shape == (1, SPEC.vocab_size)


@lru_cache(maxsize=1)
def valid_file() -> bytes:
    """A packed decoder's file."""
    random = np.random.default_rng(0)
    tensors = {
        name: np.full(shape, 0.5, dtype) if dtype != np.uint8 else random.integers(0, 60, shape, np.uint8)
        for name, (dtype, shape) in layout(SPEC, 4).items()
    }
    write(Packed(SPEC, 4, tensors), _FOLDER)
    return (_FOLDER / FILE).read_bytes()


def _body() -> int:
    return sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in layout(SPEC, 4).values())


def config(data: bytes) -> None:
    """``config.json`` and ``tokenizer.json`` of a model folder."""
    first, _, second = data.partition(SEPARATOR)
    (_FOLDER / "config.json").write_bytes(first)
    (_FOLDER / "tokenizer.json").write_bytes(second)
    try:
        spec = read_spec(_FOLDER)
        if spec.tower.model == HYBRID:  # others import torch, which takes seconds
            assert spec.num_params() > 0 < spec.tokens_per_image()
        decoder = spec.decoder
    except MobiLlamaVError:
        decoder = SPEC
    tokenizer = TextTokenizer.of_decoder(_FOLDER / "tokenizer.json", decoder)
    ids = tokenizer.encode(" a b\n\u00e9 <image></s>")
    assert all(0 <= each < decoder.vocab_size for each in ids)
    assert isinstance(tokenizer.decode(ids), str)


def recipes(data: bytes) -> None:
    """A recipe; what is read must be read again from how it is written."""
    path = _FOLDER / "recipe.yaml"
    path.write_bytes(data)
    recipe = load_recipe(str(path))
    path.write_text(to_yaml(recipe), encoding="utf-8")
    assert load_recipe(str(path)) == recipe


TARGETS: dict[str, Callable[[bytes], None]] = {
    "images": images,
    "requests": requests,
    "packed": packed,
    "config": config,
    "recipes": recipes,
}


def run(name: str, data: bytes) -> None:
    """Give ``data`` to a target; any other error than a user's is a finding."""
    with contextlib.suppress(MobiLlamaVError):
        TARGETS[name](data)
