"""The values of a text that the rules compare with their thresholds; every one is a pure function of the text.

Formulas and the order of divisions are those of the sources named in rules.py, so that a text at the edge of a
threshold falls on the same side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import xxhash

from pretrain.data.curation.personal_data import find
from pretrain.data.curation.words import split_sentences, split_words

STATISTICS_VERSION = 2  # increase when a value of a text changes
GROUPS = ("repetition", "quality", "c4", "fineweb", "personal_data")
TOP_SIZES, REPEATED_SIZES = (2, 3, 4), (5, 6, 7, 8, 9, 10)  # words of an n-gram
VALUES: dict[str, tuple[str, ...]] = {
    "repetition": (
        "duplicate_paragraphs", "duplicate_paragraph_characters", "duplicate_lines", "duplicate_line_characters",
        *(f"top_{n}_gram" for n in TOP_SIZES), *(f"repeated_{n}_grams" for n in REPEATED_SIZES),
    ),
    "quality": (
        "words", "word_length", "hashes", "ellipses", "bullet_lines", "ellipsis_lines", "alphabetic_words",
        "stop_words",
    ),
    "c4": ("lorem_ipsum_line", "curly_bracket_line", "sentences", "characters_left"),
    "fineweb": ("line_ends", "short_lines", "repeated_line_characters", "newlines"),
    "personal_data": ("personal_data",),
}  # fmt: skip
SHORT_LINE = 30  # characters

Numbers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

# Signs that are no words of their own. Sentence ends of all scripts (Penedo et al. 2025,
# https://arxiv.org/abs/2506.20920) and the punctuation of CCNet (Wenzek et al. 2020, https://arxiv.org/abs/1911.00359).
_TERMINAL = """
21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6 17d9-17da
1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 2e2e 2e3c 2e53-2e54
3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52 fe56-fe57 ff01 ff0e ff1f
ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239
1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c
11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f 1da88
"""
_PUNCTUATION = """
0-8 b-1f 21-2f 3a-40 5b-60 7b-9f ab b4 bb 2013-2014 2019 201c-201e 2026 2236 2501 25ba 3001-3002 3008-300d 3010-3011
ff01 ff05 ff08-ff09 ff0c ff0e ff11 ff1a-ff1b ff1f ff5e
"""


def _characters(ranges: str) -> frozenset[str]:
    ends = ([int(end, 16) for end in part.split("-")] for part in ranges.split())
    return frozenset(chr(number) for pair in ends for number in range(pair[0], pair[-1] + 1))


SENTENCE_ENDS = _characters(_TERMINAL)
SIGNS = _characters(_PUNCTUATION) | SENTENCE_ENDS


@dataclass(frozen=True)
class C4Lines:
    """How c4 chooses lines (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 2.2)."""

    terminal_punctuation: bool = True  # only lines that end with one of . ! ? " '
    min_words: int = 3
    max_word_length: int = 1000


@dataclass(frozen=True)
class Measuring:
    """What is measured of a text."""

    groups: tuple[str, ...] = GROUPS
    stop_words: frozenset[str] = frozenset()
    c4: C4Lines | None = None  # the lines that are kept, of which the FineWeb values are taken; None: all
    counted: C4Lines = C4Lines()  # the lines that C4 would keep, of which its values are taken

    def names(self) -> tuple[str, ...]:
        """Return the names of the values in the order in which `measure` gives them."""
        return tuple(name for group in GROUPS if group in self.groups for name in VALUES[group])


def measure(text: str, how: Measuring) -> tuple[list[float], str]:
    """Return the values of a text in the order of `how.names()`, and the text as it would be written.

    A share of nothing, such as of the lines of an empty text, is NaN, which no threshold removes.
    """
    words = split_words(text) if {"repetition", "quality"} & set(how.groups) else []
    values: list[float] = []
    if "repetition" in how.groups:
        values += repetition(text, words)
    if "quality" in how.groups:
        values += quality(text, words, how.stop_words)
    written = text
    if "c4" in how.groups:
        lines, found = c4_lines(text, how.counted)
        values += found
        written = text if how.c4 is None or lines == text else lines
    if "fineweb" in how.groups:
        values += fineweb(written, words if written is text and words else split_words(written))
    if "personal_data" in how.groups:
        values.append(float(len(find(written))))
    return values, written


def repetition(text: str, words: list[str]) -> list[float]:
    """Return shares of repeated paragraphs, lines and n-grams (Rae et al. 2021, arXiv 2112.11446, table A1)."""
    size = len(text)
    paragraphs, paragraph_characters, all_paragraphs = _repeated(_PARAGRAPH_END.split(text.strip()))
    lines, line_characters, all_lines = _repeated(_LINE_END.split(text))
    values = [
        _share(paragraphs, all_paragraphs), _share(paragraph_characters, size), _share(lines, all_lines),
        _share(line_characters, size),
    ]  # fmt: skip
    grams = WordGrams(words)
    values += [_share(grams.commonest(n), size) for n in TOP_SIZES]
    return values + [_share(grams.repeated(n), size) for n in REPEATED_SIZES]


def quality(text: str, words: list[str], stop_words: frozenset[str]) -> list[float]:
    """Return the values of Gopher's quality rules (Rae et al. 2021, arXiv 2112.11446, section A.1.1)."""
    count = len(words)
    table = _word_table()
    known = [table[word] for word in words]
    lengths = [length for length, _, is_sign in known if not is_sign]
    lines = text.splitlines()
    return [
        float(len(lengths)),
        float(np.mean(lengths)) if lengths else np.nan,
        _share(text.count("#"), count),
        _share(text.count("...") + text.count("\u2026"), count),
        _share(sum(line.lstrip().startswith(("\u2022", "-")) for line in lines), len(lines)),
        _share(sum(line.rstrip().endswith(("...", "\u2026")) for line in lines), len(lines)),
        _share(sum(has_letter for _, has_letter, _ in known), count),
        float(len(stop_words.intersection(words))),
    ]


