"""Special tokens that a document spells: it must read as text, whatever kind of model the tokenizer has.

`tokenizers` can leave special tokens alone in a text, but a model whose own vocabulary holds `</s>` (Unigram,
WordLevel, WordPiece, and BPE by a merge) still gives its id for those four characters. Documents are therefore encoded
by a copy of the tokenizer in which such tokens have names that no text holds.
"""

import re
import secrets
from collections.abc import Iterable
from typing import Any

from pretrain.errors import DataError

ISOLATING = ("BertPreTokenizer", "Punctuation", "Whitespace")  # split words from punctuation


DROP_SPACES = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")


def spelled_by_model(state: dict[str, Any], special: Iterable[str]) -> frozenset[str]:
    """Return the special tokens whose ids the model of a tokenizer.json can give for their spelling in a text."""
    model, vocab = state["model"], vocabulary(state)
    known = frozenset(name for name in special if name in vocab)
    if not known:
        return known
    if model.get("type") == "BPE":
        return _made_of_symbols(state, known)
    return frozenset(name for name in known if not _falls_apart(state, name))


def as_plain_text(state: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """Return a tokenizer.json that gives the same ids but for texts that spell one of the special tokens `names`.

    The tokens keep their ids and lose their spelling; merges that would make one are left out. Raises DataError where
    that would change other texts as well: for a token that is an ordinary character, or part of ordinary tokens.
    """
    secret = secrets.token_hex(16)  # another in each process, so no document can be written to hold it
    renamed = {name: f"<special {secret} {number}>" for number, name in enumerate(sorted(names))}
    model = dict(state["model"])
    for name in sorted(names):
        if len(name.strip()) < 2:
            raise _refused(name, "is a single character or white space, which cannot be told from a text's own")
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


def vocabulary(state: dict[str, Any]) -> dict[str, int]:
    """Return the ids of the model's own vocabulary in a tokenizer.json, without tokens that were added to it."""
    vocab = state["model"].get("vocab", {})
    return {piece[0]: number for number, piece in enumerate(vocab)} if isinstance(vocab, list) else vocab


def _made_of_symbols(state: dict[str, Any], known: frozenset[str]) -> frozenset[str]:
    """Return those tokens that a BPE model makes: by a merge, as a whole word, or of a single character."""
    from pretrain.data.tokenizers.tokenizer import BYTE_OF

    model = state["model"]
    if "ByteLevel" in (part.get("type") for part in steps_of(state, "pre_tokenizer", "pretokenizers")):
        known = frozenset(name for name in known if set(name) <= BYTE_OF.keys())
    if model.get("ignore_merges"):
        return known
    prefix, suffix = (model.get(key) or "" for key in ("continuing_subword_prefix", "end_of_word_suffix"))
    single = {name for name in known if len(name.removeprefix(prefix).removesuffix(suffix)) < 2}
    return known & {*single, *(made for _, _, made in _merges(model))}


def _merges(model: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the two tokens of each merge and the one that it makes."""
    prefix = model.get("continuing_subword_prefix") or ""
    pairs = (tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"])
    return [(left, right, left + right.removeprefix(prefix)) for left, right in pairs]


def _other_merges(model: dict[str, Any], names: frozenset[str]) -> list[list[str]]:
    merges = _merges(model)
    for left, right, made in merges:
        name = next((part for part in (left, right) if part in names), None)
        if name is not None:
            raise _refused(name, f"is a part of its ordinary token {made!r}")
    return [[left, right] for left, right, made in merges if made not in names]


def _falls_apart(state: dict[str, Any], name: str) -> bool:
    """Return whether the pre-tokenizer splits or drops a token before the model sees it, whatever stands around."""
    steps = steps_of(state, "pre_tokenizer", "pretokenizers")
    if name.isspace():
        return any(step.get("type") in DROP_SPACES for step in steps)
    isolating = any(
        step.get("type") in ISOLATING and step.get("behavior", "Isolated") in ("Isolated", "Removed") for step in steps
    )
    return isolating and bool(re.search(r"\w", name) and re.search(r"[^\w\s]", name))


def steps_of(state: dict[str, Any], stage: str, members: str) -> list[dict[str, Any]]:
    """Return the steps of one stage of a tokenizer.json, those inside sequences too."""
    found, left = [], [state.get(stage) or {}]
    while left:
        part = left.pop(0)
        left = [*part.get(members, []), *left] if part.get("type") == "Sequence" else left
        found.append(part)
    return found


def _refused(name: str, reason: str) -> DataError:
    return DataError(
        f"the tokenizer's special token {name!a} {reason}: documents that spell it would gain its id. "
        "Give that role to a token that no text holds, such as <|endoftext|>, or train a tokenizer: tokenizer=bpe."
    )
