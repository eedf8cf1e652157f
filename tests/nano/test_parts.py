"""What makes the embedded model: stem, class names, photograph conversations, and its measure."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobillama_v.errors import CheckpointError
from mobillama_v.images import ImageTransform
from mobillama_v.model.vision.lite0 import Lite0
from mobillama_v.model.vision.parts_torch import to_torch
from nano import captions, classes, evaluate, photos, stem, stemcache
from nano.scenes import Scene, Thing


def shares(**given: float) -> np.ndarray:
    """Class probabilities: names to shares, the rest spread evenly."""
    rest = (1 - sum(given.values())) / 1000
    row = np.full(1000, rest, dtype=np.float32)
    for name, share in given.items():
        row[classes.all_names().index(name.replace("_", " "))] += share
    return row


# --- stem -----------------------------------------------------------------------------------------------------------


def test_the_folded_stem_is_timms_model() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.create_model("tf_efficientnet_lite0").eval()
    for module in theirs.modules():  # statistics and gains that a wrong fold would betray
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
    ours = stem.fold(list(theirs.state_dict().values())).eval()
    pixels = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        cells, _, logits = ours(pixels)
        torch.testing.assert_close(logits, theirs(pixels), rtol=1e-3, atol=1e-4)
    assert cells.shape == (2, 49, 40 * 16 + 112 * 4 + 320)


def test_other_tensors_are_no_stem() -> None:
    with pytest.raises(CheckpointError):
        stem.fold([torch.zeros(3)] * 296)
    with pytest.raises(CheckpointError, match="not EfficientNet-Lite0"):
        stem.fold([])


def test_the_stem_cache_goes_on_after_a_kill(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, transform = to_torch(Lite0()).eval(), ImageTransform(224, "squash")
    names = [f"{i}.png" for i in range(18)]
    for i, name in enumerate(names):
        Image.new("RGB", (30, 20), (i * 9, 40, 200)).save(tmp_path / name)
    whole = stemcache.compute(model, transform, tmp_path, names, tmp_path / "whole")
    with torch.no_grad():
        cells, _, _ = model(torch.from_numpy(transform.batch([Image.open(tmp_path / names[17])])))
    expected = cells[0].numpy()
    np.testing.assert_allclose(whole.cells[17], expected, atol=2e-3 * np.abs(expected).max())
    stemcache.compute(model, transform, tmp_path, names, tmp_path / "again")
    (tmp_path / "again" / "done").write_text("16")
    cells = np.load(tmp_path / "again" / "cells.npy", mmap_mode="r+")
    cells[3], cells[17] = 7, 7
    again = stemcache.compute(model, transform, tmp_path, names, tmp_path / "again")
    np.testing.assert_array_equal(again.cells[17], whole.cells[17])
    assert (again.cells[3] == 7).all()  # what was done is not done again


# --- classes and photographs ----------------------------------------------------------------------------------------


def test_class_names_and_kinds() -> None:
    assert len(classes.all_names()) == 1000 and all(classes.all_names())
    assert (classes.name(207), classes.kind(207)) == ("golden retriever", "dog")
    assert (classes.with_article(404), classes.kind(404)) == ("an airplane", "aircraft")
    assert classes.with_article(490) == "chain mail" and classes.kind(490) is None
    assert {"dog", "cat", "bird"} <= classes.ANIMALS and not {"car", "fruit"} & classes.ANIMALS


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (shares(golden_retriever=0.8), "A photo of a golden retriever, a kind of dog."),
        (shares(chain_mail=0.8), "A photo of chain mail."),
        (shares(banana=0.3, lemon=0.2), "A photo of a fruit, perhaps a banana or a lemon."),
        (shares(banana=0.3, chain_mail=0.2), "A photo, perhaps of a banana or chain mail."),
        (shares(beagle=0.12, pug=0.12, boxer_dog=0.12, collie=0.12, whippet=0.12), "A photo of a dog."),
        (shares(banana=0.05), "A photo of something that I cannot name."),
    ],
)
def test_descriptions_say_as_much_as_is_known(row: np.ndarray, expected: str) -> None:
    assert photos.description(row) == expected


def test_conversations_follow_from_the_classes() -> None:
    for seed in range(40):
        turns = photos.conversation(shares(tabby_cat=0.9), "white", random.Random(seed))
        for question, answer in turns:
            asked = question.lower().split("\n")[0]
            if " cat" in asked and "is there" in asked:
                assert answer == "yes" or "tabby" not in asked, (question, answer)
            if "photo or" in asked or "or a photo" in asked:
                assert answer == "photo"
            if "is this an animal" in asked:
                assert answer == "yes"
            if "main color" in asked:
                assert answer == "white"
        assert any(answer.startswith("A photo of a tabby cat") for _, answer in turns)


def test_pictures_are_told_in_the_words_of_their_features() -> None:
    heart = Thing("shape", "heart", "red", "large", (10, 10, 90, 90))
    sign = Thing("word", "text", "black", "large", (20, 150, 200, 210), "NO5")
    told = captions.structured_words(Scene((sign, heart), "white", seed=1))
    assert told == "drawing white. large red heart top left. NO5 black text bottom."
    row = shares(tabby_cat=0.4, tench=0.3, ear_of_corn=0.2)
    assert photos.structured_words(row, "gray") == "photo perhaps tabby cat. tench. gray."
    row = shares(tabby_cat=0.6, tench=0.3)
    assert photos.structured_words(row, "gray") == "photo sure tabby cat. tench. cat. gray."
    assert photos.structured_words(shares(tabby_cat=0.1), "gray").startswith("photo hardly tabby cat. ")


def test_imagined_photographs_are_told_before_the_first_question() -> None:
    for index in range(0, 1000, 97):
        record = photos.imagined(index, random.Random(index))
        first = record["conversations"][0]["value"]
        words, question = first.split("\n")[:2]
        assert classes.name(index) in words and words.startswith("photo ") and question
        assert "image" not in record and "<image>" not in first


def test_articles_follow_the_sound() -> None:
    assert [captions.article(word) for word in ("apple", "unicycle", "umbrella", "hourglass", "hat")] == [
        "an", "a", "an", "an", "a",
    ]  # fmt: skip


def test_permuted_classes_keep_their_confidence_and_change_their_names() -> None:
    row = shares(tabby_cat=0.9)
    other = photos.permuted(row, np.random.default_rng(3))
    np.testing.assert_array_equal(np.sort(row), np.sort(other))
    assert row.argmax() != other.argmax()


def test_photographs_are_split_and_cut(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(10):
        Image.effect_noise((90, 60), 60).convert("RGB").save(folder / f"p{i}.jpg")
    train, held_out = photos.split(folder)
    assert [path.name for path in held_out] == ["p4.jpg", "p9.jpg"] and len(train) == 8
    written = photos.write_crops(train[:2], tmp_path / "data", seed=1)
    assert len(written) == 2 * (photos.CROPS + 1) == len(set(written))
    with Image.open(tmp_path / "data" / written[3]) as crop:
        assert crop.size == (224, 224)
    rows = np.stack([shares(tabby_cat=0.9)] * len(written))
    colors = dict.fromkeys(written, "green")
    told, captions, swapped = photos.records(colors, rows, seed=1)
    assert len(told) == len(captions) == 2 * len(written) and set(swapped) == {f"{name}#permuted" for name in written}
    assert captions[0]["conversations"][1]["value"] == "A photo of a tabby cat, a kind of cat."
    assert captions[1]["conversations"][1]["value"] == photos.description(swapped[f"{written[0]}#permuted"])
    told, named = photos.namings(colors, times=1, seed=1)
    assert [record["image"] for record in told] == list(named) and len(set(named)) == 1000
    for index in (0, 281, 999):
        row = named[told[index]["image"]]
        assert row[index] >= 0.1 and abs(row.sum() - 1) < 1e-5
        assert photos.description(row) in [turn["value"] for turn in told[index]["conversations"][1::2]]


def test_main_color() -> None:
    assert photos.main_color(Image.new("RGB", (8, 8), (20, 30, 240))) == "blue"
    assert photos.main_color(Image.effect_noise((64, 64), 300).convert("RGB")) in (None, "gray", "black", "white")


# --- measure --------------------------------------------------------------------------------------------------------


def test_answers_are_judged_by_family() -> None:
    class Reply:
        def __init__(self, text: str) -> None:
            self.text = text

    class Assistant:
        def encode_image(self, image: Path) -> Path:
            return image

        def ask_batch(self, prompts, sampling):
            return [Reply({"a": "Red.", "b": "two"}[text]) for (_, text) in prompts]

    questions = [
        {"image": "1.png", "text": "a", "answer": "red", "family": "color"},
        {"image": "1.png", "text": "b", "answer": "3", "family": "count"},
    ]
    tally = evaluate.judge(Assistant(), questions, Path("."), lambda text: None)  # type: ignore[arg-type]
    assert (tally.accuracy(["color"]), tally.accuracy(["count"]), tally.accuracy()) == (1, 0, 0.5)
    assert tally.wrong == [{**questions[1], "given": "two"}]


def test_the_engine_that_is_asked_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from typer.testing import CliRunner

    from mobillama_v import loading
    from nano.__main__ import app

    asked: dict[str, object] = {}

    def load(name: str, **options: object) -> SimpleNamespace:
        asked.update(options, name=name)
        return SimpleNamespace(engine=SimpleNamespace(title="native 4 bit"))

    tally = evaluate.Tally(right={"color": 1}, asked={"color": 4})
    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(evaluate, "held_out", lambda *_, **__: tally)
    result = CliRunner().invoke(app, ["evaluate", "--engine", "native", "--bits", "4", "--no-easy-vqa"])
    assert result.exit_code == 0, result.output
    assert asked == {"name": "nano", "engine": "native", "bits": 4, "ocr": False}
    assert "native 4 bit" in result.stderr and "overall" in result.stdout and "25.0 % of 4" in result.stdout


def test_questions_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"text": "é"}) + "\n")
    assert evaluate.read_questions(tmp_path / "q.jsonl") == [{"text": "é"}]
