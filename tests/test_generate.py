"""Generation: equal to transformers', rows independent, streaming never prints half a character."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobillama_v import generate as generation
from mobillama_v.backends.torch import TorchEngine, decode_one_token, prefill, sample
from mobillama_v.config import DecoderConfig
from mobillama_v.errors import ConfigError, PromptError
from mobillama_v.generate import Completion, Sampling, TextStream, generate, stream
from mobillama_v.hf.modeling import place_image_features
from mobillama_v.model.kv_cache import StaticCache
from tiny import DECODER, IMAGE_SIZE

EOS = 2


class Letters:
    """Decodes id i to the i-th code point; no model of a language is needed here."""

    eos_id = EOS

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(33 + i) for i in ids)


class Bytes:
    """Decodes ids as UTF-8 bytes, as byte-level tokenizers do."""

    eos_id = -1

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


@pytest.fixture
def sharp_model(tiny_model):
    """Weights large enough that answers differ between prompts."""
    torch.manual_seed(3)
    for parameter in tiny_model.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return tiny_model


def batch(model, lengths=(30, 23, 27)):
    """Left-padded prompts, each with one image."""
    per_image = model.tokens_per_image
    rows, total = len(lengths), max(lengths)
    ids = torch.randint(3, DECODER["vocab_size"], (rows, total))
    exists = torch.stack([torch.arange(total) >= total - n for n in lengths]).long()
    slots = torch.zeros(rows, total, dtype=torch.bool)
    for row, n in enumerate(lengths):
        slots[row, total - n + 1 : total - n + 1 + per_image] = True
    pixels = torch.randn(rows, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        embeds = place_image_features(model.language_model.embed_tokens(ids), slots, model.get_image_features(pixels))
    return ids, exists, slots, pixels, embeds


def test_greedy_is_transformers_generate(sharp_model) -> None:
    ids, exists, slots, pixels, embeds = batch(sharp_model)
    expected = sharp_model.generate(
        input_ids=ids,
        attention_mask=exists,
        pixel_values=pixels,
        image_mask=slots,
        max_new_tokens=24,
        do_sample=False,
        eos_token_id=EOS,
        pad_token_id=0,
    )[:, ids.shape[1] :]
    got = generate(TorchEngine(sharp_model), Letters(), embeds, exists, Sampling(max_new_tokens=24))
    for row, completion in zip(expected.tolist(), got, strict=True):
        wanted = row[: row.index(EOS)] if EOS in row else row
        assert completion.ids == wanted
        assert completion.finish_reason == ("stop" if EOS in row else "length")
    assert len({tuple(c.ids) for c in got}) == len(got)  # else the comparison would show little


def test_rows_stop_on_their_own_and_equal_single_calls(sharp_model) -> None:
    _, exists, _, _, embeds = batch(sharp_model)
    free = generate(TorchEngine(sharp_model), Letters(), embeds, exists, Sampling(max_new_tokens=24))
    stop = Letters().decode(free[1].ids[4:6])
    sampling = Sampling(max_new_tokens=24, stop=(stop,))
    together = generate(TorchEngine(sharp_model), Letters(), embeds, exists, sampling)
    assert together[1].finish_reason == "stop" and stop not in together[1].text
    for row in range(3):
        keep = exists[row].bool()
        alone = generate(
            TorchEngine(sharp_model), Letters(), embeds[row : row + 1, keep], exists[row : row + 1, keep], sampling
        )
        assert alone[0] == together[row]


def test_pieces_add_up_to_the_text(sharp_model) -> None:
    _, exists, _, _, embeds = batch(sharp_model)
    texts = ["", "", ""]
    for pieces, completions in stream(TorchEngine(sharp_model), Letters(), embeds, exists, Sampling(max_new_tokens=9)):
        texts = [a + b for a, b in zip(texts, pieces, strict=True)]
        assert [c.text for c in completions] == texts
    assert texts == [Letters().decode(c.ids) for c in completions]


def test_steps_equal_one_prefill(sharp_model) -> None:
    ids, exists, *_ = batch(sharp_model)
    spec = sharp_model.language_model.spec
    embeds = sharp_model.language_model.embed_tokens(ids)
    caches = [StaticCache(spec, rows=3, capacity=30, dtype=torch.float32, device="cpu") for _ in range(2)]
    with torch.inference_mode():
        whole = prefill(sharp_model, embeds, exists, caches[0])
        prefill(sharp_model, embeds[:, :26], exists[:, :26], caches[1])
        for end in range(27, 31):
            stepped = decode_one_token(sharp_model, ids[:, end - 1], exists[:, :end], caches[1])
    torch.testing.assert_close(stepped, whole, rtol=1e-4, atol=1e-4)


def test_sampling_is_repeatable_and_seeds_differ(sharp_model) -> None:
    _, exists, _, _, embeds = batch(sharp_model)
    runs = [
        [c.ids for c in generate(TorchEngine(sharp_model), Letters(), embeds, exists, Sampling(20, 1.0, 1.0, seed))]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    kept = sample(logits, Sampling(temperature=1.0, top_p=0.7), generator)
    counts = torch.bincount(kept, minlength=4).float() / len(kept)
    assert counts[2:].sum() == 0
    assert abs(counts[0] - 0.5 / 0.8) < 0.03  # standard error 0.008
    assert set(sample(logits, Sampling(temperature=1.0, top_p=1e-9), generator).tolist()) == {0}


def test_a_full_context_is_refused_and_a_nearly_full_one_ends(sharp_model) -> None:
    context = DECODER["max_position_embeddings"]
    embeds = torch.randn(1, context, DECODER["hidden_size"])
    with pytest.raises(PromptError, match=f"has {context} tokens and the model's context is {context}"):
        generate(TorchEngine(sharp_model), Letters(), embeds, torch.ones(1, context), Sampling())
    ones = torch.ones(1, context - 2)
    done = generate(TorchEngine(sharp_model), Letters(), embeds[:, :-2], ones, Sampling(max_new_tokens=50))
    assert len(done[0].ids) <= 2


def test_time_ends_an_answer_by_length(sharp_model, monkeypatch: pytest.MonkeyPatch) -> None:
    _, exists, _, _, embeds = batch(sharp_model)
    clock = iter([0.0, 1.0, 2.0, 3.0, *[9.0] * 20])
    monkeypatch.setattr(generation.time, "monotonic", lambda: next(clock))
    found = generate(TorchEngine(sharp_model), Letters(), embeds, exists, Sampling(20, max_seconds=3.0, seed=None))
    assert [len(c.ids) for c in found] == [3, 3, 3] and {c.finish_reason for c in found} == {"length"}


@given(st.text(max_size=30))
def test_streams_never_split_a_character(text: str) -> None:
    text_stream = TextStream(Bytes(), ())
    pieces = [text_stream.push(byte) for byte in text.encode()]
    assert "".join(pieces) + text_stream.flush() == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_strings_cut_where_they_first_appear(text: str, stops: list[str]) -> None:
    text_stream = TextStream(Bytes(), tuple(stops))
    sent = ""
    for byte in text.encode():
        sent += text_stream.push(byte)
        if text_stream.stopped:
            break
    sent += text_stream.flush()
    ends = [text[:end] for end in range(len(text) + 1) if any(s in text[:end] for s in stops)]
    seen = ends[0] if ends else text
    cut = min((seen.find(s) for s in stops if s in seen), default=len(seen))
    assert sent == text_stream.text == seen[:cut]


def test_an_unfinished_character_at_the_end_is_not_lost() -> None:
    text_stream = TextStream(Bytes(), ())
    assert text_stream.push(0xE2) == "" and text_stream.flush() == "\ufffd"


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 0},
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"stop": ("",)},
        {"max_seconds": 0},
    ],
)
def test_impossible_settings_are_refused(values) -> None:
    with pytest.raises(ConfigError):
        Sampling(**values)


def test_the_cache_refuses_to_overflow() -> None:
    spec = DecoderConfig(**DECODER)
    cache = StaticCache(spec, rows=1, capacity=2, dtype=torch.float32, device="cpu")
    states = torch.zeros(1, 4, 3, spec.head_dim)
    with pytest.raises(ValueError, match="room for 2 positions and 3"):
        cache.update(states, states, 0)
    assert Completion() == Completion()
