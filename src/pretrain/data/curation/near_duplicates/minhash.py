"""MinHash signatures and the keys of their bands (Broder 1997; Leskovec, Rajaraman and Ullman 2014, chapter 3).

Two texts of Jaccard similarity J agree in each function with probability J, so they share a band of `rows` functions
with probability J^rows, and at least one of `bands` with 1 - (1 - J^rows)^bands.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from pretrain.data.curation.near_duplicates.config import NearDuplicatesConfig
from pretrain.data.curation.near_duplicates.shingles import SHINGLES_VERSION, Hashes, Ints, Shingler
from pretrain.data.shuffle import mix
from pretrain.errors import ConfigError, DataError

MINHASH_VERSION = 1  # increase when the band keys of a text change
MAX_CHARACTERS = 1 << 16  # of the texts hashed at once: their shingles stay in the processor's cache

Signatures = npt.NDArray[np.uint32]


class MinHash:
    """Computes the band keys of texts."""

    def __init__(self, words: int, bands: int, rows: int) -> None:
        self.bands, self.rows = bands, rows
        self._shingler = Shingler(words)
        # h(x) = (a x + b mod 2^64) >> 32 of 32-bit x is strongly universal (Dietzfelbinger 1996, "Universal hashing
        # and k-wise independent random variables via integer arithmetic without primes"): the overflow of unsigned
        # 64-bit integers is the formula's own modulus.
        coefficients = mix(np.arange(2 * bands * rows, dtype=np.uint64) + np.uint64(0xC0FFEE))
        self._factors, self._offsets = coefficients[::2] | np.uint64(1), coefficients[1::2]

    def signatures(self, shingles: Hashes, starts: Ints) -> Signatures:
        """Return the signature of each text, uint32 (texts, bands * rows), of shingles as `Shingler` gives them."""
        keys = shingles >> np.uint64(32)
        values = np.empty_like(keys)
        found = np.empty((len(self._factors), len(starts) - 1), np.uint64)
        for row, (factor, offset) in enumerate(zip(self._factors, self._offsets, strict=True)):
            np.multiply(keys, factor, out=values)
            np.add(values, offset, out=values)
            np.minimum.reduceat(values, starts[:-1], out=found[row])
        return np.ascontiguousarray((found >> np.uint64(32)).astype(np.uint32).T)

    def band_keys(self, texts: Sequence[str]) -> Hashes:
        """Return the key of each band of each text, uint64 (texts, bands).

        Texts with an equal key in a band are candidates. Bands hash with seeds of their own, so that a key says of
        which band it is.
        """
        keys = np.empty((len(texts), self.bands), np.uint64)
        for first, last in _batches(texts):
            signatures = self.signatures(*self._shingler.shingles(texts[first:last]))
            keys[first:last] = self._hash_bands(signatures)
        return keys

    def _hash_bands(self, signatures: Signatures) -> Hashes:
        data, width = signatures.astype("<u4").tobytes(), 4 * self.rows
        digest, bands = xxhash.xxh3_64_intdigest, self.bands
        positions = range(len(signatures) * bands)
        found = (digest(data[position * width : (position + 1) * width], position % bands) for position in positions)
        return np.fromiter(found, np.uint64, len(positions)).reshape(-1, bands)


def candidate_probability(similarity: npt.NDArray[np.float64], bands: int, rows: int) -> npt.NDArray[np.float64]:
    """Return the probability that texts of each Jaccard similarity share at least one band."""
    return 1 - (1 - similarity**rows) ** bands


def keys_within(keys: Hashes, groups: Sequence[str]) -> Hashes:
    """Return band keys (texts, bands) that only texts of one group share: of one source, or of one language."""
    hashes = {name: xxhash.xxh3_64_intdigest(name.encode("utf8", "surrogatepass")) for name in set(groups)}
    return mix(keys ^ np.array([hashes[name] for name in groups], np.uint64)[:, None])


def index_parameters(config: NearDuplicatesConfig) -> dict[str, int | str]:
    """Return all that band keys depend on but the text: a corpus stores it beside the keys of its documents."""
    return {
        "words": config.words,
        "bands": config.bands,
        "rows": config.rows,
        "within": config.within.value,
        "shingles_version": SHINGLES_VERSION,
        "minhash_version": MINHASH_VERSION,
        "unicode": unicodedata.unidata_version,
    }


def check_index(stored: Mapping[str, object], config: NearDuplicatesConfig, name: str) -> None:
    """Raise ConfigError, or DataError where no setting helps, if band keys stored with these parameters differ.

    `name` is that of the file for the message. Keys of other parameters would be alike by accident alone: no
    document of the new corpus would be a duplicate of one of the old.
    """
    for key, value in index_parameters(config).items():
        if stored.get(key) == value:
            continue
        if hasattr(config, key):
            raise ConfigError(
                f"duplicates.{key}={value} does not fit the band keys in {name}, made with {stored.get(key)}. "
                f"Try duplicates.{key}={stored.get(key)}, or curate the base corpus again."
            )
        raise DataError(
            f"{name} has band keys of {key}={stored.get(key)}, and this program makes {key}={value}. "
            "Curate the base corpus again with this version."
        )


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield first and last of texts to be hashed at once."""
    first = characters = 0
    for index, text in enumerate(texts):
        if index > first and characters + len(text) > MAX_CHARACTERS:
            yield first, index
            first, characters = index, 0
        characters += len(text)
    if first < len(texts):
        yield first, len(texts)
