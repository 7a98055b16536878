"""Draw the tokens to hide of all rows of a batch at once, by hashes of (seed, sample index, position).

Shapes: B rows, T positions of a row. Whatever else is in the batch, a row's draw is the same.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.data.shuffle import mix, mix_32_bits

# How targets are drawn. 1: row by row, from a generator of each row's own. 2: single tokens of all rows at once, by
# hashes; words, spans and diffusion as 1. 3: these at once too; tokens as 2. A checkpoint names its version, and a
# resume goes on with it.
MASK_VERSION = 3
LARGEST = np.uint32(2**32 - 1)
_LONG = 512  # tokens of a row from which on it pays to sort only the hashes that may be chosen
_ORDER = np.uint32(0x85EBCA6B)  # added to the hash of a unit's first token, to hash it again

Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint32]


def position_hashes(seed_hash: NDArray[np.uint64], samples: Ints, length: int) -> Hashes:
    """Return a hash of each of `length` positions for each sample (B,): (B, length), distinct within a row."""
    keys = mix(samples.view(np.uint64) + seed_hash)
    factors, offsets = (keys >> np.uint64(32)).astype(np.uint32) | np.uint32(1), keys.astype(np.uint32)
    hashes = np.arange(length, dtype=np.uint32) * factors[:, None]
    hashes += offsets[:, None]
    return mix_32_bits(hashes)


def smallest(hashes: Hashes, maskable: Flags, counts: Ints, bounds: Hashes) -> Ints:
    """Return the flat positions of the `counts` (B,) smallest maskable hashes of each row, in order.

    In long rows only the hashes up to `bounds` (B,) are sorted, unless a row has too few of them.
    """
    n_rows, length = hashes.shape
    if length >= _LONG:
        below = hashes <= bounds[:, None]
        below &= maskable
        sizes = row_sums(below)
        if (sizes >= counts).all():
            candidates = below.ravel().nonzero()[0]
            values = hashes.take(candidates)
            return candidates.take((values <= _last_of(values, sizes, counts).repeat(sizes)).nonzero()[0])
    ordered = np.where(maskable, hashes, LARGEST)
    ordered.sort(axis=1)
    last = ordered[np.arange(n_rows), counts - 1]  # of a row without candidates: any
    return np.flatnonzero((hashes <= last[:, None]) & maskable)


@dataclass(frozen=True)
class Units:
    """Words or spans of maskable tokens, those of all rows in order of position."""

    tokens: Ints  # (maskable,) flat position of each token
    firsts: Ints  # (units,) index in `tokens` of each unit's first token
    sizes: Ints  # (units,) tokens of each
    per_row: Ints  # (B,) units of each row
    length: int  # T

    @staticmethod
    def between(begins: Flags, maskable: Flags) -> "Units":
        """Return the units that begin at `begins`, and where a row does; both (B, T)."""
        tokens = maskable.ravel().nonzero()[0]
        begins = begins & maskable
        firsts = begins.ravel().take(tokens).nonzero()[0]
        return Units(tokens, firsts, np.diff(firsts, append=len(tokens)), row_sums(begins), maskable.shape[1])

    def hashes(self, of_positions: Hashes) -> Hashes:
        """Return a hash of each unit, (units,), distinct within a row, from those of positions (B, T)."""
        return mix_32_bits(of_positions.take(self.tokens.take(self.firsts)) + _ORDER)


def smallest_units(units: Units, hashes: Hashes, counts: Ints, bounds: Hashes) -> tuple[Ints, Ints]:
    """Return the flat positions of the tokens of chosen units, in order, and their number in each row, (B,).

    A row takes its units in the order of their hashes (units,) until the next has more tokens than are left of its
    `counts` (B,). A first unit that has more than that is cut to so many tokens. Only the hashes up to `bounds` (B,)
    are sorted, unless a row may need more.
    """
    if not len(units.firsts):
        return units.tokens, np.zeros_like(counts)
    row = np.arange(len(counts)).repeat(units.per_row)
    found = (hashes <= bounds.take(row)).nonzero()[0]
    too_few = _sums_by_row(units.sizes.take(found), row.take(found), len(counts)) <= counts
    if (too_few & (np.bincount(row.take(found), minlength=len(counts)) < units.per_row)).any():
        found = np.arange(len(row))
    row, sizes = row.take(found), units.sizes.take(found)
    bits = np.uint64(units.length.bit_length())  # with 32 for a hash they leave 2^32 / T rows, more than memory holds
    keys = ((row.astype(np.uint64) << np.uint64(32) | hashes.take(found)) << bits) | sizes.astype(np.uint64)
    ordered = np.sort(keys)
    total = (ordered & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64).cumsum()
    per_row = np.bincount(row, minlength=len(counts))
    ends = per_row.cumsum()
    starts = ends - per_row
    before = np.where(starts > 0, total.take(starts - 1, mode="clip"), 0)
    fits = np.searchsorted(total, before + counts, side="right").clip(starts + 1, np.maximum(ends, 1))
    chosen = (keys <= ordered.take(fits - 1, mode="clip").repeat(per_row)).nonzero()[0]
    row = row.take(chosen)
    sizes = np.minimum(sizes.take(chosen), counts.take(row))
    shift = units.firsts.take(found.take(chosen)) + sizes - np.cumsum(sizes, dtype=np.int64)
    positions = units.tokens.take(np.arange(int(sizes.sum())) + shift.repeat(sizes))
    return positions, _sums_by_row(sizes, row, len(counts))


def smallest_of_pieces(hashes: Hashes, sizes: Ints, counts: Ints) -> Flags:
    """Return which of the hashes (tokens,) are among the smallest of their piece, bool (tokens,).

    `sizes` (pieces,) hashes belong to each piece, one after the other, and `counts` (pieces,) of them are chosen, at
    least one of each.
    """
    keys = (np.arange(len(sizes), dtype=np.uint64) << np.uint64(32)).repeat(sizes)
    keys |= hashes
    last = np.sort(keys).take(sizes.cumsum() - sizes + counts - 1)
    chosen: Flags = keys <= last.repeat(sizes)
    return chosen


def row_sums(flags: Flags) -> Ints:
    """Return how many of each row's flags (B, T) are set, (B,), in two thirds of the time of their sum."""
    return flags.view(np.uint8).sum(axis=1, dtype=np.uint32).astype(np.int64)


def _sums_by_row(values: Ints, row: Ints, n_rows: int) -> Ints:
    """Return the sum of the values of each row, (B,), from values and their rows, in order of rows."""
    ends = np.bincount(row, minlength=n_rows).cumsum()
    totals = np.concatenate([[0], values.cumsum()])
    return np.diff(totals.take(ends), prepend=0)


def _last_of(values: Hashes, sizes: Ints, counts: Ints) -> Hashes:
    """Return the largest of the `counts` (B,) smallest values of each row, (B,).

    The values of a row follow those of the row before, `sizes` (B,) of them.
    """
    width = max(1, int(sizes.max()))
    rows = np.arange(len(sizes))
    ordered = np.full((len(sizes), width), LARGEST)
    slot = np.arange(len(values))
    slot += (rows * width + sizes - sizes.cumsum()).repeat(sizes)
    ordered.reshape(-1)[slot] = values
    ordered.sort(axis=1)
    return ordered[rows, counts - 1]
