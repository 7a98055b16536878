"""Read the vocabulary, merges and processing steps of a tokenizer.json, the `tokenizers` library's file."""

import json
from typing import Any


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Printable Latin-1 characters stand for themselves; the other bytes, in order, for U+0100 and on
    (Radford et al. 2019, code released with it).
    """
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in sorted(printed)} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()
STAGES = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "decoder": "decoders",
}  # key of a sequence's steps


def vocabulary(state: dict[str, Any]) -> dict[str, int]:
    """Return the ids of the model's vocabulary, without added tokens."""
    vocab = state["model"].get("vocab", {})
    return {piece[0]: number for number, piece in enumerate(vocab)} if isinstance(vocab, list) else vocab


def steps_of(state: dict[str, Any], stage: str) -> list[dict[str, Any]]:
    """Return the steps of a stage (normalizer, pre_tokenizer or decoder) in order, sequences flattened."""
    steps, queue = [], [state.get(stage) or {}]
    while queue:
        step = queue.pop(0)
        if step.get("type") == "Sequence":
            queue = [*step.get(STAGES[stage], []), *queue]
        else:
            steps.append(step)
    return steps


def merges_of(model: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the two tokens of each merge of a BPE model, and their result."""
    prefix = model.get("continuing_subword_prefix") or ""
    pairs = (tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"])
    return [(left, right, left + right.removeprefix(prefix)) for left, right in pairs]


def ids_are_bytes(state: dict[str, Any]) -> bool:
    """Return whether every byte's id is its value, without merges, so that NumPy can encode."""
    model, splitter = state["model"], state.get("pre_tokenizer") or {}
    return (
        model["type"] == "BPE"
        and not model["merges"]
        and splitter.get("type") == "ByteLevel"
        and not splitter.get("add_prefix_space")
        and not state.get("normalizer")
        and all(model["vocab"].get(character) == byte for character, byte in BYTE_OF.items())
        and all(token["special"] for token in state["added_tokens"])
    )


def unknown_ids(state: dict[str, Any], ids: dict[str, int], unk_id: int | None) -> frozenset[int]:
    """Return the ids for unknown text: those of the model and of the role `unk_token`."""
    model = state["model"]
    numbers = (model.get("unk_id"), ids.get(model.get("unk_token")), unk_id)
    return frozenset(number for number in numbers if number is not None)


def splits_at_spaces(state: dict[str, Any]) -> bool:
    """Return whether text cut before single spaces always has the ids of the whole.

    An earlier version cut documents of over a million characters so, whatever the tokenizer. Stores of tokenizers for
    which this is false are prepared again.
    """
    text = json.dumps([state.get("normalizer"), state.get("pre_tokenizer")])
    changes = ('"Prepend"', '"Strip"', '"Metaspace"', '"add_prefix_space": true')
    return ('"ByteLevel"' in text or '"BertPreTokenizer"' in text) and not any(name in text for name in changes)
