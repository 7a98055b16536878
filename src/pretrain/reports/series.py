"""A curve of any length in a few hundred bins: each keeps its lowest, mean and highest value, so that spikes stay."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

BINS = 400  # of a curve: more than a chart has pixels to show


@dataclass(frozen=True)
class Point:
    """A position of a curve: one value, or the lowest, mean and highest of several."""

    x: float
    low: float
    mean: float
    high: float


@dataclass
class _Bin:
    first: float
    last: float
    low: float
    high: float
    total: float
    count: int

    def merge(self, other: _Bin) -> None:
        self.last, self.low, self.high = other.last, min(self.low, other.low), max(self.high, other.high)
        self.total, self.count = self.total + other.total, self.count + other.count


class Series:
    """A curve that is read value by value, in the order of x (from 0), in bounded memory.

    A bin is as wide as a power of two; whenever there are more than `bins`, the width doubles.
    """

    def __init__(self, bins: int = BINS) -> None:
        self.bins = bins
        self.left_out = 0  # values that are not finite
        self.last: tuple[float, float] | None = None  # the newest position and value
        self._width = 1.0
        self._number = -1.0  # of the newest bin
        self._found: list[_Bin] = []

    @classmethod
    def of(cls, points: Iterable[tuple[float, float]], bins: int = BINS) -> Series:
        """Return the series of these points (x, y)."""
        series = cls(bins)
        for x, y in points:
            series.add(x, y)
        return series

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, x: float, y: float) -> None:
        """Add a value; one that is not finite is only counted."""
        if not math.isfinite(y):
            self.left_out += 1
            return
        self.last = (x, y)
        new, number = _Bin(x, x, y, y, y, 1), x // self._width
        if number == self._number:
            self._found[-1].merge(new)
            return
        self._found.append(new)
        self._number = number
        while len(self._found) > self.bins:
            self._double()

    def _double(self) -> None:
        self._width *= 2
        merged = self._found[:1]
        for each in self._found[1:]:
            if each.first // self._width == merged[-1].first // self._width:
                merged[-1].merge(each)
            else:
                merged.append(each)
        self._found = merged
        self._number = merged[-1].first // self._width

    def points(self) -> list[Point]:
        """Return the bins from left to right, each at the middle of the values in it."""
        return [Point((b.first + b.last) / 2, b.low, b.total / b.count, b.high) for b in self._found]

    def first_value(self) -> float:
        """Return the mean of the first bin."""
        return self._found[0].total / self._found[0].count

    def extremes(self) -> tuple[float, float]:
        """Return the lowest and the highest value."""
        return min(b.low for b in self._found), max(b.high for b in self._found)


class Scatter(Series):
    """Points at any x in any order, none of them merged; for up to a few thousand."""

    def add(self, x: float, y: float) -> None:
        """Add a point; one that is not finite is only counted."""
        if not math.isfinite(y):
            self.left_out += 1
            return
        self.last = (x, y)
        self._found.append(_Bin(x, x, y, y, y, 1))
