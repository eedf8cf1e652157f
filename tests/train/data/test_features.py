"""The cache of tower features: right values, refused when foreign, continued after a kill."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from mobillama_v.errors import DataError, ImageError, PromptError
from mobillama_v.images import load_image
from mobillama_v.train.data.collate import Collator
from mobillama_v.train.data.dataset import TrainingSet, load_samples
from mobillama_v.train.data.encoding import Encoding
from mobillama_v.train.data.features import FeatureCache, compute, fingerprint
from mobillama_v.train.recipe import DataFile


def names(corpus: Path) -> list[str]:
    return [path.name for path in sorted((corpus / "images").iterdir())]


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    cache = FeatureCache.create(tmp_path / "f", ["a", "b", "a"], (2, 3), "print")
    assert cache.missing() == ["a", "b"]
    cache.write(1, np.full((2, 3), 1.5))
    cache.write(0, np.full((2, 3), -2.0))
    cache.flush()
    read = FeatureCache.open(tmp_path / "f", fingerprint="print")
    assert read.shape == (2, 3)
    assert read.read(["b", "a"]).tolist() == np.stack([np.full((2, 3), 1.5), np.full((2, 3), -2.0)]).tolist()
    assert read.read(["a"]).dtype == np.float16
    with pytest.raises(DataError, match="lack 1 images of the data, the first is 'c'"):
        read.require(["a", "c"])


def test_incomplete_foreign_and_damaged_caches_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    with pytest.raises(DataError, match="not a folder of features"):
        FeatureCache.open(folder)
    cache = FeatureCache.create(folder, ["a", "b"], (2, 3), "print")
    cache.write(0, np.zeros((2, 3)))
    with pytest.raises(DataError, match="lack 1 of 2 images"):
        FeatureCache.open(folder)
    again = FeatureCache.create(folder, ["a", "b"], (2, 3), "print")
    assert again.missing() == ["b"]
    again.write(1, np.zeros((2, 3)))
    with pytest.raises(DataError, match="other tower weights or image settings"):
        FeatureCache.open(folder, fingerprint="other")
    for keys, shape, mark in ((["a"], (2, 3), "print"), (["a", "b"], (2, 4), "print"), (["a", "b"], (2, 3), "other")):
        with pytest.raises(DataError, match="features of other images"):
            FeatureCache.create(folder, keys, shape, mark)
    (folder / "meta.json").write_text("{")
    with pytest.raises(DataError, match="not a folder of features"):
        FeatureCache.open(folder)


def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    cache = FeatureCache.create(tmp_path, ["a"], (1, 2), "print")
    with pytest.raises(DataError, match="not finite in half precision"):
        cache.write(0, np.array([[1.0, 1e6]]))
    assert cache.missing() == ["a"]


def test_fingerprint_depends_on_weights_and_transform(tiny_model) -> None:
    transform = tiny_model.config.spec.image
    before = fingerprint(tiny_model.vision_tower, transform)
    assert before == fingerprint(tiny_model.vision_tower, transform)
    assert before != fingerprint(tiny_model.vision_tower, dataclasses.replace(transform, mode="crop"))
    with torch.no_grad():
        next(tiny_model.vision_tower.parameters()).flatten()[0] += 1e-3
    assert before != fingerprint(tiny_model.vision_tower, transform)


def test_compute_gives_the_towers_output_and_goes_on_where_it_was_stopped(tiny_model, corpus: Path, tmp_path) -> None:
    paths, root, transform = names(corpus), corpus / "images", tiny_model.config.spec.image
    calls: list[int] = []

    def stop_at_the_third(module, args) -> None:
        calls.append(len(args[0]))
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = tiny_model.vision_tower.register_forward_pre_hook(stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        compute(tiny_model, paths, root, tmp_path, batch_size=5)
    assert not FeatureCache.is_complete(tmp_path)
    calls.append(0)  # the hook only counts from here on
    compute(tiny_model, paths, root, tmp_path, batch_size=5)
    assert calls[4:] == [5, 5, 4]  # 24 images, ten of which were done
    handle.remove()
    assert FeatureCache.is_complete(tmp_path)
    cache = FeatureCache.open(tmp_path, fingerprint=fingerprint(tiny_model.vision_tower, transform))
    pixels = torch.from_numpy(transform.batch([load_image(root / path, target=transform.size) for path in paths]))
    with torch.no_grad():
        expected = tiny_model.vision_tower(pixels).numpy()
    np.testing.assert_allclose(cache.read(paths), expected, rtol=2e-3, atol=2e-3)  # half precision: 11 bits


def test_compute_names_an_image_that_is_missing(tiny_model, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png"):
        compute(tiny_model, ["none.png"], tmp_path, tmp_path / "f")


def test_cached_features_give_the_loss_of_pixels(tiny_model, start_folder: Path, corpus: Path, tmp_path) -> None:
    root, transform = corpus / "images", tiny_model.config.spec.image
    files = [DataFile(str(corpus / "pictures.json")), DataFile(str(corpus / "text.jsonl"))]
    spec = tiny_model.config.spec.decoder
    encoding = Encoding(
        tokenizer=start_folder / "tokenizer.json",
        bos_id=spec.bos_token_id,
        eos_id=spec.eos_token_id,
        pad_id=spec.pad_token_id,
        template="plain",
        tokens_per_image=tiny_model.tokens_per_image,
        max_length=128,
    )
    samples, _ = load_samples(files, encoding, images=lambda paths: {})
    cache = compute(tiny_model, samples.image_paths(), root, tmp_path)
    losses = []
    for features in (None, cache):
        items = TrainingSet(samples, image_root=root, transform=transform, features=features)
        batch = Collator(pad_id=0)([items[i] for i in range(0, len(items), 4)])
        assert ("image_features" in batch) == (features is not None)
        with torch.no_grad():
            losses.append(float(tiny_model(**batch).loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    with torch.no_grad():
        batch["image_features"] = torch.zeros_like(batch["image_features"])
        assert float(tiny_model(**batch).loss) != pytest.approx(losses[1], rel=1e-4)


def test_features_without_slots_or_with_pixels_are_refused(tiny_model) -> None:
    ids, features = torch.tensor([[1, 5, 6]]), torch.zeros(1, 16, 24)
    with pytest.raises(PromptError, match="go together"):
        tiny_model(input_ids=ids, image_features=features)
    with pytest.raises(ValueError, match="at most one"):
        tiny_model(input_ids=ids, image_features=features, pixel_values=torch.zeros(1, 3, 32, 32))
