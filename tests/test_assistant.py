"""The assistant: a reply depends on its own images and words only, and every image is encoded once."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mobillama_v import generate
from mobillama_v.assistant import Assistant
from mobillama_v.backends.native.packed_format import Array
from mobillama_v.backends.select import choose_device, select_backend
from mobillama_v.chat_templates import TEMPLATES
from mobillama_v.errors import CheckpointError, ConfigError, ImageError, ModelNotFoundError, PromptError
from mobillama_v.generate import Sampling
from mobillama_v.hub import read_spec
from mobillama_v.loading import load
from mobillama_v.prompt import Message, Slot, assistant, user

SHORT = Sampling(max_new_tokens=12)
RED = Image.new("RGB", (300, 200), (200, 30, 30))
RAMP = Image.linear_gradient("L").convert("RGB")


@pytest.fixture(scope="module")
def model(nano_like: Path) -> Assistant:
    return load(str(nano_like), device="cpu")


@pytest.fixture
def encoded(model: Assistant, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One for each run of the tower."""
    runs: list[int] = []
    original = model.vision.encode_image

    def counting(pixels: Array) -> Array:
        runs.append(1)
        return original(pixels)

    monkeypatch.setattr(model.vision, "encode_image", counting)
    return runs


def test_reply(model: Assistant) -> None:
    reply = model.ask([RED], "What is this?", SHORT)
    assert reply.text and reply.text == reply.text.strip()
    assert (reply.image_tokens, reply.new_tokens, reply.finish_reason) == (84, 12, "length")
    words = model.ask([], "What is this?", SHORT)
    assert words.image_tokens == 0
    encoded = TEMPLATES["v1"].encode([user("What is this?", images=1)], model.tokenizer, tokens_per_image=84)
    assert reply.prompt_tokens == len(encoded.input_ids)
    assert reply.timings.images > 0 and reply.timings.prefill > 0 and reply.timings.decode > 0
    assert words.timings.images == 0


def test_image_and_words_matter(model: Assistant) -> None:
    texts = [
        model.ask(i, q, SHORT).text for i, q in (([RED], "What?"), ([RAMP], "What?"), ([RED], "Why?"), ([], "What?"))
    ]
    assert len(set(texts)) == 4


