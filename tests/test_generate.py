"""Generation: equal to transformers', rows independent, prefixes run once, streaming never prints half a character."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mobillama_v import generate as generation_module
from mobillama_v.backends.torch import TorchEngine
from mobillama_v.config import DecoderConfig
from mobillama_v.errors import ConfigError, PromptError
from mobillama_v.generate import Completion, Generation, Prompt, Sampling, TextStream, decode_step, generate
from mobillama_v.model.kv_cache import StaticCache
from mobillama_v.prefix_cache import PrefixCache
from mobillama_v.prompt import Encoded
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
    """Prompts, each with one image, and the same padded on the left as transformers wants them."""
    per_image = model.tokens_per_image
    rows, total = len(lengths), max(lengths)
    ids = torch.randint(3, DECODER["vocab_size"], (rows, total))
    exists = torch.stack([torch.arange(total) >= total - n for n in lengths]).long()
    slots = torch.zeros(rows, total, dtype=torch.bool)
    for row, n in enumerate(lengths):
        slots[row, total - n + 1 : total - n + 1 + per_image] = True
    pixels = torch.randn(rows, 3, IMAGE_SIZE, IMAGE_SIZE)
    with torch.no_grad():
        features = model.get_image_features(pixels)
    prompts = [prompt(ids[row, total - n :], slots[row, total - n :], features[row]) for row, n in enumerate(lengths)]
    return ids, exists, slots, pixels, prompts


def prompt(ids, slots=None, *features) -> Prompt:
    slots = [False] * len(ids) if slots is None else slots.tolist()
    return Prompt(Encoded(ids.tolist(), [-100] * len(ids), slots), features)


def test_greedy_is_transformers_generate(sharp_model) -> None:
    ids, exists, slots, pixels, prompts = batch(sharp_model)
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
    got = generate(TorchEngine(sharp_model), Letters(), prompts, Sampling(max_new_tokens=24))
    for row, completion in zip(expected.tolist(), got, strict=True):
        wanted = row[: row.index(EOS)] if EOS in row else row
        assert completion.ids == wanted
        assert completion.finish_reason == ("stop" if EOS in row else "length")
    assert len({tuple(c.ids) for c in got}) == len(got)  # else the comparison would show little


def test_rows_stop_on_their_own_and_equal_single_calls(sharp_model) -> None:
    *_, prompts = batch(sharp_model)
    free = generate(TorchEngine(sharp_model), Letters(), prompts, Sampling(max_new_tokens=24))
    stop = Letters().decode(free[1].ids[4:6])
    sampling = Sampling(max_new_tokens=24, stop=(stop,))
    together = generate(TorchEngine(sharp_model), Letters(), prompts, sampling)
    assert together[1].finish_reason == "stop" and stop not in together[1].text
    for row in range(3):
        assert (
            generate(TorchEngine(sharp_model), Letters(), prompts[row : row + 1], sampling) == together[row : row + 1]
        )


def test_pieces_add_up_to_the_text(sharp_model) -> None:
    *_, prompts = batch(sharp_model)
    texts = ["", "", ""]
    generation = Generation(TorchEngine(sharp_model), Letters(), prompts, Sampling(max_new_tokens=9))
    for pieces in generation:
        texts = [a + b for a, b in zip(texts, pieces, strict=True)]
        assert [c.text for c in generation.completions] == texts
    assert texts == [Letters().decode(c.ids) for c in generation.completions]


def test_steps_equal_one_prefill(sharp_model) -> None:
    ids, _, slots, _, prompts = batch(sharp_model, (30, 30, 30))
    engine = TorchEngine(sharp_model)
    _, whole = engine.prefill(prompts, 1)
    shorter = [prompt(ids[row, :26], slots[row, :26], *prompts[row].images) for row in range(3)]
    sequences, _ = engine.prefill(shorter, 5)
    for at in range(26, 30):
        stepped = engine.decode(sequences, ids[:, at].tolist())
    np.testing.assert_allclose(stepped, whole, rtol=1e-4, atol=1e-4)


def passes(monkeypatch: pytest.MonkeyPatch, model) -> list[tuple[int, int]]:
    """Rows and positions of every pass through the decoder from now on."""
    found: list[tuple[int, int]] = []
    decoder = model.language_model
    forward = decoder.forward
    monkeypatch.setattr(decoder, "forward", lambda x, **more: found.append(tuple(x.shape[:2])) or forward(x, **more))
    return found


def test_generations_share_passes_and_answer_as_alone(sharp_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of unlike lengths and settings; one comes later, one ends first, one is broken off and costs no more."""
    settings = [
        Sampling(12),
        Sampling(30, temperature=1.5, seed=4),
        Sampling(30, temperature=0.7, seed=5),
        Sampling(30),
    ]
    *_, prompts = batch(sharp_model, (18, 31, 20, 60))
    engine = TorchEngine(sharp_model)

    def begin(i: int) -> Generation:
        return Generation(engine, Letters(), [prompts[i]], settings[i])

    alone = [generate(engine, Letters(), [prompts[i]], settings[i])[0] for i in range(4)]
    assert len({tuple(each.ids) for each in alone}) == 4 and alone[0].finish_reason == "length"
    widths = passes(monkeypatch, sharp_model)
    running = {i: begin(i) for i in (0, 1, 2)}
    found = {}
    for turn in range(60):
        if turn == 4:
            running[3] = begin(3)
        if turn == 8:
            running.pop(2).close()
        decode_step(list(running.values()))
        for i, generation in list(running.items()):
            if next(generation, None) is None:
                found[i] = running.pop(i).completions[0]
    assert not running and [found[i] for i in (0, 1, 3)] == [alone[i] for i in (0, 1, 3)]
    # The prompts run alone; then three rows, four with the newcomer, and room is kept for one that was broken off.
    assert widths[3:12] == [(3, 1)] * 4 + [(1, 60)] + [(4, 1)] * 4, widths
    assert len(widths) == 3 + max(len(found[1].ids), 4 + len(found[3].ids)), "no row has a pass of its own"


