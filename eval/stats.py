"""How sure a score is.

An interval is Wilson's (1927), which also says something where every answer is right, or none. Its number of trials is
that of independent questions with the same variance. Answers about one picture go right or wrong together, so the
variance is taken over images (Cochran 1977, chapter 6): counting questions would make intervals of GQA (31 questions an
image) too narrow. A question without an image is alone.

The difference of two runs is a percentile bootstrap (Efron and Tibshirani 1993, chapter 13) with a fixed seed, which
draws images, for both runs the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any, Protocol, TypeAlias

import numpy as np

from mobillama_v.eval.benchmarks import registry

DRAWS, SEED, CONFIDENCE = 2000, 0, 0.95
INTERVALS = "95 % Wilson intervals, variance over images"
_NONE = 1e-18  # a variance that is rounding alone
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_CHUNK = 200  # draws at a time, which bounds memory


class Row(Protocol):
    """What is needed of a judged question."""

    @property
    def unit(self) -> str:
        """The images, or the question's own id."""
        ...

    @property
    def correct(self) -> float:
        """0 to 1."""
        ...

    @property
    def group(self) -> Mapping[str, str]:
        """The groups that it is in."""
        ...


Array: TypeAlias = "np.ndarray[Any, Any]"


def interval(benchmark: str, headline: float, rows: Sequence[Row]) -> tuple[float, float] | None:
    """The 95 % interval of a headline; None where the headline is no statistic of the rows that is known here."""
    chosen = headline_rows(benchmark, headline, rows)
    if not chosen:
        return None
    (parts,) = _strata(benchmark, [chosen])
    top = sum(part.top for part in parts)
    share, variance = headline / top, sum(part.variance() for part in parts) / top**2
    trials = share * (1 - share) / variance if variance > _NONE else sum(part.units for part in parts)
    low, high = wilson(share, trials)
    return top * low, top * high


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (0 to 1) of so many independent trials."""
    middle, whole = share + _Z**2 / (2 * trials), 1 + _Z**2 / trials
    spread = _Z * math.sqrt(share * (1 - share) / trials + (_Z / (2 * trials)) ** 2)
    return max(0.0, (middle - spread) / whole), min(1.0, (middle + spread) / whole)


def difference(benchmark: str, first: Sequence[Row], second: Sequence[Row]) -> tuple[float, tuple[float, float]]:
    """The second's score less the first's on the same questions in the same order, and its 95 % interval."""
    values = [statistic(benchmark, rows) for rows in (first, second)]
    a, b = _draws(benchmark, [first, second])
    return values[1] - values[0], _percentiles(b - a)


def statistic(benchmark: str, rows: Sequence[Row]) -> float:
    """Percent right, or the points of the benchmark's ``points_by``."""
    return sum(part.value(np.ones((1, part.units)))[0] for part in _strata(benchmark, [rows])[0])


def headline_rows(benchmark: str, headline: float, rows: Sequence[Row]) -> list[Row]:
    """The rows that a headline is a statistic of: all, or the benchmark's ``headline_group``."""
    candidates: list[list[Row]] = [list(rows)]
    if group := registry.find(benchmark).headline_group:
        candidates.append([row for row in rows if row.group.get(group[0]) == group[1]])
    for chosen in candidates:
        if chosen and math.isclose(statistic(benchmark, chosen), headline, rel_tol=1e-9, abs_tol=1e-6):
            return chosen
    return []


class _Stratum:
    """Sums over units that are drawn among themselves."""

    def __init__(self, rows: Sequence[Row], *, whole_units: bool) -> None:
        index: dict[str, int] = {}
        for row in rows:
            index.setdefault(row.unit, len(index))
        self.units, self._whole_units = len(index), whole_units
        self._right, self._asked, self._whole = np.zeros(self.units), np.zeros(self.units), np.ones(self.units)
        for row in rows:
            i = index[row.unit]
            self._right[i] += row.correct
            self._asked[i] += 1
            self._whole[i] = min(self._whole[i], row.correct)

    @property
    def top(self) -> float:
        """The best value."""
        return 200.0 if self._whole_units else 100.0

    def variance(self) -> float:
        """Of the statistic over units, to first order."""
        asked = self._asked.sum()
        parts = (self._right - self._right.sum() / asked * self._asked) / asked
        if self._whole_units:
            parts = parts + (self._whole - self._whole.mean()) / self.units
        return float(100**2 * (parts**2).sum())

    def value(self, weights: Array) -> Array:
        """The statistic [B] of units that were drawn ``weights`` [B,U] times."""
        found = 100 * (weights @ self._right) / np.maximum(weights @ self._asked, 1)
        if self._whole_units:
            found = found + 100 * (weights @ self._whole) / np.maximum(weights.sum(1), 1)
        return found


def _strata(benchmark: str, runs: Sequence[Sequence[Row]]) -> list[list[_Stratum]]:
    """Each run's strata: the values of ``points_by``, or everything."""
    group = registry.find(benchmark).points_by
    if not group:
        return [[_Stratum(rows, whole_units=False)] for rows in runs]
    names = list(dict.fromkeys(row.group[group] for row in runs[0]))
    return [
        [_Stratum([row for row in rows if row.group[group] == name], whole_units=True) for name in names]
        for rows in runs
    ]


def _draws(benchmark: str, runs: Sequence[Sequence[Row]]) -> list[Array]:
    """The statistic of each run [DRAWS] for the same drawn units."""
    random = np.random.default_rng(SEED)
    strata = _strata(benchmark, runs)
    totals = [np.zeros(DRAWS) for _ in runs]
    for parts in zip(*strata, strict=True):
        units = parts[0].units
        for start in range(0, DRAWS, _CHUNK):
            weights = random.multinomial(units, np.full(units, 1 / units), size=_CHUNK).astype(float)
            for total, part in zip(totals, parts, strict=True):
                total[start : start + _CHUNK] += part.value(weights)
    return totals


def _percentiles(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
