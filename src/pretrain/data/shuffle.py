"""Shuffle rows: the row of a sample is a function of its index, and no order is stored."""

import numpy as np
import numpy.typing as npt

from pretrain.errors import DataError

ORDER_VERSION = 1  # increase when `permute` changes: a checkpoint resumes exactly only with the version that wrote it
AHEAD = 1024  # samples whose rows are computed at once

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]


class Shuffle:
    """The row of each sample of a source: a pure function of seed and sample index.

    Every row is read once per epoch, in another order each epoch. The only state of a run is its number of consumed
    samples, so a run stopped on 8 ranks resumes exactly on 2.
    """

    def __init__(self, rows: int, seed: int) -> None:
        if rows < 1:
            raise DataError(f"There are {rows} rows to read: the text is empty or shorter than one row.")
        self.rows, self.seed = rows, seed
        self._ahead: tuple[int, Ints] = 0, np.empty(0, np.int64)  # first sample index, rows of the samples from there

    def __call__(self, sample_indices: npt.NDArray[np.integer]) -> Ints:
        """Return the row of each sample; both int64, any shape.

        A run reads a few samples at a time, in order. `AHEAD` rows are computed at once, which takes about as long as
        a few, and the next calls look them up.
        """
        positions: Ints = np.asarray(sample_indices, np.int64)
        if not positions.size:
            return self._permuted(positions)
        low, high = int(positions.min()), int(positions.max())
        first, rows = self._ahead
        if not first <= low <= high < first + len(rows):
            if not low <= high < min(low + AHEAD, 2**63 - AHEAD):
                return self._permuted(positions)
            first, rows = self._ahead = low, self._permuted(np.arange(low, low + AHEAD))
        return rows[positions - first]

    def _permuted(self, sample_indices: Ints) -> Ints:
        epochs, positions = np.divmod(sample_indices, self.rows)
        if epochs.size and epochs.min() == epochs.max():
            epochs = epochs.flat[0]  # one key instead of one per sample
        return permute(positions, self.rows, key=(self.seed, epochs))


def micro_batch_samples(step: int, micro_batch_index: int, size: int, batch_size: int) -> Ints:
    """Return the global sample indices of one micro-batch, int64 (size,).

    `micro_batch_index` = accumulation index * ranks + rank; the micro-batches of a step, in order,
    are its global batch of `batch_size` samples. Raises ValueError for a micro-batch outside it.
    """
    if not 0 <= micro_batch_index * size <= batch_size - size:
        raise ValueError(
            f"micro-batch {micro_batch_index} of {size} samples is outside a global batch of {batch_size}."
        )
    first = step * batch_size + micro_batch_index * size
    return np.arange(first, first + size, dtype=np.int64)


def permute(positions: npt.NDArray[np.integer], size: int, key: tuple[int | np.integer | Ints, ...]) -> Ints:
    """Return the image of each position under the permutation of [0, size) chosen by `key`; int64, any shape.

    Each part of the key is an integer, or an array with the shape of `positions`: one permutation per position. A
    bijection for every size up to 2^63 - 1, in constant memory: a balanced Feistel network on the smallest even number
    of bits that holds `size`, applied again while the result is out of range ("cycle walking": Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains"). Statistically well mixed; not cryptographically secure. Raises ValueError
    for a position out of range.
    """
    positions = np.asarray(positions)
    if positions.size and (positions.min() < 0 or positions.max() >= size):
        raise ValueError(f"A position is outside the permutation of size={size}.")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    words = positions.astype(np.uint64).ravel()
    state = hashed_key(key)
    words = _feistel(words, half, state)
    outside = np.flatnonzero(words >= np.uint64(size))
    while outside.size:
        again = _feistel(words[outside], half, state if state.size == 1 else state[outside])
        words[outside] = again
        outside = outside[again >= np.uint64(size)]
    return words.astype(np.int64).reshape(positions.shape)


def hashed_key(key: tuple[int | np.integer | Ints, ...]) -> Words:
    """Return the hash of a key, uint64: (1,), or (positions,) if a part of the key is an array."""
    state = np.zeros(1, np.uint64)  # an array: numpy scalars would warn of the intended overflow
    for part in key:
        word = np.array([part % 2**64], np.uint64) if isinstance(part, int) else np.ravel(part).astype(np.uint64)
        state = mix(state + mix(word))
    return state


def _feistel(words: Words, half: int, state: Words) -> Words:
    """Return each word's image under a keyed permutation of the integers of 2 * `half` bits."""
    bits = np.uint64(half)
    mask = (np.uint64(1) << bits) - np.uint64(1)
    rounds = 8 + 16 // half  # narrow words need more rounds: with 6, orders of 5 rows were not equally frequent
    keys = mix(state + np.arange(1, rounds + 1, dtype=np.uint64)[:, None])  # (rounds, 1 or words)
    left, right = words >> bits, words & mask
    for round_key in keys:
        left, right = right, left ^ (mix(right ^ round_key) & mask)
    return (left << bits) | right


def mix(words: Words) -> Words:
    """Return a hash of each word, one to one: each bit depends on all bits of the word.

    Source: one step of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators",
    figure 16: the increment, then variant 13 of the finalizer that David Stafford derived from MurmurHash3's).
    """
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words ^= words >> np.uint64(30)
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(27)
    words *= np.uint64(0x94D049BB133111EB)
    words ^= words >> np.uint64(31)
    return words


def mix_32_bits(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Replace each word by a hash, one to one, and return `words`: as `mix`, in a third of the time.

    Source: Wellons 2018, "Prospecting for Hash Functions", https://nullprogram.com/blog/2018/07/31/: the function of
    two multiplications with the lowest bias that was found.
    """
    words ^= words >> np.uint32(16)
    words *= np.uint32(0x7FEB352D)
    words ^= words >> np.uint32(15)
    words *= np.uint32(0x846CA68B)
    words ^= words >> np.uint32(16)
    return words
