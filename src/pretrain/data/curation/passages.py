"""The passages of a text that a rule counts, and the parts in which a report and `explain` show a text with marks.

Rules on a whole text, such as the number of its words, have no passages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pretrain.data.curation.personal_data import find
from pretrain.data.curation.statistics import SENTENCE_ENDS, SHORT_LINE
from pretrain.data.curation.words import split_words

Span = tuple[int, int]  # first character, and the one after the last
MAX_PASSAGES = 400  # of one text


class Excerpt(NamedTuple):
    """A part of a text that is shown: its first character, the one after its last, and the spans to mark in it."""

    start: int
    end: int
    marks: list[Span]


def segments(
    text: str, excerpts: Iterable[Excerpt], *, is_cut_before: bool = False, is_cut_behind: bool = False
) -> Iterator[tuple[str, bool]]:
    """Yield excerpts of a text in segments, each with whether it is marked, and `...` where text is left out.

    The text itself may be cut out of a longer one, before it or after it.
    """
    at = 0
    for number, excerpt in enumerate(excerpts):
        if excerpt.start > at or (is_cut_before and not number):
            yield " ... " if number else "...", False
        at = excerpt.start
        for start, end in excerpt.marks:
            yield text[at:start], False
            yield text[start:end], True
            at = end
        yield text[at : excerpt.end], False
        at = excerpt.end
    if is_cut_behind or at < len(text):
        yield "...", False


def passages(text: str, rule: str) -> list[Span]:
    """Return the passages of a text that the rule counts, from left to right, none touching another."""
    find = _FINDERS.get(rule)
    if find is None and rule.startswith("gopher.top_"):
        spans = _commonest(text, int(rule.removeprefix("gopher.top_")))
    elif find is None and rule.removeprefix("gopher.dup_").isdigit():
        spans = _repeated_grams(text, int(rule.removeprefix("gopher.dup_")))
    else:
        spans = [] if find is None else find(text)
    return _merged(spans)[:MAX_PASSAGES]


def word_spans(text: str) -> list[Span]:
    """Return where each word of `split_words` stands."""
    spans, at = [], 0
    for word in split_words(text):
        start = text.index(word, at)
        at = start + len(word)
        spans.append((start, at))
    return spans


def _merged(spans: Iterable[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif start < end:
            merged.append((start, end))
    return merged


def _commonest(text: str, n: int) -> list[Span]:
    """Return all occurrences of the commonest run of n words; of equals, of the first one."""
    spans = word_spans(text)
    words = [text[start:end] for start, end in spans]
    grams = [tuple(words[position : position + n]) for position in range(len(words) - n + 1)]
    if not grams:
        return []
    most, _ = Counter(grams).most_common(1)[0]
    return [(spans[position][0], spans[position + n - 1][1]) for position, gram in enumerate(grams) if gram == most]


def _repeated_grams(text: str, n: int) -> list[Span]:
    """Return the runs of n words that stood before, none of them overlapping another."""
    spans = word_spans(text)
    known: set[str] = set()
    found: list[Span] = []
    free = 0
    for position in range(len(spans) - n + 1):
        if position < free:
            continue
        gram = "".join(text[start:end] for start, end in spans[position : position + n])
        if gram in known:
            found.append((spans[position][0], spans[position + n - 1][1]))
            free = position + n
        known.add(gram)
    return found


def _parts(text: str, separator: str) -> list[Span]:
    """Return where the parts between separators stand; white space at their ends and empty parts are left out."""
    spans, at = [], 0
    for part in text.split(separator):
        stripped = part.strip()
        if stripped:
            start = at + part.index(stripped)
            spans.append((start, start + len(stripped)))
        at += len(part) + len(separator)
    return spans


def _repeated(separator: str) -> Callable[[str], list[Span]]:
    def find(text: str) -> list[Span]:
        known: set[str] = set()
        found: list[Span] = []
        for start, end in _parts(text, separator):
            if text[start:end] in known:
                found.append((start, end))
            known.add(text[start:end])
        return found

    return find


def _lines(wanted: Callable[[str], bool]) -> Callable[[str], list[Span]]:
    return lambda text: [span for span in _parts(text, "\n") if wanted(text[slice(*span)])]


def _all_of(*signs: str) -> Callable[[str], list[Span]]:
    def find(text: str) -> list[Span]:
        found: list[Span] = []
        for sign in signs:
            at = text.find(sign)
            while at >= 0 and len(found) < MAX_PASSAGES:
                found.append((at, at + len(sign)))
                at = text.find(sign, at + len(sign))
        return found

    return find


def _without_letters(text: str) -> list[Span]:
    return [(start, end) for start, end in word_spans(text) if not any(map(str.isalpha, text[start:end]))]


_ELLIPSES = ("...", "\u2026")
_FINDERS: dict[str, Callable[[str], list[Span]]] = {
    "personal_data.spans": lambda text: [(span.start, span.end) for span in find(text)],
    "gopher.dup_paragraphs": _repeated("\n\n"),
    "gopher.dup_paragraph_characters": _repeated("\n\n"),
    "gopher.dup_lines": _repeated("\n"),
    "gopher.dup_line_characters": _repeated("\n"),
    "gopher.hash": _all_of("#"),
    "gopher.ellipsis": _all_of(*_ELLIPSES),
    "gopher.bullets": _lines(lambda line: line.startswith(("\u2022", "-"))),
    "gopher.line_ellipsis": _lines(lambda line: line.endswith(_ELLIPSES)),
    "gopher.alpha": _without_letters,
    "c4.lorem": _lines(lambda line: "lorem ipsum" in line.lower()),
    "c4.curly": _all_of("{"),
    "fineweb.line_end": _lines(lambda line: line[-1] not in SENTENCE_ENDS),
    "fineweb.short_lines": _lines(lambda line: len(line) <= SHORT_LINE),
    "fineweb.dup_characters": _repeated("\n"),
}
