"""The differences between two texts that are nearly equal, and excerpts around them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from pretrain.data.curation.passages import Excerpt, Span

MAX_DIFFERENCES = 6  # that are looked for in a pair of texts
CONTEXT = 80  # characters shown before and after a difference
_WORDS_COMPARED = 200  # of each text from a difference on, to find where the texts are equal again
_EQUAL_WORDS = 3  # that must follow one another before the texts count as equal again
_WORD, _WORD_START, _SPACE = re.compile(r"\S+"), re.compile(r"\s\S"), re.compile(r"\s")


def differences(first: str, second: str, *, are_whole: bool = True) -> tuple[list[Span], list[Span]]:
    """Return the first differences by words as spans of each text; the two lists have equal lengths.

    Words that one text alone has are an empty span in the other. White space is not compared. Unless the texts
    `are_whole`, what one of them lacks at its end is no difference.
    """
    spans_first, spans_second = list(_words(first)), list(_words(second))
    words_first = [first[start:end] for start, end in spans_first]
    words_second = [second[start:end] for start, end in spans_second]
    found: tuple[list[Span], list[Span]] = ([], [])
    at, there = 0, 0
    while len(found[0]) < MAX_DIFFERENCES:
        while at < len(words_first) and there < len(words_second) and words_first[at] == words_second[there]:
            at, there = at + 1, there + 1
        if (at, there) == (len(words_first), len(words_second)):
            break
        step, step_there = _equal_again(words_first[at:][:_WORDS_COMPARED], words_second[there:][:_WORDS_COMPARED])
        next_at, next_there = at + step, there + step_there
        if not are_whole and (next_at == len(words_first) or next_there == len(words_second)):
            break
        found[0].append(_span(spans_first, at, next_at, len(first)))
        found[1].append(_span(spans_second, there, next_there, len(second)))
        if max(step, step_there) == _WORDS_COMPARED:  # from here on they have nothing in common that could be marked
            break
        at, there = next_at, next_there
    return found


def _words(text: str) -> Iterator[Span]:
    return (match.span() for match in _WORD.finditer(text))


def _equal_again(first: Sequence[str], second: Sequence[str]) -> tuple[int, int]:
    """Return how many words of each text to leave out until both go on alike; all of them if they never do."""
    for block in SequenceMatcher(None, first, second, autojunk=False).get_matching_blocks():
        ends = block.a + block.size == len(first) and block.b + block.size == len(second)
        if block.size >= _EQUAL_WORDS or (block.size and ends):
            return block.a, block.b
    return len(first), len(second)


def _span(spans: Sequence[Span], start: int, end: int, size: int) -> Span:
    if start < end:
        return spans[start][0], spans[end - 1][1]
    at = spans[start][0] if start < len(spans) else size
    return at, at


def excerpts(text: str, spans: Sequence[Span], characters: int) -> list[Excerpt]:
    """Return excerpts around these spans, which are their marks; those that would meet are one.

    All of them together have at most so many characters.
    """
    found: list[Excerpt] = []
    left = characters
    for span in spans:
        start, end = _word_start(text, span[0] - CONTEXT), _word_end(text, span[1] + CONTEXT)
        joined = found and start <= found[-1].end
        begin = found[-1].end if joined else start
        end = min(end, begin + left)
        if end < span[0] or (end == span[0] and span[1] > span[0]):
            break
        shown = (span[0], min(span[1], end))
        if joined:
            found[-1] = Excerpt(found[-1].start, end, [*found[-1].marks, shown])
        else:
            found.append(Excerpt(start, end, [shown]))
        left -= end - begin
    return found


def _word_start(text: str, position: int) -> int:
    """Return the first position from here on where a word begins; this position if that is far, as in a long word."""
    found = _WORD_START.search(text, position - 1, position + CONTEXT // 2) if position > 0 else None
    return max(0, position) if found is None else found.end() - 1


def _word_end(text: str, position: int) -> int:
    """Return the last position up to here where a word ends; this position if that is far, as in a long word."""
    if position >= len(text):
        return len(text)
    spaces = [match.start() for match in _SPACE.finditer(text, position - CONTEXT // 2, position + 1)]
    return spaces[-1] if spaces else position
