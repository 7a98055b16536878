"""Limits on an untrusted tokenizer.json, checked before the library builds anything from it.

The library has no such limits: an id of four billion allocates tables of that size, and four replacements of a letter
by 200 letters produce terabytes of text.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pretrain.data.tokenizers.tokenizer_json import STAGES, steps_of, vocabulary

MAX_TOKEN_BYTES = 65_536
MAX_CONTENT_BYTES = 1_000  # of one replacement in a normalizer or decoder
MAX_GROWTH = 64  # bytes of output for one byte of input
MAX_BYTE_LEVELS = 4  # ByteLevel steps; each can double the bytes
MAX_WORD_PIECE_WORD = 1_000  # characters; the time for a word grows with their cube
SPARE_IDS = 65_536  # unused ids that a vocabulary may have, beside three times its size


def check_tokenizer(state: Any) -> None:
    """Raise ValueError for JSON that is no tokenizer.json or exceeds the limits above."""
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict):
        raise ValueError("it has no tokenizer model")
    try:
        added = {token["content"]: token["id"] for token in state.get("added_tokens") or []}
        check_vocabulary(vocabulary(state) | added)
        for stage in STAGES:
            _check_growth(stage, steps_of(state, stage))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"a part of it does not have a tokenizer's form: {type(error).__name__}: {error}") from error
    longest = model.get("max_input_chars_per_word")
    if isinstance(longest, int) and longest > MAX_WORD_PIECE_WORD:
        raise ValueError(
            f"its max_input_chars_per_word={longest} lets one word take minutes; the limit is {MAX_WORD_PIECE_WORD}"
        )


def check_vocabulary(ids: Mapping[str, int]) -> None:
    """Raise ValueError for an id far beyond the vocabulary's size or an overlong token."""
    bound = 4 * len(ids) + SPARE_IDS
    for token, number in ids.items():
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < bound:
            raise ValueError(
                f"its token {token[:40]!a} has the id {ascii(number)[:40]}, but ids of its {len(ids):,} tokens must be "
                f"whole numbers below {bound:,}"
            )
        if len(token) * 4 > MAX_TOKEN_BYTES and len(token.encode("utf8", "replace")) > MAX_TOKEN_BYTES:
            raise ValueError(f"its token {token[:40]!a}... exceeds the limit of {MAX_TOKEN_BYTES:,} bytes for a token")


def _check_growth(stage: str, steps: list[dict[str, Any]]) -> None:
    """Raise ValueError if consecutive steps can expand a short text beyond MAX_GROWTH."""
    byte_levels = sum(step.get("type") == "ByteLevel" for step in steps)
    if byte_levels > MAX_BYTE_LEVELS:
        raise ValueError(f"its {stage} has {byte_levels} ByteLevel steps; the limit is {MAX_BYTE_LEVELS}")
    replacements = [list(_replacements(step)) for step in steps]
    for content in (content for pairs in replacements for _, content in pairs):
        if len(content.encode()) > MAX_CONTENT_BYTES:
            raise ValueError(
                f"its {stage} has a replacement of {len(content.encode()):,} bytes; the limit is {MAX_CONTENT_BYTES:,}"
            )
    for number, pairs in enumerate(replacements):
        for replaced, content in pairs:
            bound = MAX_GROWTH * max(1, len(replaced.encode()))
            if steps[number]["type"] == "Prepend":  # once a text
                bound = MAX_CONTENT_BYTES
            if not _stays_below(bound, content, steps[number + 1 :]):
                raise ValueError(
                    f"its {stage} turns {replaced[:20] or 'one character'!a} into more than {bound:,} bytes"
                )


def _replacements(step: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (replaced text, replacement) of a step; "" for text that a pattern selects."""
    kind = step.get("type")
    if kind == "Replace":
        yield str(step["pattern"].get("String", "")), str(step["content"])
    elif kind == "Prepend":
        yield "", str(step["prepend"])
    elif kind == "Precompiled":
        yield "", _longest_of(step.get("precompiled_charsmap") or "")


def _longest_of(charsmap: str) -> str:
    """Return the longest replacement in SentencePiece's table of characters.

    The table holds the size of a trie in bytes (little-endian, 4 bytes), the trie, and texts that end with a zero byte.
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
    """Return whether a short text has at most `bound` bytes around each step."""
    for step in steps:
        if len(text.encode()) > bound:
            return False
        text = _normalize(step, text)
    return len(text.encode()) <= bound


def _normalize(step: dict[str, Any], text: str) -> str:
    """Return a text after one step, run as a normalizer, whatever its stage."""
    from tokenizers import Tokenizer as Inner

    empty = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    try:
        return str(Inner.from_str(json.dumps(empty | {"normalizer": step})).normalizer.normalize_str(text))
    except Exception:
        return text  # no normalizer: a decoder step that replaces nothing
