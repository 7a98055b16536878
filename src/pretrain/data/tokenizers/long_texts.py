"""Ids of a long text, encoded in parts whose ids are those of the whole text.

A tokenizer may put a space before each text that it is given, count digits in threes from a text's start, or merge
across any place: no cut is right for all. So parts overlap, and two of them are joined where both give the same tokens
at the same places over a long stretch, with words that begin at the same tokens: from there on the second does what the
first does. Parts that never agree, such as those of one word of a million letters, are begun anew at tokens of the part
before; as a last resort the text is encoded whole.

A Unigram model takes the likeliest of all ways to split a word, and what ends the word may decide how it begins. There
parts are joined between words only: texts of very long words, as of a language without spaces, are encoded whole.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint32]


@dataclass(frozen=True)
class Located:
    """Ids with the places in the text where their tokens begin."""

    ids: Ids  # (tokens,)
    starts: NDArray[np.int64]  # (tokens,), characters
    words: NDArray[np.int64] | None = None  # (tokens,), the number of each token's word, where it is known
    between_words: bool = False  # whether parts may be joined between words only

    def behind(self, count: int) -> "Located":
        """Return what follows the first `count` tokens."""
        words = None if self.words is None else self.words[count:]
        return replace(self, ids=self.ids[count:], starts=self.starts[count:], words=words)


@dataclass(frozen=True)
class Lengths:
    """How long parts of a text are, in characters."""

    part: int = 1_000_000  # a text of no more than that is encoded whole
    overlap: int = 20_000  # of a part with the next one
    margin: int = 5_000  # at the end of a part, where tokens may depend on text behind it
    agreement: int = 5_000  # over which both parts must give the same tokens
    group: int = 8  # parts handed over at once, which bounds memory


Locate = Callable[[Sequence[str]], list[Located]]


RETRIES = 16  # tokens of a part at which the next one is begun anew


def encode_in_parts(text: str, locate: Locate, lengths: Lengths) -> Ids:
    """Return the ids of a text; `locate` gives those of texts, with places counted from the beginning of each."""
    cuts = np.cumsum([0, *(len(piece) for piece in pieces(text, lengths.part))]).tolist()
    spans = [(start, min(end + lengths.overlap, len(text))) for start, end in pairwise(cuts)]
    parts = _in_groups(text, spans, locate, lengths.group)
    found: list[Ids] = []
    (_, end), part = next(parts)
    for span, following in parts:
        junction = _junction(part, following, end - lengths.margin, lengths.agreement)
        if junction is None:
            following, junction = _begin_anew(text, part, (span[0], end, span[1]), locate, lengths)
        if junction is None:
            return locate([text])[0].ids
        keep, skip = junction
        found.append(part.ids[:keep])
        part, end = following.behind(skip), span[1]
    return np.concatenate([*found, part.ids])


def pieces(text: str, length: int) -> Iterator[str]:
    """Yield a text in pieces of at most `length` characters that join to it again.

    A cut is before a space between two characters that are no spaces, where GPT-2's pre-tokenizer always splits
    (Radford et al. 2019, section 2.2); only where a piece holds no such place is it cut at its full length.
    """
    start = 0
    while len(text) - start > length:
        end = start + length
        place = text.rfind(" ", start + 1, end)
        while place > start and (text[place - 1].isspace() or text[place + 1].isspace()):
            place = text.rfind(" ", start + 1, place)
        end = place if place > start else end
        yield text[start:end]
        start = end
    yield text[start:]


def located_by_length(ids: Ids, text: str, token_bytes: NDArray[np.int64]) -> Located | None:
    """Return where tokens begin that together are the bytes of a text; `token_bytes` is how many each id stands for.

    None where they are not as many bytes as the text: the tokenizer leaves some out, or changes them.
    """
    data = np.frombuffer(text.encode(), np.uint8)
    ends = np.cumsum(token_bytes[ids])
    if (ends[-1] if len(ends) else 0) != len(data):
        return None
    starts = ends - token_bytes[ids]
    characters = np.cumsum((data & 0xC0) != 0x80) - 1  # that each byte belongs to: all but the first begin with 10
    return Located(ids, characters[starts])


def _in_groups(
    text: str, spans: Sequence[tuple[int, int]], locate: Locate, group: int
) -> Iterator[tuple[tuple[int, int], Located]]:
    """Yield each span with its tokens, their places counted from the beginning of the text."""
    for first in range(0, len(spans), group):
        chosen = spans[first : first + group]
        yield from zip(chosen, _locate_spans(text, chosen, locate), strict=True)


def _locate_spans(text: str, spans: Sequence[tuple[int, int]], locate: Locate) -> list[Located]:
    found = locate([text[start:end] for start, end in spans])
    return [replace(each, starts=each.starts + start) for each, (start, _) in zip(found, spans, strict=True)]


def _junction(part: Located, following: Located, end: int, agreement: int) -> tuple[int, int] | None:
    """Return how many tokens to keep of a part, and how many to leave out of the one that follows.

    Up to the place `end` both must agree over so many characters; None where they do not.
    """
    ours, theirs = (_count_before(each.starts, end) for each in (part, following))
    count = min(ours, theirs)
    same = part.ids[ours - count : ours] == following.ids[theirs - count : theirs]
    same &= part.starts[ours - count : ours] == following.starts[theirs - count : theirs]
    if part.words is not None and following.words is not None:  # equal tokens of words that are cut apart elsewhere
        same[1:] &= _begins(part.words[ours - count : ours]) == _begins(following.words[theirs - count : theirs])
    differ = np.flatnonzero(~same)
    agreed = count - (int(differ[-1]) + 1 if len(differ) else 0)
    if part.words is not None and part.between_words:
        agreed = _from_a_word(part.words[ours - agreed : ours])
    if not agreed or end - int(part.starts[ours - agreed]) < agreement:
        return None
    return ours - agreed, theirs - agreed


def _begins(words: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which tokens behind the first begin a word, (tokens - 1,)."""
    return np.diff(words) != 0


def _from_a_word(words: NDArray[np.int64]) -> int:
    """Return how many of these tokens there are from the first that begins a word on; the very first may not."""
    begins = np.flatnonzero(_begins(words))
    return len(words) - 1 - int(begins[0]) if len(begins) else 0


def _count_before(starts: NDArray[np.int64], end: int) -> int:
    """Return how many tokens there are up to the last one that begins before a place."""
    before = np.flatnonzero(starts < end)
    return int(before[-1]) + 1 if len(before) else 0


def _begin_anew(
    text: str, part: Located, places: tuple[int, int, int], locate: Locate, lengths: Lengths
) -> tuple[Located, tuple[int, int] | None]:
    """Return the part that follows, begun at the first token of the part before from which both agree.

    `places` are where it began, where the part before ends, and where it ends itself.
    """
    start, end, end_of_following = places
    agreed_to = end - lengths.margin
    begins = np.unique(part.starts[(part.starts >= start) & (part.starts <= agreed_to - lengths.agreement)])[:RETRIES]
    tried = _locate_spans(text, [(begin, end) for begin in begins.tolist()], locate)
    for begin, head in zip(begins.tolist(), tried, strict=True):
        if _junction(part, head, agreed_to, lengths.agreement) is not None:
            (following,) = _locate_spans(text, [(begin, end_of_following)], locate)
            return following, _junction(part, following, agreed_to, lengths.agreement)
    return part, None
