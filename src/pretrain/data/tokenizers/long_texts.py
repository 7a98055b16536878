"""Encode a long text in overlapping parts, with the ids of the whole text.

A tokenizer may add a space before each text, count digits in threes from a text's start, or merge across any position:
no cut is right for all. So parts overlap. Two parts are joined where both give the same tokens at the same offsets over
a long stretch, with words that begin at the same tokens: from there on the second part does what the first does. Parts
that never agree, such as those of one word of a million letters, restart at tokens of the part before; as a last resort
the text is encoded whole.

A Unigram model takes the most likely of all ways to split a word, and the end of the word may decide how it begins. Its
parts are joined between words only: texts of very long words, as in a language without spaces, are encoded whole.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint32]
RETRIES = 16  # tokens of a part at which the next one may restart


@dataclass(frozen=True)
class Offsets:
    """Ids with the offsets in the text at which their tokens begin."""

    ids: Ids  # (tokens,)
    starts: NDArray[np.int64]  # (tokens,), characters
    words: NDArray[np.int64] | None = None  # (tokens,), the index of each token's word, if known
    between_words: bool = False  # whether parts may be joined between words only

    def without_head(self, count: int) -> "Offsets":
        """Return all but the first `count` tokens."""
        words = None if self.words is None else self.words[count:]
        return replace(self, ids=self.ids[count:], starts=self.starts[count:], words=words)


@dataclass(frozen=True)
class Lengths:
    """Lengths of the parts of a text, in characters."""

    part: int = 1_000_000  # a text up to this length is encoded whole
    overlap: int = 20_000  # of a part with the next one
    margin: int = 5_000  # at the end of a part, where tokens may depend on the text after it
    agreement: int = 5_000  # over which both parts must give the same tokens
    group: int = 8  # parts encoded together, which bounds memory


Span = tuple[int, int]  # start and end in the text, characters
Encode = Callable[[Sequence[str]], list[Offsets]]


def encode_in_parts(text: str, encode: Encode, lengths: Lengths) -> Ids:
    """Return the ids of a text; `encode` returns those of parts, with offsets."""
    cuts = np.cumsum([0, *(len(piece) for piece in pieces(text, lengths.part))]).tolist()
    spans = [(start, min(end + lengths.overlap, len(text))) for start, end in pairwise(cuts)]
    parts = _in_groups(text, spans, encode, lengths.group)
    joined: list[Ids] = []
    (_, end), part = next(parts)
    for span, following in parts:
        junction = _junction(part, following, end - lengths.margin, lengths.agreement)
        if junction is None:
            following, junction = _restart(text, part, (span[0], end, span[1]), encode, lengths)
        if junction is None:
            return encode([text])[0].ids
        keep, skip = junction
        joined.append(part.ids[:keep])
        part, end = following.without_head(skip), span[1]
    return np.concatenate([*joined, part.ids])


def pieces(text: str, length: int) -> Iterator[str]:
    """Yield a text in pieces of at most `length` characters that join to it again.

    A cut is before a space between two characters that are no spaces, where GPT-2's pre-tokenizer always splits
    (Radford et al. 2019, section 2.2). A piece without such a space is cut at its full length.
    """
    start = 0
    while len(text) - start > length:
        end = start + length
        space = text.rfind(" ", start + 1, end)
        while space > start and (text[space - 1].isspace() or text[space + 1].isspace()):
            space = text.rfind(" ", start + 1, space)
        end = space if space > start else end
        yield text[start:end]
        start = end
    yield text[start:]


def offsets_by_length(ids: Ids, text: str, token_bytes: NDArray[np.int64]) -> Offsets | None:
    """Return the offsets of tokens that are a text's bytes; `token_bytes` has their lengths.

    None if the lengths do not add up to the text's: the tokenizer drops or changes bytes.
    """
    data = np.frombuffer(text.encode(), np.uint8)
    ends = np.cumsum(token_bytes[ids])
    if (ends[-1] if len(ends) else 0) != len(data):
        return None
    starts = ends - token_bytes[ids]
    characters = np.cumsum((data & 0xC0) != 0x80) - 1  # index of each byte's character: later bytes begin with 10
    return Offsets(ids, characters[starts])


def _in_groups(text: str, spans: Sequence[Span], encode: Encode, group: int) -> Iterator[tuple[Span, Offsets]]:
    """Yield each span with its tokens, whose offsets count from the start of the text."""
    for first in range(0, len(spans), group):
        chosen = spans[first : first + group]
        yield from zip(chosen, _encode_spans(text, chosen, encode), strict=True)


def _encode_spans(text: str, spans: Sequence[Span], encode: Encode) -> list[Offsets]:
    encoded = encode([text[start:end] for start, end in spans])
    return [replace(part, starts=part.starts + start) for part, (start, _) in zip(encoded, spans, strict=True)]


def _junction(part: Offsets, following: Offsets, end: int, agreement: int) -> tuple[int, int] | None:
    """Return how many tokens to keep of a part and to skip of the next.

    Both must agree over `agreement` characters up to the offset `end`; None if they do not.
    """
    ours, theirs = (_count_before(tokens.starts, end) for tokens in (part, following))
    count = min(ours, theirs)
    same = part.ids[ours - count : ours] == following.ids[theirs - count : theirs]
    same &= part.starts[ours - count : ours] == following.starts[theirs - count : theirs]
    if part.words is not None and following.words is not None:  # equal tokens may belong to words split elsewhere
        same[1:] &= _begins(part.words[ours - count : ours]) == _begins(following.words[theirs - count : theirs])
    differ = np.flatnonzero(~same)
    agreed = count - (int(differ[-1]) + 1 if len(differ) else 0)
    if part.words is not None and part.between_words:
        agreed = _from_a_word(part.words[ours - agreed : ours])
    if not agreed or end - int(part.starts[ours - agreed]) < agreement:
        return None
    return ours - agreed, theirs - agreed


def _begins(words: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which tokens after the first begin a word, bool (tokens - 1,)."""
    return np.diff(words) != 0


def _from_a_word(words: NDArray[np.int64]) -> int:
    """Return the number of tokens from the first that surely begins a word."""
    begins = np.flatnonzero(_begins(words))
    return len(words) - 1 - int(begins[0]) if len(begins) else 0


def _count_before(starts: NDArray[np.int64], end: int) -> int:
    """Return the number of tokens up to the last one that begins before an offset."""
    before = np.flatnonzero(starts < end)
    return int(before[-1]) + 1 if len(before) else 0


def _restart(
    text: str, part: Offsets, bounds: tuple[int, int, int], encode: Encode, lengths: Lengths
) -> tuple[Offsets, tuple[int, int] | None]:
    """Encode the next part again, from the first token at which both parts agree.

    `bounds` are the start of the next part, the end of the part before, and the end of the next part. Returns the part
    and the junction, None if no start leads to one.
    """
    start, end, end_of_following = bounds
    agreed_to = end - lengths.margin
    in_overlap = (part.starts >= start) & (part.starts <= agreed_to - lengths.agreement)
    begins = np.unique(part.starts[in_overlap])[:RETRIES].tolist()
    heads = _encode_spans(text, [(begin, end) for begin in begins], encode)
    for begin, head in zip(begins, heads, strict=True):
        if _junction(part, head, agreed_to, lengths.agreement) is not None:
            (following,) = _encode_spans(text, [(begin, end_of_following)], encode)
            return following, _junction(part, following, agreed_to, lengths.agreement)
    return part, None