def fineweb(text: str, words: list[str]) -> list[float]:
    """Return the values of FineWeb's rules (Penedo et al. 2024, https://arxiv.org/abs/2406.17557, section 3.6)."""
    lines = [line for line in text.split("\n") if line.strip()]
    _, characters, _ = _repeated(lines)
    return [
        _share(sum(line[-1] in SENTENCE_ENDS for line in lines), len(lines)),
        _share(sum(len(line) <= SHORT_LINE for line in lines), len(lines)),
        _share(characters, len(text) - text.count("\n")),
        _share(text.count("\n"), len(words)),
    ]


def c4_lines(text: str, how: C4Lines) -> tuple[str, list[float]]:
    """Return the lines that c4 keeps, and the values of its rules.

    Values: number of the first line with "lorem ipsum" and with a curly bracket, from 0 (NaN: none), sentences of the
    lines kept and their characters.
    """
    kept, lorem, curly = _c4_kept(text, how)
    written = "\n".join(kept).strip()
    sentences = sum(len(split_sentences(line)) for line in kept)
    return written, [lorem, curly, float(sentences), float(len(written))]


def c4_text(text: str, how: C4Lines) -> str:
    """Return the lines that c4 keeps, without the values of its rules: no sentence is looked for."""
    return "\n".join(_c4_kept(text, how)[0]).strip()


def _c4_kept(text: str, how: C4Lines) -> tuple[list[str], float, float]:
    kept: list[str] = []
    lorem = curly = np.nan
    for number, raw in enumerate(text.splitlines()):
        line = raw.strip()
        words = line.split()
        if len(line) > how.max_word_length and max(map(len, words), default=0) > how.max_word_length:
            continue
        line = _CITATION.sub("", line) if "[" in line else line
        if how.terminal_punctuation and (not line.endswith(_LINE_ENDS) or line.endswith("...")):
            continue
        if len(words) < how.min_words:
            continue
        lower = line.lower()
        if "lorem ipsum" in lower:
            lorem = float(number) if np.isnan(lorem) else lorem
        if "javascript" in lower:
            continue
        if "{" in line:
            curly = float(number) if np.isnan(curly) else curly
        if ("cookie" in lower or "policy" in lower or "terms of use" in lower) and any(
            phrase in lower for phrase in _POLICY
        ):
            continue
        kept.append(line)
    return kept, float(lorem), float(curly)


_PARAGRAPH_END, _LINE_END = re.compile(r"\n{2,}"), re.compile(r"\n+")
_CITATION = re.compile(r"\[(?:\d*|edit|citation needed)\]")
_LINE_ENDS = (".", "?", "!", '"', "'")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def _share(part: int, whole: int) -> float:
    return part / whole if whole else np.nan


