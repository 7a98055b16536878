"""What is drawn for all rows at once is what a loop over the rows draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.shuffle import hashed_key
from pretrain.objectives.hashed_draws import LARGEST, Units, position_hashes, smallest_of_pieces, smallest_units


def units_of_row(begins: np.ndarray, maskable: np.ndarray) -> list[list[int]]:
    """Return the positions of each unit of a row."""
    found: list[list[int]] = []
    for position in np.flatnonzero(maskable).tolist():
        if begins[position]:
            found.append([])
        found[-1].append(position)
    return found


def chosen_of_row(units: list[list[int]], hashes: np.ndarray, count: int) -> list[int]:
    """Return the positions of the units that a row hides, one unit after the other."""
    found: list[int] = []
    for number in np.argsort(hashes).tolist():
        if found and len(found) + len(units[number]) > count:
            break
        found += units[number][:count]
        if len(found) >= count:
            break
    return sorted(found)


@pytest.mark.slow
@given(
    n_rows=st.integers(1, 5),
    length=st.integers(1, 80),
    shares=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1)),
    tight=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=300, deadline=None)
def test_units_of_all_rows_are_those_of_each_row(
    n_rows: int, length: int, shares: tuple[float, float, float], tight: float, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    maskable, begins = (draw.random((n_rows, length)) < share for share in shares[:2])
    begins[:, 0] = True
    begins[:, 1:] |= ~maskable[:, :-1]
    n_maskable = maskable.sum(1)
    counts = np.minimum(np.maximum(np.rint(shares[2] * n_maskable), 1), n_maskable).astype(np.int64)
    units = Units.between(begins, maskable)
    hashes = units.hashes(position_hashes(hashed_key((seed,)), np.arange(n_rows), length))
    bounds = np.full(n_rows, int(tight * float(LARGEST)), np.uint32)  # also such that leave out what is needed
    positions, taken = smallest_units(units, hashes, counts, bounds)
    ends, expected = units.per_row.cumsum(), []
    for row in range(n_rows):
        own = hashes[ends[row] - units.per_row[row] : ends[row]]
        chosen = chosen_of_row(units_of_row(begins[row], maskable[row]), own, int(counts[row]))
        expected += [row * length + position for position in chosen]
        assert taken[row] == len(chosen)
    assert positions.tolist() == expected


@pytest.mark.slow
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=20), seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_the_smallest_of_each_piece_are_chosen(sizes: list[int], seed: int) -> None:
    draw = np.random.default_rng(seed)
    hashes = draw.permutation(2**16)[: sum(sizes)].astype(np.uint32)
    n = np.array(sizes)
    counts = draw.integers(1, n + 1)
    chosen = smallest_of_pieces(hashes, n, counts)
    for start, size, count in zip((n.cumsum() - n).tolist(), sizes, counts.tolist(), strict=True):
        piece = hashes[start : start + size]
        assert np.array_equal(chosen[start : start + size], piece <= np.sort(piece)[count - 1])


@pytest.mark.parametrize("samples", [[0], [2**62, 2**62 + 1], [5, 3, 5]])
def test_hashes_of_a_row_are_distinct_and_depend_on_its_sample_only(samples: list[int]) -> None:
    key = hashed_key((7,))
    together = position_hashes(key, np.array(samples), 5000)
    for row, sample in enumerate(samples):
        assert len(np.unique(together[row])) == 5000
        assert np.array_equal(together[row], position_hashes(key, np.array([sample]), 5000)[0])
