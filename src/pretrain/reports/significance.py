"""Whether a difference between a few runs is more than the chance of their seeds: Student's t and Welch's test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """The difference of two means."""

    value: float  # mean of the group less that of the baseline
    interval: Interval | None  # None: a group has fewer than two values, or no group's values differ
    p: float | None  # two-sided, of Welch's test; None as above


def interval_of_mean(values: Sequence[float], confidence: float) -> Interval | None:
    """Return the interval of Student's t around the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = quantile((1 + confidence) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def welch(values: Sequence[float], baseline: Sequence[float], confidence: float) -> Difference:
    """Return the difference of the means, its interval and p-value; the groups may differ in size and variance.

    Equal values within both groups, as of an accuracy over few texts, tell nothing about the chance of the seeds.
    Source: Welch 1947, https://doi.org/10.1093/biomet/34.1-2.28.
    """
    difference = fmean(values) - fmean(baseline)
    if min(len(values), len(baseline)) < 2:
        return Difference(difference, None, None)
    parts = [(stdev(each) ** 2 / len(each), len(each) - 1) for each in (values, baseline)]
    variance = sum(part for part, _ in parts)
    if variance == 0.0:
        return Difference(difference, None, None)
    freedom = variance**2 / sum(part**2 / n for part, n in parts)
    half = quantile((1 + confidence) / 2, freedom) * math.sqrt(variance)
    p = two_sided(difference / math.sqrt(variance), freedom)
    return Difference(difference, (difference - half, difference + half), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values of several tests together: the chance that any of them errs stays below each.

    Source: Holm 1979, https://www.jstor.org/stable/4615733.
    """
    order = sorted(range(len(p_values)), key=lambda position: p_values[position])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, position in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = least
    return adjusted


def two_sided(t: float, freedom: float) -> float:
    """Return the chance of a value of Student's t at least as far from 0, for `freedom` degrees of freedom above 0."""
    return _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def quantile(share: float, freedom: float) -> float:
    """Return the value of Student's t that `share` (0.5 to below 1) of the distribution lie below, by bisection."""
    tail, high = 2 * (1 - share), 1.0
    while two_sided(high, freedom) > tail:
        high *= 2
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, freedom) > tail else (low, middle)
        if high - low <= 1e-13 * high:
            break
    return (low + high) / 2


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularized incomplete beta function I_x(a, b), of a continued fraction.

    Source: https://dlmf.nist.gov/8.17, equations 8.17.4 and 8.17.22.
    """
    if x <= 0.0 or x >= 1.0:
        return float(x >= 1.0)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1.0 - _incomplete_beta(b, a, 1 - x)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(scale) / a * _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction 1 / (1 + d1 / (1 + d2 / ...)), from its start by the modified method of Lentz."""
    tiny = 1e-300
    value, above, below = tiny, tiny, 0.0
    for n in range(500):
        step = 1.0 if n == 0 else _coefficient(n, a, b, x)
        below = 1.0 / (1.0 + step * below or tiny)
        above = 1.0 + step / above or tiny
        value *= above * below
        if n > 0 and abs(above * below - 1.0) < 1e-15:
            break
    return value


def _coefficient(n: int, a: float, b: float, x: float) -> float:
    m, is_odd = divmod(n, 2)
    if is_odd:
        return -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
    return m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
