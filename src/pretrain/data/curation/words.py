"""Words and sentences of a text, for rules that count them.

Words are split as spaCy's English tokenizer splits them in the usual cases: contractions in two, punctuation apart, one
sign a word; abbreviations, numbers, addresses and ellipses stay whole. Of scripts without spaces between words, each
character is a word.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache

from pretrain.data.curation.near_duplicates.shingles import UNSPACED

WORDS_VERSION = 1  # increase when the words or sentences of a text change

_ABBREVIATIONS = [
    "Mr", "Mrs", "Ms", "Dr", "Prof", "Rev", "Gen", "Rep", "Sen", "Gov", "Lt", "Col", "Sgt", "Capt", "St", "Mt",
    "Jr", "Sr", "Inc", "Ltd", "Co", "Corp", "Bros", "vs", "etc", "Jan", "Feb", "Mar", "Apr", "Jun", "Jul", "Aug",
    "Sep", "Sept", "Oct", "Nov", "Dec",
]  # fmt: skip
_PLAIN_SUFFIX = {"s", "m", "d", "ll", "re", "ve"}
_ADDRESS = r"(?:https?://|www\.)[^\s<>\"]*[^\s<>\".,;:!?'()\[\]{}]|[\w.+-]+@\w[\w-]*(?:\.\w[\w-]*)+"
_SHORT = r"(?<!\w)(?:(?:[A-Za-z]\.){2,}|(?:" + "|".join(_ABBREVIATIONS) + r")\.(?!\w))"
_NUMBER = r"\d+(?:[.,:/]\d+)+"
_SIGNS = r"\.{2,}|-{2,}|[^\w\s]"
_ASCII = re.compile(rf"{_ADDRESS}|{_SHORT}|{_NUMBER}|\w+(?:'\w+)*|{_SIGNS}", re.ASCII)
_ADDRESS_SIGNS = re.compile(r"@|://|www\.")
_ASCII_WITHOUT_ADDRESS = re.compile(rf"{_SHORT}|{_NUMBER}|\w+(?:'\w+)*|{_SIGNS}", re.ASCII)
_HAS_UNSPACED = re.compile(f"[{UNSPACED}]")

_SENTENCE_END = re.compile(
    r"[.!?\u2026\u3002\uff01\uff1f\u061f\u06d4\u0964]+[\"'\u201d\u2019\u00bb)\]]*(?=\s+|$)|[\u3002\uff01\uff1f]"
)
_NO_END = re.compile(
    r"(?:^|[\s(\"'\u201c])(?:" + "|".join([*_ABBREVIATIONS, "e.g", "i.e", "No", "Fig", "pp", "[A-Z]"]) + r")\.$"
)


def split_words(text: str) -> list[str]:
    """Return the words of a text in order, punctuation among them; no word holds white space."""
    if text.isascii():
        pattern = _ASCII if _ADDRESS_SIGNS.search(text) else _ASCII_WITHOUT_ADDRESS
        words = pattern.findall(text)
        return _without_contractions(words) if "'" in text else words
    words = _unicode_pattern(bool(_HAS_UNSPACED.search(text))).findall(text)
    return _without_contractions(words) if "'" in text or "\u2019" in text else words


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text in order, without the white space around them."""
    sentences, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        following = text[match.end() : match.end() + 40].lstrip()
        is_inside = following[:1].islower() or (
            match[0] == "." and _NO_END.search(text[max(start, match.end() - 12) : match.end()])
        )
        if is_inside and following:
            continue
        if sentence := text[start : match.end()].strip():
            sentences.append(sentence)
        start = match.end()
    if rest := text[start:].strip():
        sentences.append(rest)
    return sentences


@cache
def _unicode_pattern(unspaced: bool) -> re.Pattern[str]:
    """Return the pattern for texts with other than ASCII characters; combining marks belong to their word."""
    marks = _combining_marks()
    if not unspaced:
        return re.compile(rf"{_ADDRESS}|{_SHORT}|{_NUMBER}|[\w{marks}]+(?:['\u2019][\w{marks}]+)*|{_SIGNS}")
    one = rf"(?=\w)[{UNSPACED}][{marks}]*"
    several = rf"(?:[^\W{UNSPACED}][{marks}]*)+"
    return re.compile(rf"{_ADDRESS}|{_SHORT}|{_NUMBER}|{one}|{several}(?:['\u2019]{several})*|{_SIGNS}")


def _combining_marks() -> str:
    """Return the combining marks of Unicode as ranges of a character class."""
    numbers = [n for n in range(0x300, sys.maxunicode + 1) if unicodedata.category(chr(n)) in ("Mn", "Mc")]
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


def _without_contractions(words: list[str]) -> list[str]:
    """Return the words with each contraction in its parts: do n't, it 's, John 's."""
    found: list[str] = []
    for word in words:
        if "'" in word or "\u2019" in word:
            found += _parts(word)
        else:
            found.append(word)
    return found


def _parts(word: str) -> list[str]:
    at = max(word.rfind("'"), word.rfind("\u2019"))
    if 0 < at < len(word) - 1:
        suffix = word[at + 1 :].lower()
        if suffix == "t" and word[at - 1].lower() == "n" and at > 1:
            return [word[: at - 1], word[at - 1 :]]
        if suffix in _PLAIN_SUFFIX:
            return [word[:at], word[at:]]
    return [word]
