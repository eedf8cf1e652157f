"""``python -m fuzz.make_seeds``: write the seeds of all targets, small inputs from which the fuzzer starts."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from fuzz.targets import SEPARATOR, valid_file
from mobillama_v.hub import find_model
from mobillama_v.train.recipe_files import load_recipe, to_yaml

SEEDS = Path(__file__).parent / "seeds"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def pictures() -> dict[str, bytes]:
    """A picture of each kind of file and of pixels that people have."""
    levels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5
    image = Image.fromarray(levels)
    exif = Image.Exif()
    exif[0x112] = 6  # orientation
    made = {
        "rgb.png": (image, {}),
        "rgba.png": (image.convert("RGBA"), {}),
        "palette.png": (image.convert("P", palette=Image.Palette.ADAPTIVE), {"transparency": 0}),
        "gray16.png": (Image.fromarray(levels[..., 0].astype(np.uint16) * 99), {}),
        "one.png": (image.convert("1"), {}),
        "turned.jpg": (image, {"exif": exif}),
        "cmyk.jpg": (image.convert("CMYK"), {}),
        "a.gif": (image.convert("P"), {}),
        "a.webp": (image, {"lossless": True}),
        "a.bmp": (image, {}),
        "a.ppm": (image, {}),
        "a.tga": (image, {}),
        "a.ico": (image.resize((16, 16)), {}),
        "rgb.tif": (image, {"compression": "tiff_lzw"}),
        "float.tif": (Image.fromarray(levels[..., 0].astype(np.float32)), {}),
        "long.tif": (Image.fromarray(levels[..., 0].astype(np.int32)), {}),
    }
    files = {}
    for name, (picture, options) in made.items():
        out = io.BytesIO()
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.rpartition(".")[2].upper())
        picture.save(out, kind, **options)
        files[name] = out.getvalue()
    return files


def bodies() -> dict[str, bytes]:
    """Requests of each kind."""
    url = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    text = {"type": "text", "text": "What is this?"}
    one = {"model": "nano", "messages": [{"role": "user", "content": "hi"}]}
    return {
        name: json.dumps(body).encode()
        for name, body in {
            "text": one,
            "picture": one | {"messages": [{"role": "user", "content": [text, url]}]},
            "chat": one
            | {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [url, text]},
                    {"role": "assistant", "content": "A dog."},
                    {"role": "user", "content": "Why?"},
                ]
            },
            "sampling": one
            | {"temperature": 0.5, "top_p": 0.9, "seed": -1, "stop": ["\n"], "max_tokens": 9, "stream": True, "n": 1}
            | {"stream_options": {"include_usage": True}, "logprobs": False, "response_format": {"type": "text"}},
        }.items()
    }


def packed_files() -> dict[str, bytes]:
    """A valid file, its header alone, and changes of its bytes."""
    whole = valid_file()
    start = 8 + int.from_bytes(whole[:8], "little")
    return {"file": b"f" + whole, "header": b"h" + whole[8:start], "changes": b"c" + bytes(range(1, 31))}


def configs() -> dict[str, bytes]:
    """nano's configuration and one with defaults, with a small tokenizer of each kind."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4, "\u2581": 5, "ab": 6, "\u0120": 7}
    words = {"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}}
    pairs = {
        "version": "1.0",
        "added_tokens": [{"id": 2, "content": "</s>", "special": True} | dict.fromkeys(_FLAGS, False)],
        "normalizer": {"type": "Prepend", "prepend": "\u2581"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"]], "unk_token": "<unk>"},
    }
    nano = (find_model("nano") / "config.json").read_bytes()
    least = json.dumps({"model_type": "mobillama_v", "tower": {"model": "ViT-B-32"}, "image": {"size": 224}}).encode()
    return {
        "words": nano + SEPARATOR + json.dumps(words).encode(),
        "pairs": least + SEPARATOR + json.dumps(pairs).encode(),
    }


def recipe_files() -> dict[str, bytes]:
    """Recipes as they are written, and YAML's odd corners."""
    short = "name: &n x\noutput: *n\ntrain: {modules: {projector: 1e-3}, betas: [0.9, 0.99], lora: null}\n"
    return {
        "nano": to_yaml(load_recipe("nano-instruct")).encode(),
        "lora": to_yaml(load_recipe("lora")).encode(),
        "short": short.encode(),
        "bomb": b"a: &a [x, x]\nb: &b [*a, *a]\ndata: {json: *b}\n",
    }


def main() -> None:
    """Write them."""
    made = {"images": pictures, "requests": bodies, "packed": packed_files, "config": configs, "recipes": recipe_files}
    for target, files in made.items():
        folder = SEEDS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files().items():
            (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
