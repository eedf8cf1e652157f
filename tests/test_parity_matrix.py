"""One picture and one question mean the same in every backend, precision and door.

The whole product of tower x projector x sharing of the feed-forward network x backend x precision x order of text and
picture has hundreds of cells. Factors that meet nowhere in the code are paired instead:

- the decoder sees a tower and a projector only as visual tokens, so the two ways of sharing alternate over them;
- a precision changes numbers and no structure, so it is tried with each tower and sharing, and one projector;
- the order of text and picture changes only the prompt, which no weights see: it is tried once in each door.

A new kind of tower, projector or template takes part as soon as it is registered.
"""

from __future__ import annotations

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import mobillama_v
import tiny
from mobillama_v.backends import native_vision
from mobillama_v.backends.native import library
from mobillama_v.backends.native_vision import NativeVisionEncoder
from mobillama_v.backends.numpy import model as numpy_model
from mobillama_v.backends.numpy.model import NumpyVisionEncoder
from mobillama_v.cli.main import app
from mobillama_v.config import ProjectorConfig, TowerConfig
from mobillama_v.errors import ConfigError
from mobillama_v.generate import Prompt, Sampling
from mobillama_v.hub import read_spec
from mobillama_v.images import ImageTransform
from mobillama_v.model.vision import HYBRID, TOWERS, ViTShape
from mobillama_v.model.vision.plain_vit import CLIP, INTERN, SIGLIP
from mobillama_v.model.vision.registry import ANY
from mobillama_v.model.vlm import TorchVisionEncoder
from mobillama_v.projector import PROJECTORS
from mobillama_v.prompt import Message, Slot, user

QUESTION = "What is this?"
# Of the greatest logit, which is between 3 and 30 here. fp32: sums in another order, also over numpy, whose 16-bit
# weights are those of the files here. The native engine holds keys and values in 16 bits. bf16 has 8 bits of mantissa,
# fp16 has 11, and both round after every layer.
TOLERANCES = {"fp32": 2e-5, "numpy": 5e-5, "native": 2e-2, "bf16": 1e-1, "fp16": 1e-2}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

TOWERS_TRIED = {
    HYBRID: TowerConfig(HYBRID, None, -1, "cls_patch"),
    ANY: TowerConfig(tiny.TOWER_NAME),
    CLIP: TowerConfig(CLIP, vit=ViTShape(24, 3, 3, 40, 8, "quick_gelu")),
    INTERN: TowerConfig(INTERN, feature_layer=-1, vit=ViTShape(24, 2, 3, 50, 8)),
    SIGLIP: TowerConfig(SIGLIP, feature_layer=-1, final_norm=True, vit=ViTShape(24, 2, 3, 50, 8, "gelu_tanh")),
}
"""A tower of each kind."""
CELLS = list(zip(itertools.product(TOWERS, PROJECTORS), itertools.cycle(("all", "none"))))


def picture() -> Image.Image:
    """A drawing-like picture: two colors and an edge."""
    image = Image.new("RGB", (240, 200), (200, 30, 30))
    image.paste((30, 60, 220), (40, 60, 130, 150))
    return image


@pytest.fixture(scope="module")
def model_folder(tower_name: str, tmp_path_factory: pytest.TempPathFactory):
    """Makes model folders, one for each combination that is asked for."""

    @cache
    def make(kind: str, projector: str, sharing: str) -> Path:
        side = 224 if kind == HYBRID else tiny.IMAGE_SIZE
        factor = (7 if kind == HYBRID else 2) if PROJECTORS[projector].merges else 1
        return tiny.save_nano_like(
            tmp_path_factory.mktemp("parity"),
            decoder_changes={"ffn_sharing": sharing},
            tower=TOWERS_TRIED[kind],
            projector=ProjectorConfig(projector, factor),
            image=ImageTransform(size=side, mode="squash"),
        )

    return make


def by_engine(folder: Path, **options: Any) -> tuple[list[int], np.ndarray, Any]:
    """Prompt ids, logits after the prompt, and the assistant: as `describe`, the demo and the server answer."""
    assistant = mobillama_v.load(str(folder), device="cpu", **options)
    encoded = assistant.encode_messages([user(QUESTION, images=1)])
    prompt = Prompt(encoded, [assistant.encode_image(picture()).features])
    return encoded.input_ids, assistant.engine.prefill([prompt], room=1)[1][0], assistant


