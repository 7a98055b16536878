"""Texts as sets of hashed word n-grams ("shingles": Broder 1997, "On the resemblance and containment of documents")."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from pretrain.data.shuffle import mix

SHINGLES_VERSION = 1  # increase when the shingles of a text change
MAX_CACHED_WORDS = 1 << 18  # about 30 MB; a cache of hashes changes no result

Hashes = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

# Scripts without spaces between words: Thai, Lao, Myanmar, Khmer, Kana, Han. Each character counts as a word.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_HAS_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(r"\w+")
_WORD_OR_CHARACTER = re.compile(rf"(?=\w)[{UNSPACED}]|[^\W{UNSPACED}]+")


def normalized_words(text: str) -> list[str]:
    """Return the words that near-duplicates are compared by: NFC, lower case, without punctuation and spaces.

    A text without a letter or digit is one word, itself with its spaces collapsed: two rows of different signs are
    no duplicates of each other.
    """
    if text.isascii():
        text = text.lower()
        words = _WORD.findall(text)
    else:
        text = unicodedata.normalize("NFC", text).lower()
        words = (_WORD_OR_CHARACTER if _HAS_UNSPACED.search(text) else _WORD).findall(text)
    return words or [" ".join(text.split())]


class _WordHashes(dict[str, int]):
    """The hash of each word, computed when first asked for."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MAX_CACHED_WORDS:
            self.clear()
        self[word] = hashed = xxhash.xxh3_64_intdigest(word.encode("utf8", "surrogatepass"))
        return hashed


class Shingler:
    """Makes the hashed shingles of texts: the same for equal texts in any process, order and batch."""

    def __init__(self, words: int) -> None:
        """`words` of a shingle: 5 is usual for documents."""
        self.words = words
        self._hashes = _WordHashes()
        self._factors = mix(np.arange(1, words + 1, dtype=np.uint64)) | np.uint64(1)

    def shingles(self, texts: Sequence[str]) -> tuple[Hashes, Ints]:
        """Return the shingles of all texts in a row, uint64, and where those of each text begin, int64 (texts + 1,).

        A text of n words has max(1, n - words + 1) shingles, repeats included. A shorter one is padded to one
        shingle, so short texts have duplicates too.
        """
        flat: list[str] = []
        lengths = np.empty(len(texts), np.int64)
        for index, text in enumerate(texts):
            words = normalized_words(text)
            words += [""] * (self.words - len(words))  # no real word is empty
            lengths[index] = len(words)
            flat += words
        counts = lengths - (self.words - 1)
        starts = np.concatenate([[0], np.cumsum(counts)])
        if not flat:
            return np.empty(0, np.uint64), starts
        hashes = np.fromiter(map(self._hashes.__getitem__, flat), np.uint64, len(flat))
        windows = len(flat) - self.words + 1
        sums = hashes[:windows] * self._factors[0]
        for position in range(1, self.words):
            sums += hashes[position : position + windows] * self._factors[position]
        if len(texts) > 1:  # leave out the windows that reach into the next text
            ends = np.cumsum(lengths)[:-1, None]
            sums = np.delete(sums, (ends - np.arange(1, self.words)).ravel())
        return mix(sums), starts

    def shingle_set(self, text: str) -> Hashes:
        """Return the distinct shingles of a text, sorted uint64."""
        return np.unique(self.shingles([text])[0])


def jaccard(first: Hashes, second: Hashes) -> float:
    """Return the Jaccard similarity of two sets, each sorted and without repeats and not empty: 0 to 1."""
    if len(first) > len(second):
        first, second = second, first
    positions = np.searchsorted(second, first)
    positions[positions == len(second)] = 0
    shared = int(np.count_nonzero(second[positions] == first))
    return shared / (len(first) + len(second) - shared)
