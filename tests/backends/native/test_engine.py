"""Generation by the native engine: answers that share passes, and prompts that begin alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from decoders import PATHS, SHAPES, Plain, forward, meant, natives
from mobillama_v.backends.native import library
from mobillama_v.backends.native.engine import NativeEngine
from mobillama_v.backends.native.packed_format import Array
from mobillama_v.backends.native.runtime import NativeModel, NativeSequence
from mobillama_v.backends.torch import TorchEngine
from mobillama_v.generate import Generation, Prompt, Sampling, decode_step, generate
from mobillama_v.prefix_cache import PrefixCache
from mobillama_v.prompt import Encoded

pytestmark = pytest.mark.skipif(bool(library.missing()), reason=f"no native library: {library.missing()}")


class Letters:
    eos_id = 2

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(33 + i) for i in ids)


def prompt(length: int, vocabulary: int) -> Prompt:
    encoded = Encoded()
    encoded.add(torch.randint(3, vocabulary, (length,)).tolist())
    return Prompt(encoded)


def test_generation_is_that_of_torch() -> None:
    """In a batch of unlike lengths, to the end of the context; at 16 bits no token differs."""
    spec = SHAPES["shared"]
    model = meant(Plain(spec, seed=5), 16)
    native = NativeEngine(natives(model, 16))
    prompts = [prompt(length, spec.vocab_size) for length in (40, 7, 22)]
    expected = generate(TorchEngine(model), Letters(), prompts, Sampling(max_new_tokens=50))
    got = generate(native, Letters(), prompts, Sampling(max_new_tokens=50))
    assert [(each.ids, each.finish_reason) for each in got] == [(each.ids, each.finish_reason) for each in expected]
    assert len({tuple(each.ids) for each in got}) == 3
    long = generate(native, Letters(), prompts, Sampling(max_new_tokens=1000))
    assert all(len(each.ids) <= 300 - length for each, length in zip(long, (40, 7, 22), strict=True))


def test_scores_are_those_of_torch() -> None:
    spec = SHAPES["shared"]
    model = meant(Plain(spec, seed=5), 16)
    prompts = [prompt(length, spec.vocab_size) for length in (40, 7, 22)]
    found, expected = (
        each.score(prompts, [5, 9, 60, 2]) for each in (NativeEngine(natives(model, 16)), TorchEngine(model))
    )
    np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=0, atol=0.02)
    assert found.log_probs.shape == (3, 4) and found.log_probs.std() > 1 and (found.greedy == expected.greedy).all()


def test_generations_share_passes_and_answer_as_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of unlike lengths and settings; one comes later, one ends first, one is broken off and costs no more."""
    spec = SHAPES["shared"]
    native = NativeEngine(natives(meant(Plain(spec, seed=5), 16), 16))
    settings = [
        Sampling(12),
        Sampling(30, temperature=1.5, seed=4),
        Sampling(30, temperature=0.7, top_p=0.8, seed=5),
        Sampling(30),
    ]
    prompts = [prompt(length, spec.vocab_size) for length in (5, 60, 21, 140)]

    def begin(i: int) -> Generation:
        return Generation(native, Letters(), [prompts[i]], settings[i])

    alone = [generate(native, Letters(), [prompts[i]], settings[i])[0] for i in range(4)]
    assert len({tuple(each.ids) for each in alone}) == 4 and alone[0].finish_reason == "length"
    rows: list[int] = []
    original = native.model.forward

    def counted(sequences: Sequence[NativeSequence], inputs: Sequence[Array]) -> Array:
        rows.append(len(sequences) if len(inputs[0]) == 1 else 0)
        return original(sequences, inputs)

    monkeypatch.setattr(native.model, "forward", counted)
    running, found, broken = {i: begin(i) for i in (0, 1, 2)}, {}, None
    for turn in range(60):
        if turn == 4:
            running[3] = begin(3)
        if turn == 8:
            broken = running.pop(2)
            broken.close()
        decode_step(list(running.values()))
        for i, generation in list(running.items()):
            if next(generation, None) is None:
                found[i] = running.pop(i).completions[0]
    assert not running
    assert [found[i] for i in (0, 1, 3)] == [alone[i] for i in (0, 1, 3)]
    assert broken is not None
    assert next(broken, None) is None and broken.completions[0].ids == alone[2].ids[:8]
    # Prompts run alone (0); then three rows, four with the newcomer, three without the one that was broken off.
    assert rows[:12] == [0, 0, 0, 3, 3, 3, 3, 0, 4, 4, 4, 3], rows
    assert sum(rows) == sum(len(each.ids) + (each.finish_reason == "stop") - 1 for each in found.values()) + 7, rows


@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("path", PATHS)
def test_what_prompts_have_in_common_is_run_once(bits: int, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two pictures with questions after one sentence, in a batch and after it: each the same bits as alone."""
    model = natives(Plain(SHAPES["grouped"]), bits, threads=2, path=path)
    sentence, red, blue = (torch.randn(length, 96) for length in (19, 21, 21))
    prompts = [torch.cat((sentence, picture, torch.randn(n, 96))) for picture in (red, blue) for n in (3, 1, 9)]
    prompts.append(torch.randn(30, 96))
    tokens = torch.randint(0, 64, (len(prompts), 4))
    run_positions: list[int] = []
    original = NativeModel.forward

    def counted(self: NativeModel, sequences: list[NativeSequence], inputs: list[Array]) -> Array:
        run_positions.append(sum(map(len, inputs)))
        return original(self, sequences, inputs)

    def answers(rows: list[int], reuse: PrefixCache | None = None) -> Tensor:
        asked = [Prompt(Encoded([0] * len(prompts[i]), [], [True] * len(prompts[i])), [prompts[i]]) for i in rows]
        sequences, first = engine.prefill(asked, 5, reuse)
        logits = [first, *(engine.decode(sequences, tokens[rows, step].tolist()) for step in range(4))]
        return torch.from_numpy(np.stack(logits, axis=1))

    engine, reuse = NativeEngine(model), PrefixCache(2)
    every = list(range(len(prompts)))
    expected = torch.cat([answers([i]) for i in every])
    monkeypatch.setattr(NativeModel, "forward", counted)
    assert torch.equal(answers(every, reuse), expected)
    assert sum(run_positions[:-4]) == (19 + 21 + 3) + 30 + (1 + 9) + (21 + 3) + (1 + 9)  # what is new to each
    run_positions.clear()
    again = [5, 3]  # the batch's last prompts were kept, and one of them ends with this question
    assert torch.equal(answers(again, reuse), expected[again])
    assert run_positions[0] == 1 + 3
    run_positions.clear()
    assert torch.equal(answers(again), expected[again]) and run_positions[:2] == [49, 3]


def test_a_copy_that_cannot_be_is_refused() -> None:
    spec = SHAPES["shared"]
    model, other = natives(Plain(spec), 8), natives(Plain(spec), 8)
    source, empty = NativeSequence(model, 40), NativeSequence(model, 10)
    forward(model, [source], [torch.randn(20, 64)])
    for target, length, message in (
        (empty, 21, "there are not 21 positions"),
        (empty, 11, "there are not 11 positions, or no room"),
        (NativeSequence(other, 40), 5, "a sequence of another model"),
        (source, 5, "only an empty sequence"),
    ):
        with pytest.raises(RuntimeError, match=message):
            target.copy(source, length)
    empty.copy(source, 10)
    with pytest.raises(RuntimeError, match="room for 0 more"):
        forward(model, [empty], [torch.randn(1, 64)])
