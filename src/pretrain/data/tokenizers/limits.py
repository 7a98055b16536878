"""What a stranger's tokenizer.json may ask for, decided from its text before the library builds anything of it.

The library itself has no such limits: an id of four billion makes tables of that size, and four replacements of a
letter by 200 make terabytes of it.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pretrain.data.tokenizers.plain_text import steps_of, vocabulary

MAX_TOKEN_BYTES = 65_536  # of one token


MAX_CONTENT_BYTES = 1_000  # of what a normalizer or decoder puts in place of something


MAX_GROWTH = 64  # bytes that become of one


MAX_BYTE_LEVELS = 4  # steps that spell each byte as a character of up to two


MAX_WORD_PIECE_WORD = 1_000  # characters; the time that a word takes grows with their cube


STAGES = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}  # and their sequences


SPARE_IDS = 65_536  # that a vocabulary may leave unused, beside three times as many as it has


def check_tokenizer(state: Any) -> None:
    """Raise ValueError for a tokenizer.json that is none, or beyond the limits above."""
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict):
        raise ValueError("it holds no tokenizer's model")
    try:
        added = {token["content"]: token["id"] for token in state.get("added_tokens") or []}
        check_vocabulary(vocabulary(state) | added)
        for stage, members in STAGES.items():
            _check_growth(stage, steps_of(state, stage, members))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"a part of it has another form than a tokenizer's: {type(error).__name__}: {error}"
        ) from error
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > MAX_WORD_PIECE_WORD:
        raise ValueError(
            f"its max_input_chars_per_word={longest} lets one word take minutes; at most {MAX_WORD_PIECE_WORD} are read"
        )


def check_vocabulary(ids: Mapping[str, int]) -> None:
    """Raise ValueError where an id lies far behind the vocabulary's size, or a token is longer than any text."""
    most = 4 * len(ids) + SPARE_IDS
    for token, number in ids.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < most:
            raise ValueError(
                f"its token {token[:40]!a} has the id {ascii(number)[:40]}, but ids of its {len(ids):,} tokens must be "
                f"whole numbers below {most:,}"
            )
        if len(token) * 4 > MAX_TOKEN_BYTES and len(token.encode("utf8", "replace")) > MAX_TOKEN_BYTES:
            raise ValueError(
                f"its token {token[:40]!a}... has more than the {MAX_TOKEN_BYTES:,} bytes that one may have"
            )


def _check_growth(stage: str, steps: list[dict[str, Any]]) -> None:
    """Raise ValueError where steps after each other make much of little."""
    byte_levels = sum(step.get("type") == "ByteLevel" for step in steps)
    if byte_levels > MAX_BYTE_LEVELS:
        raise ValueError(f"its {stage} has {byte_levels} steps of ByteLevel, and at most {MAX_BYTE_LEVELS} are read")
    found = [list(_replacements(step)) for step in steps]
    for content in (content for pairs in found for _, content in pairs):
        if len(content.encode()) > MAX_CONTENT_BYTES:
            raise ValueError(
                f"its {stage} puts {len(content.encode()):,} bytes in place of something, and at most "
                f"{MAX_CONTENT_BYTES:,} are read"
            )
    for number, pairs in enumerate(found):
        for replaced, content in pairs:
            bound = MAX_GROWTH * max(1, len(replaced.encode()))
            if steps[number]["type"] == "Prepend":  # once a text
                bound = MAX_CONTENT_BYTES
            if not _stays_below(bound, content, steps[number + 1 :]):
                raise ValueError(f"its {stage} makes more than {bound:,} bytes of {replaced[:20] or 'one character'!a}")


def _replacements(step: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a step replaces, "" where a pattern decides that, with what it puts there."""
    kind = step.get("type")
    if kind == "Replace":
        yield str(step["pattern"].get("String", "")), str(step["content"])
    elif kind == "Prepend":
        yield "", str(step["prepend"])
    elif kind == "Precompiled":
        yield "", _longest_of(step.get("precompiled_charsmap") or "")


def _longest_of(charsmap: str) -> str:
    """Return the longest text that SentencePiece's table of characters puts in place of some.

    The table is the size of a trie in bytes (little-endian, 4 bytes), the trie, and texts that end with a zero byte.
    """
    try:
        data = base64.b64decode(charsmap, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("its precompiled_charsmap is not base64") from None
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 4 or not 0 < size <= len(data) - 4:
        raise ValueError("its precompiled_charsmap is not a table of characters")
    longest = max(data[4 + size :].split(b"\0"), key=len)
    return longest.decode("utf8", "replace")


def _stays_below(bound: int, text: str, steps: list[dict[str, Any]]) -> bool:
    """Return whether a short text has at most `bound` bytes after each of the steps that come behind."""
    for step in steps:
        if len(text.encode()) > bound:
            return False
        text = _applied(step, text)
    return len(text.encode()) <= bound


def _applied(step: dict[str, Any], text: str) -> str:
    """Return what a step of a normalizer makes of a text; steps of other stages that replace something are such too."""
    from tokenizers import Tokenizer as Inner

    empty = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    try:
        return str(Inner.from_str(json.dumps(empty | {"normalizer": step})).normalizer.normalize_str(text))
    except Exception:
        return text  # no normalizer: a step of a decoder that replaces nothing