def by_transformers(folder: Path, dtype: torch.dtype) -> tuple[list[int], np.ndarray]:
    """Prompt ids and logits after the prompt, as users of transformers get them."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    inputs = AutoProcessor.from_pretrained(folder)(images=picture(), text=QUESTION)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
    with torch.inference_mode():
        return inputs["input_ids"][0].tolist(), model(**inputs).logits[0, -1].float().numpy()


def agree(got: np.ndarray, expected: np.ndarray, precision: str) -> None:
    """Within the tolerance of ``precision``, a share of the greatest value.

    In fp16 how far the worst of hundreds of values lies depends on the processor's order of sums: there the differences
    together are that share of the values together.
    """
    if precision == "fp16":
        assert np.linalg.norm(got - expected) < TOLERANCES[precision] * np.linalg.norm(expected)
    else:
        np.testing.assert_allclose(got, expected, rtol=0, atol=TOLERANCES[precision] * np.abs(expected).max())


def test_every_kind_of_tower_is_tried() -> None:
    assert set(TOWERS_TRIED) == set(TOWERS), "give the new kind of tower a configuration here"


@pytest.mark.parametrize(("kind", "projector", "sharing"), [(*cell, sharing) for cell, sharing in CELLS])
def test_backends_agree_on_every_tower_and_projector(kind: str, projector: str, sharing: str, model_folder) -> None:
    folder = model_folder(kind, projector, sharing)
    ids, expected, _ = by_engine(folder, engine="torch")
    theirs, logits = by_transformers(folder, torch.float32)
    assert theirs == ids
    agree(logits, expected, "fp32")
    portable = PROJECTORS[projector].portable
    by_numpy, by_library = portable and kind == HYBRID, portable and kind in (ANY, CLIP, SIGLIP)
    plain = NativeVisionEncoder if by_library and not library.missing() else TorchVisionEncoder
    without_torch = NumpyVisionEncoder if by_numpy else plain
    ids_numpy, over_numpy, assistant = by_engine(folder, engine="numpy")
    assert ids_numpy == ids and type(assistant.vision) is without_torch
    agree(over_numpy, expected, "numpy")
    if library.missing():
        with pytest.raises(ConfigError, match="the native engine cannot be used"):
            mobillama_v.load(str(folder), device="cpu", engine="native")
        return
    ids_native, logits, assistant = by_engine(folder, engine="native")
    assert ids_native == ids
    assert type(assistant.vision) is without_torch
    config = read_spec(folder)
    assert (not numpy_model.supports(config), not native_vision.supports(config)) == (by_numpy, by_library)
    agree(logits, expected, "native")
    agree(logits, over_numpy, "native")
    # The tower in torch before the same decoder, bit for bit. Its keys are fp16, so logits of other sums would not do.
    other = by_engine(folder, engine="native", dtype=torch.float32)[2]
    seen, seen_in_torch = (np.asarray(each.encode_image(picture()).features) for each in (assistant, other))
    agree(seen_in_torch, seen, "native" if by_library else "fp32")
    prompt = Prompt(other.encode_messages([user(QUESTION, images=1)]), [seen])
    np.testing.assert_array_equal(other.engine.prefill([prompt], room=1)[1][0], logits)


DECODERS: dict[str, dict[str, Any]] = {
    "qkv_bias": {"qkv_bias": True},
    "llama3_rope": {
        "llama3_rope": {
            **{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 32,
        }
    },
    "qk_norm": {"num_key_value_heads": 2, "qk_norm": True, "attention_head_dim": 16},
    "grouped": {"num_key_value_heads": 2, "qkv_bias": True},
}


@pytest.mark.parametrize("name", DECODERS)
def test_backends_agree_on_every_decoder(name: str, tmp_path: Path) -> None:
    plain = tiny.save_nano_like(
        tmp_path / "plain", decoder_changes={**DECODERS[name], "qkv_bias": False, "qk_norm": False}
    )
    folder = tiny.save_nano_like(tmp_path / "model", decoder_changes=DECODERS[name])
    _, expected, _ = by_engine(folder, engine="torch")
    agree(by_transformers(folder, torch.float32)[1], expected, "fp32")
    if name != "grouped":  # what is tried changes the answer
        other = tiny.save_nano_like(tmp_path / "other") if name == "llama3_rope" else plain
        assert np.abs(by_engine(other, engine="torch")[1] - expected).max() > 0.05 * np.abs(expected).max()
    agree(by_engine(folder, engine="numpy")[1], expected, "numpy")
    if library.missing():
        return
    agree(by_engine(folder, engine="native")[1], expected, "native")
    for bits in ("4", "8"):  # packed, it means the same in torch, over numpy and in the engine
        out = tmp_path / bits
        assert CliRunner().invoke(app, ["quantize", str(folder), str(out), "--bits", bits]).exit_code == 0
        in_torch = by_engine(out, engine="torch")[1]
        agree(by_engine(out, engine="numpy")[1], in_torch, "numpy")
        agree(by_engine(out, engine="native")[1], in_torch, "bf16")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(("kind", "sharing"), list(itertools.product(TOWERS, ("all", "none"))))
def test_backends_agree_in_every_precision(kind: str, sharing: str, precision: str, model_folder) -> None:
    folder = model_folder(kind, "mlp2x_gelu", sharing)
    _, expected, _ = by_engine(folder, engine="torch")
    _, logits, assistant = by_engine(folder, engine="torch", dtype=DTYPES[precision])
    assert assistant.network.lm_head.weight.dtype == DTYPES[precision]
    agree(logits, expected, precision)
    agree(by_transformers(folder, DTYPES[precision])[1], expected, precision)
    if not library.missing():  # tower and projector in that type, the decoder in 16 bits
        agree(by_engine(folder, engine="native", dtype=DTYPES[precision])[1], expected, precision)


def test_the_hybrid_tower_stays_in_fp32(model_folder) -> None:
    from mobillama_v import MobiLlamaVForConditionalGeneration

    folder = model_folder(HYBRID, "mlp2x_gelu", "all")
    pixels = torch.from_numpy(read_spec(folder).image(picture()))[None]
    model = MobiLlamaVForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    expected = model.vision_tower(pixels)
    for changed in (
        model.to(torch.float16),
        model.bfloat16(),
        MobiLlamaVForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval(),
    ):
        assert changed.lm_head.weight.dtype != torch.float32
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(changed.vision_tower(pixels), expected, rtol=0, atol=0)


def test_the_picture_comes_first_in_every_door(model_folder) -> None:
    pytest.importorskip("prometheus_client", reason="needs the extra serve")
    from transformers import AutoProcessor

    from mobillama_v.demo.limits import Limits
    from mobillama_v.demo.protocol import parse
    from mobillama_v.demo.request_bodies import ChatBody

    folder = model_folder(HYBRID, "mlp2x_gelu", "all")
    assistant = mobillama_v.load(str(folder), device="cpu", engine="torch")
    expected = assistant.encode_messages([user(QUESTION, images=1)]).input_ids
    turned = [Message("user", (QUESTION, Slot.IMAGE))]
    assert assistant.encode_messages(turned).input_ids == expected
    assert (
        assistant.ask([picture()], turned, Sampling(4)).text == assistant.ask([picture()], QUESTION, Sampling(4)).text
    )
    processor = AutoProcessor.from_pretrained(folder)
    text, shown = {"type": "text", "text": QUESTION}, {"type": "image", "image": picture()}
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    for order in (1, -1):
        chat = [{"role": "user", "content": [text, shown][::order]}]
        assert processor.apply_chat_template(chat, tokenize=True)[0].tolist() == expected
        body = {"model": "m", "messages": [{"role": "user", "content": [text, url][::order]}]}
        request = parse(body, ChatBody, Limits())
        assert assistant.encode_messages(request.messages).input_ids == expected


@pytest.mark.skipif(bool(library.missing()), reason=f"no native library: {library.missing()}")
def test_what_the_native_engine_does_not_support_is_refused_by_name(model_folder, tmp_path: Path) -> None:
    narrow = tiny.save_nano_like(tmp_path / "narrow", decoder_changes={"num_attention_heads": 8})
    with pytest.raises(ConfigError, match="heads whose width is a multiple of 8, and this model's are 4 wide"):
        mobillama_v.load(str(narrow), device="cpu", engine="native")
    assert "numpy" in mobillama_v.load(str(narrow), device="cpu").engine.title
    with pytest.raises(ConfigError, match="it runs on a CPU and the device is meta"):
        mobillama_v.load(str(model_folder(HYBRID, "linear", "all")), device="meta", engine="native")
