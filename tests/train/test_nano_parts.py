"""What makes the embedded model: stem, class names, photograph conversations, tokenizer, tower targets, its measure."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mobillama_v import hybrid, hybrid_words
from mobillama_v.errors import CheckpointError
from mobillama_v.images import ImageTransform
from mobillama_v.tokenization import TextTokenizer
from mobillama_v.train.nano import captions, classes, evaluate, photos, recognise, stem, stemcache, tower, vocabulary
from mobillama_v.train.nano.figures import SHAPES
from mobillama_v.train.nano.grid import CELLS, LABEL_NAMES
from mobillama_v.train.nano.scenes import COLOUR_NAMES, Scene, Thing, sample_scene


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
        maps, logits = ours(pixels)
        torch.testing.assert_close(logits, theirs(pixels), rtol=1e-3, atol=1e-4)
    assert [tuple(each.shape[1:]) for each in maps] == [(40, 28, 28), (112, 14, 14), (320, 7, 7)]


def test_other_tensors_are_no_stem() -> None:
    with pytest.raises(CheckpointError):
        stem.fold([torch.zeros(3)] * 296)
    with pytest.raises(CheckpointError, match="not EfficientNet-Lite0"):
        stem.fold([])


def test_the_stem_cache_goes_on_after_a_kill(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, transform = hybrid.Lite0().eval(), ImageTransform(224, "squash")
    names = [f"{i}.png" for i in range(18)]
    for i, name in enumerate(names):
        Image.new("RGB", (30, 20), (i * 9, 40, 200)).save(tmp_path / name)
    whole = stemcache.compute(model, transform, tmp_path, names, tmp_path / "whole")
    with torch.no_grad():
        maps, _ = model(torch.from_numpy(transform.batch([Image.open(tmp_path / names[17])])))
    expected = hybrid.gather_cells(maps)[0].numpy()
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
    told = captions.account(Scene((sign, heart), "white", seed=1))
    assert told == "drawing white. large red heart top left. NO5 black text bottom."
    row = shares(tabby_cat=0.4, tench=0.3, ear_of_corn=0.2)
    assert photos.account(row, "gray") == "photo perhaps tabby cat. tench. gray."
    row = shares(tabby_cat=0.6, tench=0.3)
    assert photos.account(row, "gray") == "photo sure tabby cat. tench. cat. gray."
    assert photos.account(shares(tabby_cat=0.1), "gray").startswith("photo hardly tabby cat. ")


def test_imagined_photographs_are_told_before_the_first_question() -> None:
    for index in range(0, 1000, 97):
        record = photos.imagined(index, random.Random(index))
        first = record["conversations"][0]["value"]
        account, question = first.split("\n")[:2]
        assert classes.name(index) in account and account.startswith("photo ") and question
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
    told, captions, swapped = photos.records(written, rows, tmp_path / "data", seed=1)
    assert len(told) == len(captions) == 2 * len(written) and set(swapped) == {f"{name}#permuted" for name in written}
    assert captions[0]["conversations"][1]["value"] == "A photo of a tabby cat, a kind of cat."
    assert captions[1]["conversations"][1]["value"] == photos.description(swapped[f"{written[0]}#permuted"])
    told, named = photos.namings(written, tmp_path / "data", times=1, seed=1)
    assert [record["image"] for record in told] == list(named) and len(set(named)) == 1000
    for index in (0, 281, 999):
        row = named[told[index]["image"]]
        assert row[index] >= 0.1 and abs(row.sum() - 1) < 1e-5
        assert photos.description(row) in [turn["value"] for turn in told[index]["conversations"][1::2]]


def test_main_colour() -> None:
    assert photos.main_colour(Image.new("RGB", (8, 8), (20, 30, 240))) == "blue"
    assert photos.main_colour(Image.effect_noise((64, 64), 300).convert("RGB")) in (None, "gray", "black", "white")


# --- tokenizer and tower --------------------------------------------------------------------------------------------


def test_signs_are_spelled_and_words_are_not(tmp_path: Path) -> None:
    texts = [" Describe the picture STOP 42 of a golden retriever", " USER: hi ASSISTANT: yes"] * 50
    tokenizer = vocabulary.train_tokenizer(texts, tmp_path / "tokenizer.json", vocab_size=400)

    def pieces(text: str) -> list[str]:
        return tokenizer.encode(text).tokens

    assert pieces(" STOP 42") == ["ĠS", "T", "O", "P", "Ġ4", "2"]
    assert pieces(" retriever ASSISTANT:") == ["Ġretriever", "ĠASSISTANT:"]
    ours = TextTokenizer.from_file(tmp_path / "tokenizer.json", bos_id=1, eos_id=2, pad_id=0)
    for text in (" STOP it, Köln 北京 </s> <image>\n🙂", "a  b"):
        assert ours.decode(ours.encode(text)) == text
    assert not {0, 1, 2} & set(ours.encode("<pad><s></s>"))


def test_cell_targets_keep_their_places() -> None:
    labels = np.zeros((1, CELLS, CELLS, len(LABEL_NAMES)), dtype=np.uint8)
    labels[0, 5, 8, 3] = 1  # cell (2, 4), its part (1, 0)
    arranged = tower.targets(labels)
    assert arranged.shape == (1, 49, 4, len(LABEL_NAMES) + 1)
    assert arranged.sum() == 1 and arranged[0, 2 * 7 + 4, 2, 3] == 1


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tower.Words:
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    names = ["thing", "photo", "background", "top", "bottom", "left", "right", "center", "text", "large"]
    names += ["drawing", "sure", "perhaps", "hardly", "a", "small", "middle", *classes.kinds()]
    names += [label.partition(":")[2] for label in LABEL_NAMES]
    vocabulary.train_tokenizer(
        [f" {name} {name}" for name in (*classes.all_names(), *names)] * 3, path, vocab_size=3000
    )
    tokenizer = TextTokenizer.from_file(path, bos_id=1, eos_id=2, pad_id=0)
    torch.manual_seed(0)
    return tower.Words(torch.randn(3000, hybrid.WIDTH) * 0.02, tokenizer)


def test_the_account_starts_from_words(words: tower.Words) -> None:
    account = hybrid_words.Account()
    tower.start_account(account, words)
    names = account.class_names
    expected = words.tokens(" golden retriever")
    torch.testing.assert_close(names.table[207, : len(expected)], expected)
    torch.testing.assert_close(expected.pow(2).mean(-1), torch.ones(len(expected)))
    assert (names.table[207, len(expected) :] == 0).all()
    dog = classes.kinds().index("dog")
    torch.testing.assert_close(names.kinds[dog, 0], words.word("dog"))
    assert names.kind_of[207, dog] == 1 and names.kind_of[207].sum() == 1 and names.kind_of[490].sum() == 0
    s, small_s = (recognise.LETTERS.index(letter) for letter in "Ss")
    torch.testing.assert_close(account.lines.first[s], words.tokens(" S")[0])
    torch.testing.assert_close(account.lines.later[s], words.tokens("S")[0])
    torch.testing.assert_close(account.lines.later[small_s], words.tokens(" s")[0])


def test_what_is_to_be_found() -> None:
    heart = Thing("shape", "heart", "red", "large", (10, 10, 90, 90))
    sign = Thing("word", "text", "black", "large", (20, 150, 200, 210), "No5")
    scenes = [Scene((), "blue", seed=2), Scene((sign, heart), "white", seed=1)]
    kinds = [2, COLOUR_NAMES.index("red"), SHAPES.index("heart")]
    assert recognise.shapes_of(scenes).rows.tolist() == [[1, 3 * 14 + 3, *kinds]]
    letters = recognise.letters_of(scenes)
    assert letters.rows[:, 0].tolist() == [1] * 3
    assert [recognise.LETTERS[i] for i in letters.rows[:, 2]] == ["N", "o", "5"]
    rows, columns = letters.rows[:, 1] // 28, letters.rows[:, 1] % 28
    assert ((rows > 9) & (rows < 13)).all() and (columns.diff() > 0).all()
    assert letters.of(torch.tensor([1]), 2)[:, 0].tolist() == [0] * 3 and not len(letters.of(torch.tensor([0]), 2))


def test_finding_can_be_learnt() -> None:
    torch.manual_seed(0)
    scenes = [sample_scene(random.Random(i), ("few", "word")[i % 2]) for i in range(8)]
    features = torch.randn(8, 49, hybrid.WIDTH)
    account = hybrid_words.Account()
    given = [account.colors.clone(), account.lines.first.clone(), account.places.rows.clone()]

    cells = np.random.default_rng(0).normal(size=(8, 49, hybrid.GATHERED)).astype(np.float16)

    def losses() -> list[float]:
        found = []
        for logits, wanted in (
            (account.things.logits(features), recognise.shapes_of(scenes)),
            (account.lines.logits(torch.from_numpy(cells).float(), features), recognise.letters_of(scenes)),
        ):
            found.append(float(recognise.finding_loss(logits.detach(), wanted.rows, wanted.kinds)))
        return found

    before = losses()
    recognise.learn_account(account, cells, features, scenes, epochs=80)
    after = losses()
    assert after[0] < 0.2 * before[0] and after[1] < 0.2 * before[1]
    for old, new in zip(given, (account.colors, account.lines.first, account.places.rows), strict=True):
        assert torch.equal(old, new)


def test_the_patch_part_says_what_the_probe_sees_in_words(words: tower.Words) -> None:
    torch.manual_seed(0)
    trunk, probe = hybrid.HybridTrunk(), tower.CellProbe()
    torch.nn.init.normal_(probe.norm.weight)
    torch.nn.init.normal_(probe.norm.bias)
    cells = np.random.default_rng(0).normal(size=(8, 49, hybrid.GATHERED)).astype(np.float16)
    tower.start_cell_words(trunk, probe, cells, words)
    with torch.no_grad():
        patches = trunk.mix(trunk.patch_embed.embed(torch.from_numpy(cells).float()))
        seen, features, given = trunk.cell_words(patches)
        labels = probe(patches).sigmoid()  # [N,P,4,L+1]
        left, right = (
            torch.stack([words.label(name, column=column) for name in (*LABEL_NAMES, "photo")]) for column in (0, 1)
        )
        told = labels[:, :, 0::2].sum(2) @ left + labels[:, :, 1::2].sum(2) @ right
        expected = hybrid_words.FEATURE_SHARE * features + told + trunk.cell_words.place
    torch.testing.assert_close(given, labels.flatten(2), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(features.flatten(0, 1).mean(0), torch.zeros(hybrid.WIDTH), rtol=0, atol=1e-3)
    torch.testing.assert_close(features.flatten(0, 1).std(0), torch.ones(hybrid.WIDTH), rtol=0, atol=1e-2)
    similarity = torch.cosine_similarity(words.label("color:red"), words.word("red"), dim=0)
    assert similarity > 0.999
    inside, starting = words.label("character:N", column=1), words.label("character:N")
    torch.testing.assert_close(inside, 2 * words.tokens("N")[0])
    torch.testing.assert_close(starting, 2 * words.tokens(" N").mean(0))
    torch.testing.assert_close(words.place(0, 6), 0.5 * (words.word("top") + words.word("right")))
    torch.testing.assert_close(words.place(3, 3), 0.5 * words.word("center"))


def test_the_projector_starts_as_nearly_the_identity() -> None:
    from mobillama_v.projector import build_projector
    from mobillama_v.specs import ProjectorSpec

    torch.manual_seed(0)
    projector = build_projector(ProjectorSpec(), tower_width=hybrid.WIDTH, decoder_width=hybrid.WIDTH)
    tower.start_projector(projector, 0.02)
    x = torch.randn(50, hybrid.WIDTH)
    with torch.no_grad():
        similarity = torch.cosine_similarity(projector(x), x, dim=-1)
        scale = projector(x).pow(2).mean().sqrt()
    assert similarity.min() > 0.9 and 0.018 < scale < 0.024


def test_the_tower_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cache:
        row = {f"{i}": i for i in range(24)}  # noqa: RUF012
        cells = np.random.default_rng(0).normal(size=(24, 49, hybrid.GATHERED)).astype(np.float16)

    labels = (np.random.default_rng(1).random((16, CELLS, CELLS, len(LABEL_NAMES))) < 0.05).astype(np.uint8)
    drawn, taken = [str(i) for i in range(16)], [str(i) for i in range(16, 24)]

    def train(state: Path) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        trunk = hybrid.HybridTrunk()
        tower.pretrain(trunk, Cache(), drawn, labels, taken, epochs=2, batch_size=8, state=state)  # type: ignore[arg-type]
        return trunk.state_dict()

    whole = train(tmp_path / "whole.pt")
    keep = tower._keep

    def keep_and_die(*args: object) -> None:
        keep(*args)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tower, "_keep", keep_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "killed.pt")
    resumed = train(tmp_path / "killed.pt")
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=0, atol=0, msg=name)


# --- measure --------------------------------------------------------------------------------------------------------


def test_answers_are_judged_by_family() -> None:
    class Reply:
        def __init__(self, text: str) -> None:
            self.text = text

    class Assistant:
        def see(self, image: Path) -> Path:
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
    from mobillama_v.train.nano.__main__ import app

    asked: dict[str, object] = {}

    def load(name: str, **options: object) -> SimpleNamespace:
        asked.update(options, name=name)
        return SimpleNamespace(engine=SimpleNamespace(title="native 4 bit"))

    tally = evaluate.Tally(right={"color": 1}, asked={"color": 4})
    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(evaluate, "held_out", lambda *_, **__: tally)
    result = CliRunner().invoke(app, ["evaluate", "--engine", "native", "--bits", "4", "--no-easy-vqa"])
    assert result.exit_code == 0, result.output
    assert asked == {"name": "nano", "engine": "native", "bits": 4}
    assert "native 4 bit" in result.stderr and "overall" in result.stdout and "25.0 % of 4" in result.stdout


def test_questions_are_read_back(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(json.dumps({"text": "é"}) + "\n")
    assert evaluate.read_questions(tmp_path / "q.jsonl") == [{"text": "é"}]