def _repeated(items: Sequence[str]) -> tuple[int, int, int]:
    """Return how many items stood before, their characters, and the number of all items."""
    known: set[str] = set()
    count = characters = 0
    for item in items:
        if item in known:
            count, characters = count + 1, characters + len(item)
        else:
            known.add(item)
    return count, characters, len(items)


class _WordTable(dict[str, tuple[int, bool, bool]]):
    """Length, whether it has a letter, and whether it is signs alone, of each word; computed when first asked for."""

    def __missing__(self, word: str) -> tuple[int, bool, bool]:
        if len(self) >= 1 << 18:
            self.clear()
        has_letter = word.isalpha() or any(map(str.isalpha, word))
        self[word] = found = len(word), has_letter, not has_letter and all(sign in SIGNS for sign in word)
        return found


@cache
def _word_table() -> _WordTable:
    return _WordTable()


_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_BASE = 0xD1342543DE82EF95  # odd, so that it has an inverse modulo 2^64
_NEXT_WORD = np.uint64(0x2545F4914F6CDD1D)


class WordGrams:
    """The n-grams of a text's words by hash: a polynomial of their characters modulo 2^64."""

    def __init__(self, words: list[str]) -> None:
        joined = "".join(words)
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        self._ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])  # (words + 1,), characters
        codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
        powers, self._inverse = _powers(len(joined) + 1)
        codes = (codes + np.uint64(1)) * _MULTIPLIER
        codes ^= codes >> np.uint64(29)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(codes * powers[: len(joined)], dtype=np.uint64)])
        self._sums = sums[self._ends]
        self._words = _mixed(self._hashes(1))

    def _hashes(self, n: int) -> Hashes:
        """Return the hash of each run of n words, joined without a space, uint64 (words - n + 1,)."""
        count = max(0, len(self._ends) - n)
        return (self._sums[n:] - self._sums[:count]) * self._inverse[self._ends[:count]]

    def commonest(self, n: int) -> int:
        """Return the characters of all occurrences of the commonest n-gram, joined by spaces; of equals, the first."""
        count = len(self._words) - n + 1
        if count < 1:
            return 0
        hashes = self._words[:count].copy()
        for position in range(1, n):
            hashes = hashes * _NEXT_WORD + self._words[position : position + count]
        ordered = np.sort(hashes)
        starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        counts = np.diff(np.concatenate([starts, [count]]))
        most = int(counts.max())
        first = int(np.isin(hashes, ordered[starts[counts == most]]).argmax()) if most > 1 else 0
        return int(self._ends[first + n] - self._ends[first] + n - 1) * most

    def repeated(self, n: int) -> int:
        """Return the characters of n-grams that stood before, none of them overlapping another."""
        hashes = self._hashes(n)
        ordered = np.sort(hashes)
        doubled = ordered[1:][ordered[1:] == ordered[:-1]]
        if not len(doubled):
            return 0
        known: set[int] = set()
        characters = free = 0
        for position in np.flatnonzero(np.isin(hashes, doubled)).tolist():
            if position < free:
                continue
            gram = int(hashes[position])
            if gram in known:
                characters += int(self._ends[position + n] - self._ends[position])
                free = position + n
            else:
                known.add(gram)
        return characters


def _mixed(hashes: Hashes) -> Hashes:
    hashes = hashes ^ (hashes >> np.uint64(32))
    return hashes * _MULTIPLIER


_table_of_powers: tuple[Hashes, Hashes] = (np.empty(0, np.uint64), np.empty(0, np.uint64))


def _powers(count: int) -> tuple[Hashes, Hashes]:
    """Return the powers 0, 1, ... of the base and of its inverse modulo 2^64, at least `count`."""
    global _table_of_powers
    if len(_table_of_powers[0]) < count:
        size = 1 << max(16, (count - 1).bit_length())
        inverse = pow(_BASE, -1, 1 << 64)
        _table_of_powers = tuple(_progression(base, size) for base in (_BASE, inverse))  # type: ignore[assignment]
    return _table_of_powers


def _progression(base: int, size: int) -> Hashes:
    factors = np.full(size, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def text_key(text: str) -> bytes:
    """Return the 16 bytes (xxh3_128 of its UTF-8) by which equal texts are found."""
    return xxhash.xxh3_128_digest(text.encode())
