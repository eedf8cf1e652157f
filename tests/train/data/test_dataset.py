"""Records to samples to batches: labels, shortening, padding, order."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobillama_v.chat_templates import TEMPLATES
from mobillama_v.errors import DataError
from mobillama_v.images import ImageTransform
from mobillama_v.prompt import IGNORE_INDEX, Message, Slot, assistant, user
from mobillama_v.tokenization import TextTokenizer
from mobillama_v.train.data.collate import Collator
from mobillama_v.train.data.dataset import BadRecordsError, Samples, TrainingSet, load_samples
from mobillama_v.train.data.encoding import Encoding
from mobillama_v.train.data.records import Record
from mobillama_v.train.data.sampler import TrainingSampler
from mobillama_v.train.recipe import DataFile

SLOTS = 5


@pytest.fixture
def tokenizer(start_folder: Path) -> TextTokenizer:
    return TextTokenizer.from_file(start_folder / "tokenizer.json", bos_id=1, eos_id=2, pad_id=0)


def record(*texts: str, images: int = 0, name: str = "r") -> Record:
    turns = [user(text, images=images * (i == 0)) if i % 2 == 0 else assistant(text) for i, text in enumerate(texts)]
    return Record(name, tuple(f"{i}.png" for i in range(images)), tuple(turns), "data.json")


@pytest.fixture
def make_samples(start_folder: Path, tmp_path: Path):
    """Samples of records, by way of a file."""

    def make(*records: Record, max_length: int = 1000, keep: bool = False) -> Samples:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(as_json(each)) + "\n" for each in records))
        return load_samples(
            [DataFile(str(path))], encoding(start_folder, max_length), images=lambda paths: {}, keep_duplicates=keep
        )[0]

    return make


def encoding(folder: Path, max_length: int = 1000) -> Encoding:
    return Encoding(folder / "tokenizer.json", 1, 2, 0, "v1", SLOTS, max_length)


def as_json(record: Record) -> dict[str, Any]:
    def text(message: Message) -> str:
        return "".join("<image>" if part is Slot.IMAGE else part for part in message.content)

    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [
        {"from": names[message.role], "value": text(message), "weight": int(message.learned)}
        for message in record.messages
    ]
    return {"id": record.id, "image": list(record.images), "conversations": turns}


def dataset(samples, root: Path) -> TrainingSet:
    return TrainingSet(samples, image_root=root, transform=ImageTransform(size=16))


def test_samples_are_what_the_prompt_encoder_makes(make_samples, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(tmp_path / "0.png")
    records = [record("What?", "Red.", "Sure?", "Yes.", images=1), record("Hi", "Ho")]
    items = dataset(make_samples(*records), tmp_path)
    assert len(items) == 2
    for item, source in zip((items[0], items[1]), records, strict=True):
        expected = TEMPLATES["v1"].encode(list(source.messages), tokenizer, tokens_per_image=SLOTS)
        assert item["input_ids"].tolist() == expected.input_ids
        assert item["labels"].tolist() == expected.labels
        assert item["image_mask"].tolist() == expected.image_mask
    assert items[0]["pixel_values"].shape == (1, 3, 16, 16)
    assert "pixel_values" not in items[1]
    supervised = items[0]["labels"][items[0]["labels"] != IGNORE_INDEX].tolist()
    assert tokenizer.decode(supervised) == " Red. Yes."


def test_long_samples_lose_their_last_turns_and_the_pictures_of_these(make_samples, tokenizer: TextTokenizer) -> None:
    turns = (user("A?", images=1), assistant("a"), user("B?", images=1), assistant("b" * 50))
    both = Record("r", ("0.png", "1.png"), turns, "data.json")
    whole = make_samples(both)
    assert (whole.shortened, whole.images) == (0, [("0.png", "1.png")])
    cut = make_samples(both, max_length=int(whole.lengths[0]) - 1)
    assert (cut.shortened, cut.images) == (1, [("0.png",)])
    expected = TEMPLATES["v1"].encode(list(turns[:2]), tokenizer, tokens_per_image=SLOTS)
    assert cut.ids.tolist() == expected.input_ids


def test_samples_without_room_for_an_answer_are_refused_with_their_number(make_samples) -> None:
    records = [record("A", "b"), record("A" * 900, "b", name="big"), record("A" * 901, "b")]
    with pytest.raises(BadRecordsError, match=r"2 of 3 records .*record 'big' has no answer within max_length=600 "):
        make_samples(*records, max_length=600)


def test_a_first_answer_that_is_too_long_is_cut(make_samples, tokenizer: TextTokenizer) -> None:
    cut = make_samples(record("A", "b" * 900, images=1), max_length=600)
    whole = TEMPLATES["v1"].encode([user("A", images=1), assistant("b" * 900)], tokenizer, tokens_per_image=SLOTS)
    assert (cut.shortened, cut.ids.tolist()) == (1, whole.input_ids[:600])
    assert cut.supervised == sum(label != IGNORE_INDEX for label in whole.labels[:600])


def test_answers_of_weight_0_are_not_supervised(make_samples) -> None:
    turns = (user("A?"), Message("assistant", ("a",), learned=False), user("B?"), assistant("b"))
    whole = make_samples(Record("r", (), turns, "data.json"))
    alone = make_samples(Record("r", (), turns[2:], "data.json"))
    assert whole.supervised == alone.supervised > 0
    with pytest.raises(BadRecordsError, match="has no answer that is learned"):
        make_samples(Record("r", (), turns[:2], "data.json"))


def test_repeat_and_emptiness(corpus: Path, start_folder: Path, tmp_path: Path) -> None:
    files = [DataFile(str(corpus / "text.jsonl"), repeat=3), DataFile(str(corpus / "pictures.json"))]
    samples, problems = load_samples(files, encoding(start_folder), images=lambda paths: {})
    assert (len(samples), problems) == (3 * 8 + 24, [])
    assert samples.records[:9] == [(str(corpus / "text.jsonl"), str(i % 8)) for i in range(9)]
    assert samples.records[-1] == (str(corpus / "pictures.json"), "p23")
    spans = [samples.ids[a:b].tolist() for a, b in itertools.pairwise(samples.offsets)]
    assert spans[:8] == spans[8:16] == spans[16:24]
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(DataError, match="no record"):
        load_samples([DataFile(str(tmp_path / "empty.json"))], encoding(start_folder), images=lambda paths: {})


def test_digest_tells_data_apart(make_samples) -> None:
    one, same, other = (make_samples(record("A", answer)) for answer in ("b", "b", "c"))
    assert one.digest() == same.digest() != other.digest()


def test_batches_are_padded_on_the_right(make_samples, tmp_path: Path) -> None:
    for i in range(2):
        Image.new("RGB", (9, 9), "red").save(tmp_path / f"{i}.png")
    items = dataset(make_samples(record("A", "b"), record("A", "bcd", images=2)), tmp_path)
    batch = Collator(pad_id=0)([items[0], items[1]])
    short, long = len(items[0]["input_ids"]), len(items[1]["input_ids"])
    assert short < long
    assert batch["input_ids"].shape == batch["labels"].shape == batch["image_mask"].shape == (2, long)
    assert batch["attention_mask"].sum(-1).tolist() == [short, long]
    assert batch["input_ids"][0, short:].eq(0).all()
    assert batch["labels"][0, short:].eq(IGNORE_INDEX).all()
    assert not batch["image_mask"][0].any()
    assert int(batch["image_mask"][1].sum()) == 2 * SLOTS
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert batch["pixel_values"].dtype == torch.float32
    assert set(Collator(pad_id=0)([items[0]])) == {"input_ids", "labels", "attention_mask"}


def test_order_sees_every_sample_once_a_pass_and_depends_on_the_seed() -> None:
    order = list(TrainingSampler(10, total=25, batch_size=4, seed=1))
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    assert len(set(order[20:])) == 5
    assert order == list(TrainingSampler(10, total=25, batch_size=4, seed=1))
    assert order != list(TrainingSampler(10, total=25, batch_size=4, seed=2))


def test_batches_of_like_samples_have_images_or_none(make_samples) -> None:
    rng = np.random.default_rng(0)
    records = [record("A", "b" * int(rng.integers(1, 60)), images=int(i % 3 > 0)) for i in range(600)]
    samples = make_samples(*[dataclasses.replace(each, id=str(i)) for i, each in enumerate(records)], keep=True)
    order = np.array(list(TrainingSampler(600, total=600, batch_size=6, seed=0, lengths=samples.sort_keys)))
    assert sorted(order.tolist()) == list(range(600))
    pictured = np.array([bool(paths) for paths in samples.images])[order].reshape(-1, 6).sum(1)
    assert np.count_nonzero((pictured > 0) & (pictured < 6)) <= 2  # one in each run of 50 batches
    lengths = samples.lengths[order].reshape(-1, 6)
    assert (lengths.max(1) - lengths.min(1)).mean() < 10


def test_grouped_order_has_little_padding_and_still_mixes() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 4000)
    grouped = np.array(list(TrainingSampler(4000, total=8000, batch_size=8, seed=0, lengths=lengths)))
    assert np.array_equal(np.bincount(grouped), np.full(4000, 2))
    batches = lengths[grouped].reshape(-1, 8)
    padding = (batches.max(1, keepdims=True) - batches).mean()
    assert padding < 0.05 * batches.mean()
    means = batches.mean(1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # no long runs of long batches