def test_any_source_is_the_same_image(model: Assistant, tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    RED.save(path)
    expected = model.ask([RED], "What?", SHORT).text
    with path.open("rb") as stream:
        for source in (path, str(path), path.read_bytes(), stream, model.encode_image(RED)):
            assert model.ask([source], "What?", SHORT).text == expected


def test_a_stream_gives_every_token_and_can_be_closed(model: Assistant) -> None:
    answer = model.stream([RED], "What is this?", SHORT)
    assert len(list(answer)) == answer.reply.new_tokens + 1
    answer.close()
    answer = model.stream([RED], "What is this?", SHORT)
    next(answer)
    answer.close()
    assert list(answer) == []
    with pytest.raises(RuntimeError, match="has not ended"):
        _ = answer.reply


def test_a_prompt_is_measured_without_its_images(model: Assistant) -> None:
    turns = [user("What?", images=1), assistant("Red."), user("And this?", images=1)]
    assert model.prompt_tokens(2, turns) == model.ask([RED, RAMP], turns, SHORT).prompt_tokens
    assert model.prompt_tokens(1, "What?") == model.ask([RED], "What?", SHORT).prompt_tokens
    for images, question, message in (
        (1, turns, "2 <image> places and 1 images"),
        (0, "word " * 500, "context is 512"),
    ):
        with pytest.raises(PromptError, match=message):
            model.prompt_tokens(images, question)


def test_stream_is_ask(model: Assistant) -> None:
    answer = model.stream([RED], "What is this?", SHORT)
    first = next(answer)
    with pytest.raises(RuntimeError, match="has not ended"):
        _ = answer.reply
    pieces = [first, *answer]
    expected = model.ask([RED], "What is this?", SHORT)
    assert len([piece for piece in pieces if piece]) > 3
    assert "".join(pieces).rstrip() == answer.reply.text == expected.text
    assert pieces[0] == pieces[0].lstrip()
    assert answer.reply.new_tokens == expected.new_tokens


def test_batch_is_single(model: Assistant) -> None:
    """Padding, and rows with none, one and two images, must not reach each other."""
    prompts = [([RED], "What?"), ([], "How many dogs are on the grass?"), ([RED, RAMP], "Why?"), ([RAMP], "What?")]
    batch = model.ask_batch(prompts, SHORT)
    for (images, question), got in zip(prompts, batch, strict=True):
        alone = model.ask(images, question, SHORT)
        assert (got.text, got.prompt_tokens, got.image_tokens) == (alone.text, alone.prompt_tokens, alone.image_tokens)
    assert model.ask_batch([]) == []


def test_order_of_images_matters(model: Assistant) -> None:
    assert model.ask([RED, RAMP], "What?", SHORT).text != model.ask([RAMP, RED], "What?", SHORT).text


def test_a_chat_is_its_conversation_and_encodes_once(model: Assistant, encoded: list[int]) -> None:
    chat = model.chat([RED])
    first = chat.ask("What?", SHORT)
    chat.add_image(RAMP)
    second = chat.ask("And this?", SHORT)
    third = chat.ask("How many?", SHORT)
    assert encoded == [1, 1]
    assert second.timings.images == third.timings.images == 0

    messages = [
        user("What?", images=1),
        assistant(first.text),
        user("And this?", images=1),
        assistant(second.text),
        user("How many?"),
    ]
    assert model.ask([RED, RAMP], messages, SHORT).text == third.text
    assert [message.text.strip() for message in chat.messages[::2]] == ["What?", "And this?", "How many?"]
    chat.clear()
    assert chat.ask("What?", SHORT).text == model.ask([], "What?", SHORT).text


def test_a_turn_that_fails_or_is_broken_off_changes_nothing(model: Assistant) -> None:
    chat = model.chat([RED])
    with pytest.raises(PromptError, match="context is 512"):
        chat.ask("word " * 600, SHORT)
    with pytest.raises(ImageError):
        chat.add_image("/no/such/picture.jpg")
    next(chat.stream("What?", SHORT))
    assert chat.messages == []
    assert chat.ask("What?", SHORT).text == model.ask([RED], "What?", SHORT).text


def test_seeds(model: Assistant) -> None:
    sampling = Sampling(max_new_tokens=12, temperature=1.5, seed=7)
    texts = [model.ask([RED], "What?", sampling).text for _ in range(2)]
    assert texts[0] == texts[1] != model.ask([RED], "What?", Sampling(max_new_tokens=12, temperature=1.5, seed=8)).text


def test_a_prompt_of_the_whole_context_is_refused_before_anything_runs(model: Assistant, encoded: list[int]) -> None:
    used = model.ask([], "", SHORT).prompt_tokens
    letter = model.tokenizer.encode("9")
    assert len(letter) == 1
    full = "9" * (model.context - used)
    per_token = len(model.tokenizer.encode(full)) / len(full)
    assert per_token == 1  # else the lengths below are not what they seem
    with pytest.raises(PromptError, match="has 512 tokens and the model's context is 512"):
        model.ask([], full)
    assert model.ask([], full[1:]).new_tokens <= 1
    with pytest.raises(PromptError, match="context is 512"):
        model.stream([RED], full)
    assert encoded == []


def test_conversations_that_cannot_be(model: Assistant) -> None:
    with pytest.raises(PromptError, match="2 <image> places and 1 images"):
        model.ask([RED], [Message("user", (Slot.IMAGE, Slot.IMAGE, "What?"))])
    with pytest.raises(PromptError, match="must end with the user's"):
        model.ask([], [user("What?"), assistant("That.")])
    with pytest.raises(PromptError, match="no turns"):
        model.ask([], [])


def test_no_answer_repeats_itself_where_that_is_asked(nano_like: Path, model: Assistant) -> None:
    asked = Sampling(max_new_tokens=40, repetition_penalty=1.2, no_repeat_ngram=2)
    found = []
    for engine in ("native", "torch"):
        answer = load(str(nano_like), device="cpu", engine=engine).stream([RED], "What?", asked)
        text = "".join(answer)
        ids = answer.generation.completions[0].ids
        assert len(set(itertools.pairwise(ids))) == len(ids) - 1
        found.append(text)
    assert found[0] == found[1] != model.ask([RED], "What?", Sampling(max_new_tokens=40)).text


def test_a_caption_ends_with_its_line(nano_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((nano_like / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text()) | {"template": "plain"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    captioner = load(str(tmp_path), device="cpu")
    newline = captioner.tokenizer.encode("\n")[0]
    picked = iter([captioner.tokenizer.encode("a")[0], newline, newline])
    monkeypatch.setattr(generate, "sample", lambda *_: [next(picked)])
    reply = captioner.ask([RED], "anything")
    assert (reply.text, reply.finish_reason, reply.new_tokens) == ("a", "stop", 2)


def test_load_errors(nano_like: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        load("nothing-of-that-name")
    with pytest.raises(ConfigError, match="'abacus' cannot be used here"):
        load(str(nano_like), device="abacus")
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((nano_like / name).read_bytes())
    with pytest.raises(CheckpointError, match="holds no weights"):
        load(str(tmp_path), device="cpu")
    config = json.loads((nano_like / "config.json").read_text())
    config["text_config"]["vocab_size"] = 100
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"has \d+ tokens and the decoder 100 embeddings"):
        load(str(tmp_path), device="cpu")


def test_auto_is_a_device_that_is_here() -> None:
    assert choose_device("auto").type in ("cuda", "mps", "cpu")


def test_a_small_model_gets_one_thread_and_a_large_one_some(
    nano_like: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = read_spec(nano_like)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(64)
        select_backend(config, nano_like, device="cpu", engine="torch").limit_threads()
        assert torch.get_num_threads() == 1
        torch.set_num_threads(64)
        with (tmp_path / "model.safetensors").open("wb") as file:
            file.truncate(10**9)  # takes no room on the disk
        plan = select_backend(config, tmp_path, device="cpu", engine="torch")
        plan.limit_threads()
        assert torch.get_num_threads() == plan.threads == 8
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert select_backend(config, nano_like, device="cpu").threads == 3
    finally:
        torch.set_num_threads(before)


def test_public_names(nano_like: Path) -> None:
    import mobillama_v

    assert mobillama_v.load is load
    assert mobillama_v.Assistant is Assistant
    assert mobillama_v.Sampling is Sampling
