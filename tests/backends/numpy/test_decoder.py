"""The decoder over numpy against the one in torch with the same packed numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from decoders import SHAPES, Plain, meant
from mobillama_v.backends.native.torch_convert import pack
from mobillama_v.backends.numpy import decoder as numpy_decoder
from mobillama_v.backends.numpy.decoder import NumpyEngine, NumpyModel, NumpySequence
from mobillama_v.backends.torch import TorchEngine
from mobillama_v.generate import Prompt, Sampling, generate
from mobillama_v.prefix_cache import PrefixCache
from mobillama_v.prompt import Encoded


class Letters:
    eos_id = 2

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(33 + i) for i in ids)


def prompt(ids: list[int]) -> Prompt:
    encoded = Encoded()
    encoded.add(ids)
    return Prompt(encoded)


def both(shape: str, bits: int) -> tuple[NumpyEngine, TorchEngine]:
    spec, model = SHAPES[shape], Plain(SHAPES[shape], seed=5)
    packed = pack(model.language_model, model.lm_head, spec, bits)
    return NumpyEngine(NumpyModel(packed)), TorchEngine(meant(model, bits))


@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_torch(shape: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """After prompts of unlike lengths, and after tokens that follow them; queries in several pieces too."""
    monkeypatch.setattr(numpy_decoder, "_QUERIES", 16)
    ours, theirs = both(shape, bits)
    chance = np.random.default_rng(1)
    prompts = [prompt(chance.integers(3, 64, length).tolist()) for length in (40, 7, 22)]
    answers = []
    for engine in (ours, theirs):
        sequences, logits = engine.prefill(prompts, 4)
        answers.append([logits, engine.decode(sequences, [5, 9, 60]), engine.decode(sequences[::-1], [1, 2, 3])])
    for mine, expected in zip(*answers, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_generation_is_that_of_torch() -> None:
    ours, theirs = both("shared", 16)
    prompts = [prompt(list(range(3, 3 + length))) for length in (40, 7, 22)]
    expected, got = (generate(each, Letters(), prompts, Sampling(max_new_tokens=40)) for each in (theirs, ours))
    assert [(each.ids, each.finish_reason) for each in got] == [(each.ids, each.finish_reason) for each in expected]
    assert len({tuple(each.ids) for each in got}) == 3
    found, scores = (each.score(prompts, [5, 9, 60, 2]) for each in (ours, theirs))
    np.testing.assert_allclose(found.log_probs, scores.log_probs, rtol=0, atol=1e-4)


def test_what_prompts_have_in_common_is_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, reuse = both("grouped", 8)[0], PrefixCache(2)
    torch.manual_seed(0)
    shared, ends = torch.randn(30, 96), [torch.randn(length, 96) for length in (3, 9)]
    prompts = [torch.cat((shared, end)).numpy() for end in ends]
    asked = [Prompt(Encoded([0] * len(each), [], [True] * len(each)), [each]) for each in prompts]
    alone = [engine.prefill([each], 1)[1][0] for each in asked]
    run: list[int] = []
    original = engine.model.forward
    monkeypatch.setattr(
        engine.model, "forward", lambda s, inputs: (run.append(sum(map(len, inputs))), original(s, inputs))[1]
    )
    for positions in ([33, 9], [1 + 1]):  # then only the last position of each, which gives its logits
        np.testing.assert_allclose(engine.prefill(asked, 1, reuse)[1], np.stack(alone), rtol=0, atol=1e-4)
        assert run == positions
        run.clear()


def test_what_cannot_be_is_refused_and_leaves_nothing_behind() -> None:
    model = both("shared", 8)[0].model
    source, short = NumpySequence(model, 40), NumpySequence(model, 10)
    model.forward([source], [np.arange(20)])
    for target, length in ((short, 11), (source, 5), (NumpySequence(model, 40), 21)):
        with pytest.raises(RuntimeError):
            target.copy(source, length)
    short.copy(source, 10)
    with pytest.raises(RuntimeError, match="has room for 10 positions and needs 11"):
        model.forward([source, short], [np.array([1]), np.array([1])])
    assert (source.length, short.length) == (20, 10)
    with pytest.raises(IndexError):
        model.forward([source], [np.array([97])])
    assert source.length == 20
    with pytest.raises(RuntimeError, match="longer than the context"):
        NumpySequence(model, 301)
