"""The shuffle: a bijection for every size, unbiased, equal for all ranks and in all releases."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from pretrain.data.shuffle import ORDER_VERSION, Shuffle, micro_batch_samples, mix, permute
from pretrain.errors import DataError


@pytest.mark.slow
@given(size=st.integers(1, 600), seed=st.integers(0, 2**64), epoch=st.integers(0, 2**40))
@settings(max_examples=150, deadline=None)
def test_every_row_is_drawn_once_per_epoch(size: int, seed: int, epoch: int) -> None:
    rows = Shuffle(size, seed)(np.arange(size) + epoch * size)
    assert_array_equal(np.sort(rows), np.arange(size))


@pytest.mark.parametrize("size", [10**12, 2**40 + 1, 2**62 + 12345, 2**63 - 1])
def test_large_sizes_need_no_memory_and_give_no_row_twice(size: int) -> None:
    first = np.arange(5000)
    positions = np.unique(np.concatenate([first, size - 1 - first, first * (size // 5000)]))
    rows = permute(positions, size, key=(3,))
    assert rows.dtype == np.int64
    assert rows.min() >= 0
    assert rows.max() < size
    assert len(np.unique(rows)) == len(positions)
    assert abs(rows.mean() / size - 0.5) < 0.02


def test_the_order_never_changes_silently() -> None:
    """A checkpoint resumes by these numbers: whoever changes them must raise ORDER_VERSION."""
    assert ORDER_VERSION == 1
    assert_array_equal(Shuffle(10, 0)(np.arange(20)), [9, 4, 7, 8, 1, 0, 5, 2, 3, 6, 4, 9, 8, 2, 6, 1, 7, 5, 3, 0])
    assert_array_equal(Shuffle(1000, 7)(np.arange(995, 1005)), [874, 899, 972, 959, 966, 366, 414, 5, 151, 796])
    assert_array_equal(
        Shuffle(10**12, 1)(np.array([0, 1, 2, 10**12 - 1, 10**12, 5 * 10**15])),
        [739444162191, 143634571910, 509859076267, 668662247050, 562351521426, 853721578626],
    )
    assert_array_equal(permute(np.arange(5), 5, key=(2**64 - 1, -3)), [4, 1, 0, 2, 3])


def test_the_mixer_is_splitmix64() -> None:
    """The first outputs of the published generator for the seed 0."""
    increment = 0x9E3779B97F4A7C15
    found = mix(np.array([0, increment, 2 * increment % 2**64], np.uint64))
    assert [hex(word) for word in found.tolist()] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_samples_that_cross_epochs_equal_samples_of_each_epoch() -> None:
    order = Shuffle(rows=37, seed=5)
    samples = np.arange(36 * 37, 40 * 37)
    assert_array_equal(order(samples), np.concatenate([order(part) for part in np.split(samples, 4)]))
    assert_array_equal(order(samples), [order(np.array([sample]))[0] for sample in samples])
    assert order(samples.reshape(4, 37)).shape == (4, 37)
    assert order(np.array([], np.int64)).shape == (0,)


@pytest.mark.parametrize(("ranks", "size"), [(1, 8), (2, 4), (4, 1), (8, 1), (2, 1), (4, 2), (1, 1)])
def test_the_global_batch_does_not_depend_on_the_grid(ranks: int, size: int) -> None:
    """Changing ranks, micro-batch or accumulation must neither repeat, skip nor reorder a row."""
    order, batch_size = Shuffle(rows=101, seed=0), 8
    for step in (0, 11, 12, 10**9):  # 12 crosses an epoch
        seen = np.empty(0, np.int64)
        for accumulation in range(batch_size // (size * ranks)):
            for rank in range(ranks):
                samples = micro_batch_samples(step, accumulation * ranks + rank, size, batch_size)
                seen = np.concatenate([seen, order(samples)])
        assert_array_equal(seen, order(np.arange(step * batch_size, (step + 1) * batch_size)))


@pytest.mark.parametrize("size", [3, 5, 7, 13, 64, 100, 257])
def test_no_place_prefers_a_row(size: int) -> None:
    """Over many keys each place meets each row equally often, and so do neighbours and consecutive epochs."""
    epochs = 4000
    rows = Shuffle(size, seed=1)(np.arange(epochs * size)).reshape(epochs, size)
    for place in {0, size // 2, size - 1}:
        assert deviation(np.bincount(rows[:, place], minlength=size)) < 5
    step = (rows[:, 1] - rows[:, 0]) % size
    assert deviation(np.bincount(step, minlength=size)[1:]) < 5
    assert deviation(np.bincount((rows[1:, 0] - rows[:-1, 0]) % size, minlength=size)) < 5


def deviation(counts: np.ndarray) -> float:
    """Return by how many standard deviations the chi-square of equal counts is above its mean."""
    mean = counts.sum() / len(counts)
    chi_square = float(((counts - mean) ** 2 / mean).sum())
    return (chi_square - (len(counts) - 1)) / float(np.sqrt(2 * (len(counts) - 1)))


def test_consecutive_epochs_and_seeds_have_unrelated_orders() -> None:
    size = 50_000
    first, second = Shuffle(size, 0)(np.arange(2 * size)).reshape(2, size)
    other = Shuffle(size, 1)(np.arange(size))
    for a, b in ((first, second), (first, other), (first, np.arange(size))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.02  # 4.5 standard deviations of unrelated orders
        assert (a == b).sum() < 9  # one expected


def test_rows_move_as_far_as_in_a_random_order() -> None:
    """Displacements of a random order have the density 2 (1 - x) of x = distance / size."""
    size = 100_000
    moved = np.sort(np.abs(permute(np.arange(size), size, key=(9,)) - np.arange(size)) / size)
    expected = 2 * moved - moved**2
    assert np.abs(expected - np.arange(size) / size).max() < 0.01  # Kolmogorov-Smirnov distance


@pytest.mark.slow
def test_two_million_rows_take_less_than_a_second() -> None:
    started = time.process_time()
    permute(np.arange(2_000_000), 3_000_000_000, key=(0, 0))
    assert time.process_time() - started < 1.0


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="There are 0 rows to read"):
        Shuffle(0, 0)
    for place in (-1, 10):
        with pytest.raises(ValueError, match="outside the permutation of size=10"):
            permute(np.array([place]), 10, key=(0,))
    for micro_batch_index in (-1, 2):
        with pytest.raises(
            ValueError, match=f"micro-batch {micro_batch_index} of 4 samples is outside a global batch of 8"
        ):
            micro_batch_samples(0, micro_batch_index, 4, 8)


@pytest.mark.slow
def test_what_is_computed_ahead_changes_nothing() -> None:
    for rows in (5, 3_000):
        used = Shuffle(rows, seed=7)
        draws = np.random.default_rng(0)
        for first in [0, 8, 1_020, 1_024, 3, 10**12, 10**12 + 2_000, 2**62, 2**63 - 9, *draws.integers(0, 5_000, 40)]:
            asked = np.arange(first, first + 8).reshape(2, 4)
            assert np.array_equal(used(asked), Shuffle(rows, seed=7)._permuted(asked))
        spread = draws.integers(0, 2**62, 16)
        assert np.array_equal(used(spread), Shuffle(rows, seed=7)._permuted(spread))
        assert used(np.arange(0)).shape == (0,)
