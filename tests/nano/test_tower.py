"""What teaches the embedded model's tower: tokenizer, targets, words, finders, and going on after a kill."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from mobillama_v.model.vision.hybrid_lite0 import HybridTrunk
from mobillama_v.model.vision.lite0 import GATHERED
from mobillama_v.model.vision.parts_torch import to_torch
from mobillama_v.model.vision.structured_tokens import FEATURE_SHARE, WIDTH, StructuredTokens
from mobillama_v.tokenization import TextTokenizer
from nano import classes, recognize, tower, vocabulary
from nano.figures import SHAPES
from nano.grid import CELLS, LABEL_NAMES
from nano.scenes import COLOR_NAMES, Scene, Thing, sample_scene


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
    return tower.Words(torch.randn(3000, WIDTH) * 0.02, tokenizer)


def test_structured_tokens_start_from_words(words: tower.Words) -> None:
    tokens = to_torch(StructuredTokens())
    tower.start_structured_tokens(tokens, words)
    names = tokens.class_names
    expected = words.tokens(" golden retriever")
    torch.testing.assert_close(names.table[207, : len(expected)], expected)
    torch.testing.assert_close(expected.pow(2).mean(-1), torch.ones(len(expected)))
    assert (names.table[207, len(expected) :] == 0).all()
    dog = classes.kinds().index("dog")
    torch.testing.assert_close(names.kinds[dog, 0], words.word("dog"))
    assert names.kind_of[207, dog] == 1 and names.kind_of[207].sum() == 1 and names.kind_of[490].sum() == 0
    s, small_s = (recognize.LETTERS.index(letter) for letter in "Ss")
    torch.testing.assert_close(tokens.lines.first[s], words.tokens(" S")[0])
    torch.testing.assert_close(tokens.lines.later[s], words.tokens("S")[0])
    torch.testing.assert_close(tokens.lines.later[small_s], words.tokens(" s")[0])


def test_what_is_to_be_found() -> None:
    heart = Thing("shape", "heart", "red", "large", (10, 10, 90, 90))
    sign = Thing("word", "text", "black", "large", (20, 150, 200, 210), "No5")
    scenes = [Scene((), "blue", seed=2), Scene((sign, heart), "white", seed=1)]
    kinds = [2, COLOR_NAMES.index("red"), SHAPES.index("heart")]
    assert recognize.shapes_of(scenes).rows.tolist() == [[1, 3 * 14 + 3, *kinds]]
    letters = recognize.letters_of(scenes)
    assert letters.rows[:, 0].tolist() == [1] * 3
    assert [recognize.LETTERS[i] for i in letters.rows[:, 2]] == ["N", "o", "5"]
    rows, columns = letters.rows[:, 1] // 28, letters.rows[:, 1] % 28
    assert ((rows > 9) & (rows < 13)).all() and (columns.diff() > 0).all()
    assert letters.of(torch.tensor([1]), 2)[:, 0].tolist() == [0] * 3 and not len(letters.of(torch.tensor([0]), 2))


def test_finding_can_be_learnt() -> None:
    torch.manual_seed(0)
    scenes = [sample_scene(random.Random(i), ("few", "word")[i % 2]) for i in range(8)]
    features = torch.randn(8, 49, WIDTH)
    tokens = to_torch(StructuredTokens())
    given = [tokens.colors.clone(), tokens.lines.first.clone(), tokens.places.rows.clone()]

    cells = np.random.default_rng(0).normal(size=(8, 49, GATHERED)).astype(np.float16)

    def losses() -> list[float]:
        found = []
        for logits, wanted in (
            (tokens.things.logits(features), recognize.shapes_of(scenes)),
            (tokens.lines.logits(torch.from_numpy(cells).float(), features), recognize.letters_of(scenes)),
        ):
            found.append(float(recognize.finding_loss(logits.detach(), wanted.rows, wanted.kinds)))
        return found

    before = losses()
    recognize.learn_structured_tokens(tokens, cells, features, scenes, epochs=80)
    after = losses()
    assert after[0] < 0.2 * before[0] and after[1] < 0.2 * before[1]
    for old, new in zip(given, (tokens.colors, tokens.lines.first, tokens.places.rows), strict=True):
        assert torch.equal(old, new)


def test_the_patch_part_says_what_the_probe_sees_in_words(words: tower.Words) -> None:
    torch.manual_seed(0)
    trunk, probe = to_torch(HybridTrunk()), tower.CellProbe()
    torch.nn.init.normal_(probe.norm.weight)
    torch.nn.init.normal_(probe.norm.bias)
    cells = np.random.default_rng(0).normal(size=(8, 49, GATHERED)).astype(np.float16)
    tower.start_cell_words(trunk, probe, cells, words)
    with torch.no_grad():
        patches = trunk.mix(trunk.patch_embed.embed(torch.from_numpy(cells).float()))
        seen, features, given = trunk.cell_words(patches)
        labels = probe(patches).sigmoid()  # [N,P,4,L+1]
        left, right = (
            torch.stack([words.label(name, column=column) for name in (*LABEL_NAMES, "photo")]) for column in (0, 1)
        )
        told = labels[:, :, 0::2].sum(2) @ left + labels[:, :, 1::2].sum(2) @ right
        expected = FEATURE_SHARE * features + told + trunk.cell_words.place
    torch.testing.assert_close(given, labels.flatten(2), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(seen, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(features.flatten(0, 1).mean(0), torch.zeros(WIDTH), rtol=0, atol=1e-3)
    torch.testing.assert_close(features.flatten(0, 1).std(0), torch.ones(WIDTH), rtol=0, atol=1e-2)
    similarity = torch.cosine_similarity(words.label("color:red"), words.word("red"), dim=0)
    assert similarity > 0.999
    inside, starting = words.label("character:N", column=1), words.label("character:N")
    torch.testing.assert_close(inside, 2 * words.tokens("N")[0])
    torch.testing.assert_close(starting, 2 * words.tokens(" N").mean(0))
    torch.testing.assert_close(words.place(0, 6), 0.5 * (words.word("top") + words.word("right")))
    torch.testing.assert_close(words.place(3, 3), 0.5 * words.word("center"))


def test_the_projector_starts_as_nearly_the_identity() -> None:
    from mobillama_v.config import ProjectorConfig

    torch.manual_seed(0)
    projector = ProjectorConfig().build(tower_width=WIDTH, decoder_width=WIDTH)
    tower.start_projector(projector, 0.02)
    x = torch.randn(50, WIDTH)
    with torch.no_grad():
        similarity = torch.cosine_similarity(projector(x), x, dim=-1)
        scale = projector(x).pow(2).mean().sqrt()
    assert similarity.min() > 0.9 and 0.018 < scale < 0.024


def test_the_tower_goes_on_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cache:
        row = {f"{i}": i for i in range(24)}  # noqa: RUF012
        cells = np.random.default_rng(0).normal(size=(24, 49, GATHERED)).astype(np.float16)

    labels = (np.random.default_rng(1).random((16, CELLS, CELLS, len(LABEL_NAMES))) < 0.05).astype(np.uint8)
    drawn, taken = [str(i) for i in range(16)], [str(i) for i in range(16, 24)]

    def train(state: Path) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        trunk = to_torch(HybridTrunk())
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
