"""The choice of tokens: greedy, in proportion, within the nucleus, repeatable."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mobillama_v.errors import ConfigError
from mobillama_v.sampling import Sampling, penalize, sample

FOUR = np.log(np.array([[0.15, 0.5, 0.05, 0.3]], np.float32))


def draws(count: int, **settings: float) -> np.ndarray:
    tokens = sample(FOUR.repeat(count, 0), Sampling(**settings), np.random.default_rng(0))
    return np.bincount(tokens, minlength=4) / count


def test_greedy_is_the_likeliest() -> None:
    assert sample(FOUR, Sampling(), np.random.default_rng(0)) == [1]
    assert draws(1000, temperature=1.0, top_p=1e-9).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.15, 0.5, 0.05, 0.3]),
        (1.0, 0.7, [0, 0.5 / 0.8, 0, 0.3 / 0.8]),
        (1.0, 0.81, [0.15 / 0.95, 0.5 / 0.95, 0, 0.3 / 0.95]),
        (0.5, 1.0, [0.0225 / 0.365, 0.25 / 0.365, 0.0025 / 0.365, 0.09 / 0.365]),
    ],
)
def test_shares(temperature: float, top_p: float, expected: list[float]) -> None:
    found = draws(20_000, temperature=temperature, top_p=top_p)
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.015)  # four standard errors
    assert all((share == 0) == (wanted == 0) for share, wanted in zip(found, expected, strict=True))


def test_the_nucleus_is_found_among_many() -> None:
    """With as many tokens as models have, against a plain sort."""
    random = np.random.default_rng(1)
    logits = 3 * random.standard_normal((4, 32_000)).astype(np.float32)
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(-1, keepdims=True)
    for top_p in (0.3, 0.9, 0.999):
        for row, share in zip(logits, shares, strict=True):
            order = np.argsort(-share, kind="stable")
            inside = set(order[: 1 + int((share[order].cumsum() < top_p).sum())].tolist())
            chosen = set(sample(row[None].repeat(50, 0), Sampling(temperature=1.0, top_p=top_p), random))
            assert chosen <= inside


def test_a_seed_repeats_and_none_does_not() -> None:
    many = FOUR.repeat(64, 0)
    runs = [sample(many, Sampling(temperature=1.0), np.random.default_rng(seed)) for seed in (1, 1, 2, None, None)]
    assert runs[0] == runs[1] != runs[2] and runs[3] != runs[4]


@pytest.mark.parametrize(("penalty", "size"), [(1.3, 0), (0.7, 0), (1.0, 1), (1.0, 2), (1.0, 3), (1.8, 2)])
def test_repetition_is_penalized_as_transformers_does(penalty: float, size: int) -> None:
    """With the answers alone as what was said."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    random = np.random.default_rng(2)
    logits = random.standard_normal((3, 6)).astype(np.float32)
    answers = [random.integers(0, 6, length).tolist() for length in (9, 9, 9)]
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(answers), torch.tensor(logits))
    if size:
        wanted = NoRepeatNGramLogitsProcessor(size)(torch.tensor(answers), wanted)
    before = logits.copy()
    found = penalize(logits, answers, Sampling(repetition_penalty=penalty, no_repeat_ngram=size))
    np.testing.assert_array_equal(found, wanted.numpy())
    np.testing.assert_array_equal(logits, before)


def test_answers_without_words_and_rows_apart() -> None:
    asked = Sampling(repetition_penalty=2.0, no_repeat_ngram=2)
    np.testing.assert_array_equal(penalize(FOUR, [[]], asked), FOUR)
    both = penalize(FOUR.repeat(2, 0), [[1], [3]], asked)
    assert sample(both, asked, np.random.default_rng(0)) == [3, 1]


@pytest.mark.parametrize("values", [{"repetition_penalty": 0.0}, {"repetition_penalty": 1e9}, {"no_repeat_ngram": -1}])
def test_penalties_out_of_range(values: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        Sampling(**values)


def test_penalties_at_the_edge_leave_a_token_to_choose() -> None:
    asked = Sampling(temperature=1.0, repetition_penalty=10.0, no_repeat_ngram=1)
    used = penalize(FOUR, [[0, 1, 2, 3]], asked)
    assert sample(used, asked, np.random.default_rng(0))[0] in range(4)
    assert sample(used, Sampling(), None)[0] in range(4)
    steep = np.array([[-3e38, 3e38, 0.0]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        for penalty in (0.1, 10.0):
            assert np.isfinite(penalize(steep, [[0, 1]], Sampling(repetition_penalty=penalty))).all()


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e308])
@pytest.mark.parametrize("top_p", [5e-324, 0.5, 1.0])
def test_numbers_at_the_edge_of_a_float_choose_a_token(temperature: float, top_p: float) -> None:
    sampling = Sampling(temperature=temperature, top_p=top_p, seed=-1)
    steep = np.array([[-3e38, 3e38, 0.0]], np.float32)
    for logits in (FOUR, np.zeros((1, 3), np.float32), steep):
        with np.errstate(all="raise", under="ignore"):
            (token,) = sample(logits, sampling, np.random.default_rng(0))
        assert 0 <= token < logits.shape[1]
        if temperature < 1:
            assert logits[0, token] == logits.max()


@pytest.mark.parametrize("field", [each.name for each in dataclasses.fields(Sampling)])
@pytest.mark.parametrize(
    "value", ["1", True, float("nan"), 10**400, -(10**400), [1], {}, ("",), ("\ud800",), (1,), b"x"]
)
def test_a_value_that_cannot_be_is_refused_by_name(field: str, value: object) -> None:
    if field == "seed" and isinstance(value, int) and not isinstance(value, bool):
        Sampling(seed=value)  # of any size
    elif field in ("max_new_tokens", "no_repeat_ngram", "top_log_probs") and value == 10**400:
        Sampling(**{field: value})  # the context or the vocabulary ends it
    else:
        with pytest.raises(ConfigError, match=rf"^(a )?{field.split('_')[0]}"):
            Sampling(**{field: value})
