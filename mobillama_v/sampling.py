"""How the tokens of an answer are chosen: what a caller may ask for, penalties, and the choice itself.

Shapes: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mobillama_v.errors import CheckpointError
from mobillama_v.fields import Limit, check, check_types, shown

Array: TypeAlias = "np.ndarray[Any, Any]"


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen and when to stop. Temperature 0 is greedy; ``stop`` strings are not part of the text.

    The token during which ``max_seconds`` pass, prompt included, is the last one. A ``seed`` below 0 is as none: many
    clients send -1 for it. ``repetition_penalty`` above 1 makes tokens that the answer has already less likely (arXiv
    1909.05858), and no run of ``no_repeat_ngram`` tokens comes twice in an answer (0: it may). Both look at the answer
    alone, for it may repeat the question.

    Raises:
        ConfigError: a value is of another type, or out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_seconds: Limit = math.inf
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    top_log_probs: int | None = None
    """Report each token's probability, and those of so many of the likeliest tokens in its place; None: do not."""

    def __post_init__(self) -> None:
        check_types(self)
        check(self.max_new_tokens >= 1, f"max_new_tokens must be 1 or more, not {shown(self.max_new_tokens)}.")
        check(self.temperature >= 0, f"temperature must be 0 (greedy) or positive, not {self.temperature}.")
        check(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, not {self.top_p}.")
        check("" not in self.stop, "a stop string is empty; leave it out.")
        check(self.max_seconds > 0, f"max_seconds must be above 0, not {self.max_seconds}.")
        penalty, ngram = self.repetition_penalty, self.no_repeat_ngram
        check(0.1 <= penalty <= 10, f"repetition_penalty must be from 0.1 to 10, not {penalty}.")
        check(ngram >= 0, f"no_repeat_ngram must be 0 (off) or more, not {shown(ngram)}.")
        top = self.top_log_probs
        check(top is None or top >= 0, f"top_log_probs must be 0 or more, or None, not {shown(top)}.")


class TokenLogProb(NamedTuple):
    """A token of an answer, the natural logarithm of its probability, and the likeliest tokens with theirs."""

    token: int
    log_prob: float
    top: tuple[tuple[int, float], ...]


def check_finite(numbers: Any) -> None:
    """Refuse what a model computed, an array of numpy's or torch's, unless all of its numbers are finite.

    Raises:
        CheckpointError: they are not.
    """
    with np.errstate(invalid="ignore"):
        finite = bool((numbers - numbers == 0).all())
    if not finite:
        raise CheckpointError(
            "the model computed numbers that are not finite: its weights are damaged, or too large for the number type "
            "that it runs in; copy its folder again, or choose another type or another number of bits."
        )


def random_for(sampling: Sampling) -> np.random.Generator | None:
    """What makes the random numbers of one call; None where none are needed.

    numpy imports its generators when it is first asked for one.
    """
    if sampling.temperature == 0:
        return None
    seed = sampling.seed
    return np.random.default_rng(None if seed is None or seed < 0 else seed)


def penalize(logits: Array, answers: Sequence[list[int]], sampling: Sampling) -> Array:
    """Logits [B,V] for the next tokens of ``answers``, changed as ``sampling`` asks against repetition."""
    penalty, size = sampling.repetition_penalty, sampling.no_repeat_ngram
    if penalty == 1 and not size:
        return logits
    logits = logits.copy()
    for row, ids in zip(logits, answers, strict=True):
        seen = np.unique(np.asarray(ids, np.int64))
        with np.errstate(over="ignore"):
            changed = np.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
        row[seen] = np.clip(changed, np.finfo(row.dtype).min, np.finfo(row.dtype).max)
        if 0 < size <= len(ids):
            ends = [i for i in range(size - 1, len(ids)) if ids[i - size + 1 : i] == ids[len(ids) - size + 1 :]]
            row[[ids[i] for i in ends]] = -np.inf
    return logits


def sample(logits: Array, sampling: Sampling, random: np.random.Generator | None) -> list[int]:
    """Choose one token for each row of logits [B,V].

    The likeliest where the temperature is 0, else at random within the smallest set of mass ``top_p`` (nucleus
    sampling, arXiv 1904.09751).
    """
    if sampling.temperature == 0 or random is None:
        return logits.argmax(-1).tolist()
    peaks = logits.max(-1, keepdims=True).astype(np.float64)
    logits = np.where(np.isneginf(peaks), 0, logits)  # no_repeat_ngram leaves none: all are the same
    shifted = logits - np.where(np.isneginf(peaks), 0, peaks)  # first: a tiny temperature makes huge numbers
    with np.errstate(over="ignore"):
        powers = np.exp(shifted / sampling.temperature)
    return [_choose(row / row.sum(), sampling.top_p, random.random()) for row in powers]


def _choose(shares: Array, top_p: float, at: float) -> int:
    """The token that stands at the share ``at`` of the smallest set of mass ``top_p``, the likeliest first."""
    # All that are rarer than this have less than 1 - top_p together, and need not be sorted.
    likely = np.flatnonzero(shares >= min((1 - top_p) / len(shares), shares.max()))
    order = likely[np.argsort(-shares[likely], kind="stable")]
    sums = shares[order].cumsum()
    inside = 1 + int((sums[:-1] < top_p).sum())  # the likeliest is always inside
    return int(order[min(sums[:inside].searchsorted(at * sums[inside - 1], "right"), inside - 1)])


def log_prob(logits: Array, token: int, count: int) -> TokenLogProb:
    """How likely a token is by the model's own logits [V], before temperature and the like; none less than -9999."""
    shifted = logits.astype(np.float64) - logits.max()
    log_probs = np.maximum(shifted - np.log(np.exp(shifted).sum()), -9999.0)
    top = np.argsort(-log_probs, kind="stable")[:count]
    return TokenLogProb(token, float(log_probs[token]), tuple((int(each), float(log_probs[each])) for each in top))
