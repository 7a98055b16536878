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
_LONG_PIECE = 128  # mean tokens of a piece from which on a partition of each is quicker than one sort of all
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


def smallest(hashes: Hashes, maskable: Flags, counts: Ints) -> Ints:
    """Return the flat positions of the `counts` (B,) smallest maskable hashes of each row, in order."""
    last_index = np.maximum(counts - 1, 0)  # a row without candidates: any
    selected = hashes | (maskable.view(np.uint8) - np.uint32(1))  # LARGEST where a token is not maskable
    most = int(last_index.max())
    selected.partition(most, axis=1)  # for several indices at once it would take longer than a sort
    last = np.sort(selected[:, : most + 1], axis=1)[np.arange(len(counts)), last_index]
    chosen = hashes <= last[:, None]
    chosen &= maskable
    return chosen.ravel().nonzero()[0]


@dataclass(frozen=True)
class Units:
    """Words or spans of maskable tokens, those of all rows in order of position."""

    firsts: Ints  # (units,) flat position of each unit's first token
    sizes: Ints  # (units,) tokens of each; they follow the first
    per_row: Ints  # (B,) units of each row
    length: int  # T

    @staticmethod
    def between(begins: Flags, maskable: Flags) -> "Units":
        """Return the units that begin at `begins`, where a row does and after tokens that are not maskable.

        Both are (B, T), and `begins` is changed in place.
        """
        begins[:, 0] = True
        flat, inside = begins.ravel(), maskable.ravel()
        outside = ~inside
        flat[1:] |= outside[:-1]
        lasts = np.ones_like(flat)
        np.logical_or(flat[1:], outside[1:], out=lasts[:-1])
        lasts &= inside
        flat &= inside
        firsts = flat.nonzero()[0]
        sizes = lasts.nonzero()[0]
        sizes -= firsts
        sizes += 1
        return Units(firsts, sizes, row_sums(begins), maskable.shape[1])

    def hashes(self, of_positions: Hashes) -> Hashes:
        """Return a hash of each unit, (units,), distinct within a row, from those of positions (B, T)."""
        return mix_32_bits(of_positions.take(self.firsts) + _ORDER)


def smallest_units(units: Units, hashes: Hashes, counts: Ints, bounds: Hashes) -> tuple[Ints, Ints]:
    """Return the flat positions of the tokens of chosen units, in order, and their number in each row, (B,).

    A row takes its units in the order of their hashes (units,) until the next has more tokens than are left of its
    `counts` (B,). A first unit that has more than that is cut to so many tokens. Only the hashes up to `bounds` (B,)
    are sorted, unless a row may need more.
    """
    if not len(units.firsts):
        return units.firsts, np.zeros_like(counts)
    row_ends = units.per_row.cumsum()
    found = (hashes <= bounds.repeat(units.per_row)).nonzero()[0]
    sizes, ends = units.sizes.take(found), np.searchsorted(found, row_ends)
    per_row = _differences(ends)
    if ((_sums(sizes, ends) <= counts) & (per_row < units.per_row)).any():
        found, sizes, ends, per_row = np.arange(len(hashes)), units.sizes, row_ends, units.per_row
    starts = ends - per_row
    bits = np.uint64(units.length.bit_length())  # with 32 for a hash they leave 2^32 / T rows, more than memory holds
    keys = (np.arange(len(counts), dtype=np.uint64) << np.uint64(32)).repeat(per_row)
    keys |= hashes.take(found)
    keys <<= bits
    keys |= sizes.view(np.uint64)
    ordered = np.sort(keys)
    total = np.zeros(len(keys) + 1, np.int64)
    (ordered & ((np.uint64(1) << bits) - np.uint64(1))).view(np.int64).cumsum(out=total[1:])
    last = np.searchsorted(total, total.take(starts) + counts, side="right") - 2  # the last unit that fits
    last = np.maximum(last, starts)
    np.minimum(last, np.maximum(ends - 1, 0), out=last)
    chosen = (keys <= ordered.take(last).repeat(per_row)).nonzero()[0]
    ends = np.searchsorted(chosen, ends)
    sizes = np.minimum(sizes.take(chosen), counts.repeat(_differences(ends)))
    shift = units.firsts.take(found.take(chosen))
    shift += sizes
    shift -= sizes.cumsum()
    positions = shift.repeat(sizes)
    positions += np.arange(len(positions))
    return positions, _sums(sizes, ends)


def smallest_of_pieces(hashes: Hashes, sizes: Ints, counts: Ints) -> Flags:
    """Return which of the hashes (tokens,) are among the smallest of their piece, bool (tokens,).

    `sizes` (pieces,) hashes belong to each piece, one after the other, and `counts` (pieces,) of them are chosen, at
    least one of each.
    """
    ends = sizes.cumsum()
    starts = ends - sizes
    if len(hashes) >= _LONG_PIECE * len(sizes):
        parts = hashes.copy()
        for start, end, index in zip(starts.tolist(), ends.tolist(), (counts - 1).tolist(), strict=True):
            parts[start:end].partition(index)
        return np.less_equal(hashes, parts.take(starts + counts - 1).repeat(sizes))
    keys = (np.arange(len(sizes), dtype=np.uint64) << np.uint64(32)).repeat(sizes)
    keys |= hashes
    return np.less_equal(keys, np.sort(keys).take(starts + counts - 1).repeat(sizes))


def row_sums(flags: Flags) -> Ints:
    """Return how many of each row's flags (B, T) are set, (B,), in two thirds of the time of their sum."""
    return flags.view(np.uint8).sum(axis=1, dtype=np.uint32).astype(np.int64)


def _differences(ends: Ints) -> Ints:
    """Return the number of items of each row, (B,), from the end of each row's items."""
    numbers = ends.copy()
    numbers[1:] -= ends[:-1]
    return numbers


def _sums(values: Ints, ends: Ints) -> Ints:
    """Return the sum of the values of each row, (B,), where those of a row end at its `ends` (B,)."""
    totals = np.zeros(len(values) + 1, np.int64)
    values.cumsum(out=totals[1:])
    return _differences(totals.take(ends))
