"""Encode special tokens spelled in a document as text, with every kind of tokenizer model.

`tokenizers` can ignore special tokens in a text, but a model whose vocabulary holds `</s>` (Unigram, WordLevel,
WordPiece, and BPE by a merge) still gives its id for those four characters. Documents are therefore encoded by a copy
of the tokenizer in which such tokens have names that no text holds.
"""

import re
import secrets
from collections.abc import Iterable
from typing import Any

from pretrain.data.tokenizers.tokenizer_json import BYTE_OF, merges_of, steps_of, vocabulary
from pretrain.errors import DataError

ISOLATING = ("BertPreTokenizer", "Punctuation", "Whitespace")  # split words from punctuation
DROP_SPACES = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


def spelled_by_model(state: dict[str, Any], special: Iterable[str]) -> frozenset[str]:
    """Return the special tokens whose ids a tokenizer's model can give for their spelling."""
    model, vocab = state["model"], vocabulary(state)
    known = frozenset(name for name in special if name in vocab)
    if not known:
        return known
    if model.get("type") == "BPE":
        return _made_of_symbols(state, known)
    return frozenset(name for name in known if not _is_split(state, name))


def as_plain_text(state: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Return a tokenizer.json that changes only the ids of texts that spell `names`.

    The tokens keep their ids and get secret spellings; merges that produce one are left out. Raises DataError for a
    token that is an ordinary character or part of ordinary tokens, since that would change other texts as well.
    """
    secret = secrets.token_hex(16)  # new in each process, so no document can be written to hold it
    renamed = {name: f"<special {secret} {number}>" for number, name in enumerate(sorted(names))}
    model = dict(state["model"])
    for name in sorted(names):
        if len(name.strip()) < 2:
            raise _ambiguous(name, "is a single character or white space, as ordinary text has")
    if isinstance(model["vocab"], list):
        model["vocab"] = [[renamed.get(piece, piece), score] for piece, score in model["vocab"]]
    else:
        model["vocab"] = {renamed.get(token, token): number for token, number in model["vocab"].items()}
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if model.get("type") == "BPE":
        model["merges"] = _other_merges(model, names)
    added = [
        token | {"content": renamed.get(token["content"], token["content"])} for token in state.get("added_tokens", [])
    ]
    return state | {"model": model, "added_tokens": added, "post_processor": None, "decoder": None}


def _made_of_symbols(state: dict[str, Any], known: frozenset[str]) -> frozenset[str]:
    """Return the tokens that a BPE model makes: merged, as a word, or single characters."""
    model = state["model"]
    if any(step.get("type") == "ByteLevel" for step in steps_of(state, "pre_tokenizer")):
        known = frozenset(name for name in known if set(name) <= BYTE_OF.keys())
    if model.get("ignore_merges"):
        return known
    prefix, suffix = (model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix"))
    single = {name for name in known if len(name.removeprefix(prefix).removesuffix(suffix)) < 2}
    return known & {*single, *(made for _, _, made in merges_of(model))}


def _other_merges(model: dict[str, Any], names: frozenset[str]) -> list[list[str]]:
    """Return the merges that produce none of the tokens; raise DataError if one is consumed."""
    merges = merges_of(model)
    for left, right, made in merges:
        name = next((part for part in (left, right) if part in names), None)
        if name is not None:
            raise _ambiguous(name, f"is a part of its ordinary token {made!r}")
    return [[left, right] for left, right, made in merges if made not in names]


def _is_split(state: dict[str, Any], name: str) -> bool:
    """Return whether the pre-tokenizer splits or drops a token in any context."""
    steps = steps_of(state, "pre_tokenizer")
    if name.isspace():
        return any(step.get("type") in DROP_SPACES for step in steps)
    isolating = any(
        step.get("type") in ISOLATING and step.get("behavior", "Isolated") in ("Isolated", "Removed") for step in steps
    )
    return isolating and bool(re.search(r"\w", name) and re.search(r"[^\w\s]", name))


def _ambiguous(name: str, reason: str) -> DataError:
    return DataError(
        f"the tokenizer's special token {name!a} {reason}: documents that spell it would get its id. "
        "Give that role to a token that no text holds, such as <|endoftext|>, or train a tokenizer: tokenizer=bpe."
    )
