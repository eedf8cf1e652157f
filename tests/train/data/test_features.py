"""The store of tower features: right values, never another picture's, whole after kills and full disks."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobillama_v.errors import ConfigError, DataError, ImageError, PromptError
from mobillama_v.images import load_image
from mobillama_v.train.data.collate import Collator
from mobillama_v.train.data.dataset import TrainingSet, load_samples
from mobillama_v.train.data.encoding import Encoding
from mobillama_v.train.data.features import FeatureStore, compute, fingerprint
from mobillama_v.train.recipe import DataFile

ROW = np.arange(6, dtype=np.float16).reshape(1, 2, 3)
# Adds rows until it is killed, or its files may grow no more; row i of a shard holds the values i.
ADDING = """
import resource, sys
import numpy as np
from pathlib import Path
from mobillama_v.errors import DataError
from mobillama_v.train.data.features import FeatureStore
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
store = FeatureStore(Path(sys.argv[1]), "f" * 64, (2, 3))
with store.shard() as shard:
    for i in range(1 << 30):
        try:
            shard.add([i.to_bytes(16, "little")], np.full((1, 2, 3), i % 2048))
        except DataError as error:
            sys.exit(f"{i} {error}")
"""


def names(corpus: Path) -> list[str]:
    return [path.name for path in sorted((corpus / "images").iterdir())]


def towers_output(model, paths: list[Path]) -> np.ndarray:
    size = model.config.spec.image.size
    pixels = model.config.spec.image.batch([load_image(path, target=size) for path in paths])
    with torch.no_grad():
        return model.vision_tower(torch.from_numpy(pixels)).numpy()


@pytest.fixture
def calls(tiny_model):
    """How many pictures each forward pass of the tower had."""
    found: list[int] = []
    handle = tiny_model.vision_tower.register_forward_pre_hook(lambda module, args: found.append(len(args[0])))
    yield found
    handle.remove()


def test_the_towers_output_is_stored_and_more_pictures_only_add_rows(tiny_model, corpus, tmp_path, calls) -> None:
    paths, root = names(corpus), corpus / "images"
    compute(tiny_model, paths[:10], root, tmp_path, batch_size=4)
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*")}
    features = compute(tiny_model, paths, root, tmp_path, batch_size=5, workers=2)
    assert calls == [4, 4, 2, 5, 5, 4]
    assert before and all(path.read_bytes() == content for path, content in before.items())
    found = features.read(paths)
    assert found.dtype == np.float16 and features.shape == found.shape[1:]
    expected = towers_output(tiny_model, [root / path for path in paths])
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)  # half precision: 11 bits
    calls.clear()
    compute(tiny_model, paths, root, tmp_path)
    assert calls == []


def test_another_root_and_changed_files_have_their_own_features(tiny_model, tmp_path, calls) -> None:
    for root, color in (("a", "red"), ("b", "blue"), ("c", "red")):
        (tmp_path / root).mkdir()
        Image.new("RGB", (32, 32), color).save(tmp_path / root / "0.bmp")

    def features(root: str) -> np.ndarray:
        return compute(tiny_model, ["0.bmp"], tmp_path / root, tmp_path / "f").read(["0.bmp"])

    red, blue = (towers_output(tiny_model, [tmp_path / root / "0.bmp"]) for root in "ab")
    assert not np.allclose(red, blue, atol=2e-2)
    for root, expected in (("a", red), ("b", blue), ("c", red)):
        np.testing.assert_allclose(features(root), expected, rtol=2e-3, atol=2e-3)
    assert calls[2:] == [1, 1], "c has the content of a: there is nothing to compute"
    # Changed without a trace in name, size and modification time.
    changed, times = tmp_path / "a" / "0.bmp", (tmp_path / "a" / "0.bmp").stat()
    shutil.copyfile(tmp_path / "b" / "0.bmp", changed)
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (changed.stat().st_size, changed.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    np.testing.assert_allclose(features("a"), blue, rtol=2e-3, atol=2e-3)


def test_files_that_did_not_change_are_not_read_again(tiny_model, corpus, tmp_path, monkeypatch) -> None:
    from mobillama_v.train.data import picture_keys

    paths, root = names(corpus), corpus / "images"
    first = compute(tiny_model, paths, root, tmp_path)
    with open(tmp_path / "paths.jsonl", "a") as file:
        file.write('["cut o')  # as a kill leaves it
    monkeypatch.setattr(picture_keys, "content_of", lambda path: pytest.fail(f"{path} is read"))
    assert compute(tiny_model, paths, root, tmp_path).keys == first.keys


def test_a_tower_transform_or_precision_has_its_own_rows(tiny_model, corpus, tmp_path, calls) -> None:
    paths, root, transform = names(corpus)[:3], corpus / "images", tiny_model.config.spec.image
    marks = [fingerprint(tiny_model.vision_tower, transform) for _ in range(2)]
    marks.append(fingerprint(tiny_model.vision_tower, dataclasses.replace(transform, mode="crop")))
    marks.append(fingerprint(tiny_model.vision_tower, transform, "bf16"))
    before = compute(tiny_model, paths, root, tmp_path).read(paths)
    with torch.no_grad():
        for parameter in tiny_model.vision_tower.parameters():
            parameter += 0.1
    marks.append(fingerprint(tiny_model.vision_tower, transform))
    assert len(set(marks)) == len(marks) - 1
    after = compute(tiny_model, paths, root, tmp_path).read(paths)
    assert calls == [3, 3] and not np.array_equal(before, after)


def test_bf16_is_the_arithmetic_of_a_training_in_bf16(tiny_model, corpus, tmp_path) -> None:
    paths, root = names(corpus)[:2], corpus / "images"
    whole = compute(tiny_model, paths, root, tmp_path).read(paths).astype(np.float32)
    half = compute(tiny_model, paths, root, tmp_path, precision="bf16").read(paths).astype(np.float32)
    assert not np.array_equal(whole, half)
    np.testing.assert_allclose(whole, half, atol=0.1 * np.abs(whole).max())


def test_a_missing_damaged_or_changing_image_is_named_and_the_others_kept(tiny_model, corpus, tmp_path, calls) -> None:
    root = tmp_path / "images"
    shutil.copytree(corpus / "images", root)
    paths = names(corpus)
    with pytest.raises(ImageError, match=r"none\.png cannot be read \(No such file"):
        compute(tiny_model, ["none.png"], root, tmp_path / "f")
    (root / paths[6]).write_bytes(b"no picture")
    for workers in (0, 1):
        with pytest.raises(ImageError, match=rf"{paths[6]}"):
            compute(tiny_model, paths, root, tmp_path / "f", batch_size=2, workers=workers)
    assert calls == [2, 2, 2] and len(FeatureStore.of(tiny_model, tmp_path / "f")) == 6
    store = FeatureStore.of(tiny_model, tmp_path / "f")
    store.pictures.of = lambda found, **_: [bytes(16) for _ in found]  # the key of another content
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DataError, match="changes while it is read"):
        patch.setattr(FeatureStore, "of", lambda *_, **__: store)
        compute(tiny_model, paths[:1], root, tmp_path / "f")


def test_what_half_precision_cannot_hold_is_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, "a" * 64, (1, 2))
    with store.shard() as shard, pytest.raises(DataError, match="not finite in half precision"):
        shard.add([bytes(16)], np.array([[[1.0, 1e6]]]))
    store.refresh()
    assert len(store) == 0


def test_a_shard_that_was_cut_off_is_named(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, "a" * 64, (2, 3))
    with store.shard() as shard:
        shard.add([bytes(16)], ROW)
    store.refresh()
    np.testing.assert_array_equal(store.read([bytes(16)]), ROW)
    (rows,) = tmp_path.glob("*/*.rows")
    os.truncate(rows, 5)
    with pytest.raises(DataError, match=r"00000\.rows are cut off; remove that file"):
        store.read([bytes(16)])
    assert len(FeatureStore(tmp_path, "a" * 64, (2, 3))) == 0


def test_space_is_asked_for_before_anything_is_computed(tiny_model, corpus, tmp_path, monkeypatch, calls) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ConfigError, match=r"new/f/\w+' takes 0 MB or more and .* has 0 MB left"):
        compute(tiny_model, names(corpus), corpus / "images", tmp_path / "new" / "f")
    assert calls == []


def stored(folder: Path) -> int:
    """How many rows are there; each has the right values."""
    store = FeatureStore(folder, "f" * 64, (2, 3))
    keys = list(store._rows)
    if keys:
        expected = np.array([int.from_bytes(key, "little") % 2048 for key in keys])
        assert (store.read(keys) == expected[:, None, None]).all()
    return len(keys)


def test_a_full_disk_is_a_sentence_and_costs_nothing_written(tmp_path: Path) -> None:
    found = subprocess.run([sys.executable, "-c", ADDING, tmp_path, "1000"], capture_output=True, text=True)
    done, _, sentence = found.stderr.partition(" ")
    assert found.returncode == 1 and sentence.startswith("features cannot be written to"), found.stderr
    assert "make room" in sentence and stored(tmp_path) == int(done) == 1000 // 16
    (rows,) = tmp_path.glob("*/*.rows")
    assert rows.stat().st_size == stored(tmp_path) * 12
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be"), FeatureStore(tmp_path / "file", "f", (2, 3)).shard():
        pass


@pytest.mark.slow
def test_kills_at_random_moments_leave_whole_rows(tmp_path: Path) -> None:
    chance, rows = np.random.default_rng(), 0
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", ADDING, tmp_path])
        while stored(tmp_path) == rows:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        found = stored(tmp_path)
        assert found >= rows
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()


def test_stored_features_give_the_loss_of_pixels(tiny_model, start_folder: Path, corpus: Path, tmp_path) -> None:
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
    stored_features = compute(tiny_model, samples.image_paths(), root, tmp_path)
    losses = []
    for features in (None, stored_features):
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