def test_a_row_that_missed_a_pass_goes_on_where_it_was(sharp_model) -> None:
    ids, *_ = batch(sharp_model)
    engine = TorchEngine(sharp_model)
    prompts = [prompt(ids[row, :length]) for row, length in enumerate((9, 17, 13))]
    tokens = torch.randint(3, 60, (3, 6)).tolist()
    expected = []
    for row in range(3):
        (sequence,), _ = engine.prefill(prompts[row : row + 1], 6)
        expected.append([engine.decode([sequence], [token])[0] for token in tokens[row]])
    sequences, _ = engine.prefill(prompts, 6)
    done = [0, 0, 0]
    for rows in ([0, 1, 2], [0, 2], [2, 1, 0], [1], [1, 2], [0, 1], [2, 0], [1], [0, 2], [1], [0, 2]):
        rows = [row for row in rows if done[row] < 6]
        if not rows:
            continue
        logits = engine.decode([sequences[row] for row in rows], [tokens[row][done[row]] for row in rows])
        for row, found in zip(rows, logits, strict=True):
            np.testing.assert_allclose(found, expected[row][done[row]], rtol=1e-4, atol=1e-4)
            done[row] += 1
    assert done == [6, 6, 6]


def test_prefixes_run_once(sharp_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two beginnings with questions of several lengths, in a batch and after it: nearly the logits of each alone."""
    engine, context = TorchEngine(sharp_model), DECODER["vocab_size"]
    text, red, blue = (torch.randint(3, context, (length,)) for length in (19, 21, 21))
    rests = [torch.randint(3, context, (n,)) for n in (3, 1, 9, 3, 1, 9)]
    prompts = [prompt(torch.cat((text, red if i < 3 else blue, rest))) for i, rest in enumerate(rests)]
    prompts.append(prompt(torch.randint(3, context, (30,))))
    expected = np.concatenate([engine.prefill([each], 1)[1] for each in prompts])
    reuse = PrefixCache(2)
    ran = passes(monkeypatch, sharp_model)
    sequences, logits = engine.prefill(prompts, 5, reuse)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    # First what begins anew; then the other questions on the first picture, and the second picture with one; the rest.
    assert ran == [(2, 43), (3, 24), (2, 9)]
    tokens = torch.randint(3, context, (7, 4)).tolist()
    for turn in range(4):
        together = engine.decode(sequences, [row[turn] for row in tokens])
    for i, each in enumerate(prompts):
        (sequence,), _ = engine.prefill([each], 5)
        alone = [engine.decode([sequence], [token]) for token in tokens[i]][-1]
        np.testing.assert_allclose(together[i], alone[0], rtol=1e-4, atol=1e-4)
    ran.clear()
    _, again = engine.prefill([prompts[5], prompts[3]], 1, reuse)  # one of the batch's last prompts was kept
    np.testing.assert_allclose(again, expected[[5, 3]], rtol=1e-4, atol=1e-4)
    assert ran == [(2, 3)]


def test_scores_are_the_logits_of_the_whole(sharp_model) -> None:
    ids, *_ = batch(sharp_model, (30, 30, 30))
    rows = [torch.cat((row, ids[0, -5:])) for row in (ids[0, :25], ids[1, :18], ids[2, :21])]
    found = TorchEngine(sharp_model).score([prompt(row[:-5]) for row in rows], rows[0][-5:].tolist())
    for row, log_probs, greedy in zip(rows, found.log_probs, found.greedy, strict=True):
        with torch.inference_mode():
            hidden = sharp_model.language_model(
                sharp_model.language_model.embed_tokens(row[None]), position_ids=torch.arange(len(row))[None]
            )
            chances = sharp_model.lm_head(hidden[0, -6:-1]).log_softmax(-1)
        np.testing.assert_allclose(log_probs, chances.gather(-1, row[-5:, None])[:, 0], rtol=1e-4, atol=1e-4)
        assert greedy.tolist() == (chances.argmax(-1) == row[-5:]).tolist()
    assert len({round(float(each), 3) for each in found.log_probs.sum(-1)}) == 3


def test_sampling_is_repeatable_and_seeds_differ(sharp_model) -> None:
    *_, prompts = batch(sharp_model)
    runs = [
        [c.ids for c in generate(TorchEngine(sharp_model), Letters(), prompts, Sampling(20, 1.0, 1.0, seed))]
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


def test_a_full_context_is_refused_and_a_nearly_full_one_ends(sharp_model) -> None:
    context = DECODER["max_position_embeddings"]
    ids = torch.randint(3, DECODER["vocab_size"], (context,))
    with pytest.raises(PromptError, match=f"has {context} tokens and the model's context is {context}"):
        generate(TorchEngine(sharp_model), Letters(), [prompt(ids)], Sampling())
    long, short = generate(TorchEngine(sharp_model), Letters(), [prompt(ids[:-2]), prompt(ids[:9])], Sampling(50))
    assert len(long.ids) <= 2 < len(short.ids), "a long prompt leaves the others their room"


def test_time_ends_an_answer_by_length(sharp_model, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, prompts = batch(sharp_model)
    clock = iter([0.0, 1.0, 2.0, 3.0, *[9.0] * 20])
    monkeypatch.setattr(generation_module.time, "monotonic", lambda: next(clock))
    found = generate(TorchEngine(sharp_model), Letters(), prompts, Sampling(20, max_seconds=3.0, seed=None))
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
