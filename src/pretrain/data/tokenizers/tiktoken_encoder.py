"""Encode documents by `tiktoken` if installed: the ids of `tokenizers`, several times as fast.

The contents of a store must not depend on installed packages. So a tokenizer is converted only if both libraries follow
the same rules for it, and both encode the strings below and a sample of the corpus before any id is returned.
"""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.data.tokenizers.tokenizer_json import BYTE_OF, merges_of, steps_of
from pretrain.errors import DataError

log = logging.getLogger(__name__)

Ids = NDArray[np.uint32]
Encode = Callable[[Sequence[str]], list[Ids]]

# The pattern of ByteLevel(use_regex=True) and GPT-2 (Radford et al. 2019, code released with it), without backtracking.
GPT2_SPLIT = r"""'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


HARD = (
    "", " ", "  a   b    ", "\n\n\n x\r\n\r\n\ty \x0b\x0c\x1c\x1f\x85z", "\u00a0\u2003\u3000 \u200b\u2028\u2029\ufeff.",
    "I'm you're he'LL she'd we'Ve 'tis'n't o'clock's", "x=1234567890,12.5e-3 ²³½Ⅷ٣٤٥ १२३",
    "naïve Ångström e\u0301\u0323", "日本語のテキスト、漢字。한국어 텍스트", "Здравствуй Γειά σου", "\u202emixed\u202c",
    "مرحبا שָׁלוֹם สวัสดีครับ", "\x00\x01\x7f\x80\x9f", "😀👩\u200d👩\u200d👧🏽🇫🇷\ufe0f\u20e3",
    "\U0001d4d0\U00020bb7\U000e0041\U0010ffff\ufffd\ufffe", "<|endoftext|>[MASK]<s></s><|im_start|><|special|>",
    "a" * 300 + "!" * 300 + " " * 300 + "\n" * 300, "https://example.org/a_b?c=%20#d {\"k\": [1]}\n\tif (x != y) z++;",
)  # fmt: skip


SAMPLE, SAMPLE_LENGTH = 64, 20_000  # documents, and characters of each, that both libraries encode first
SPOT_LENGTH = 1_000  # characters that both libraries encode of each later list of documents

# Spelled in a text it is plain text. Without any special token, tiktoken 0.14 finds an empty one at every position of a
# text, which takes half of its time.
SPECIAL = "<|special|>"

UNKNOWN = 2**32 - 1  # stands for a byte that the vocabulary lacks


class FastEncoder:
    """Encodes by tiktoken after its ids were compared with those of `reference`."""

    def __init__(self, encode: Callable[[str], Ids], reference: Encode) -> None:
        self._encode, self._reference = encode, reference
        self._has_returned = False  # whether any ids were returned
        self.parity = self._agree(HARD)

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, equal to those of `reference`.

        If the first texts differ, `reference` encodes them and all later ones. A difference in a later text raises
        DataError: ids returned before may be wrong.
        """
        sample = texts[:1] if self._has_returned else texts[:SAMPLE]
        length = SPOT_LENGTH if self._has_returned else SAMPLE_LENGTH
        if not self._agree([text[:length] for text in sample]):
            self.parity = False
            if self._has_returned:
                raise DataError(
                    f"tiktoken and tokenizers differ on a text that begins {texts[0][:40]!r}, after they agreed on "
                    "others. Prepare the data again without it: pip uninstall tiktoken."
                )
            return self._reference(texts)
        self._has_returned = True
        return self._map(texts)

    def _agree(self, texts: Sequence[str]) -> bool:
        expected = self._reference(texts)
        agree = all(np.array_equal(self._encode(text), ids) for text, ids in zip(texts, expected, strict=True))
        if not agree:
            log.info("tiktoken and tokenizers differ, so tokenizers encodes.")
        return agree

    def _map(self, texts: Sequence[str]) -> list[Ids]:
        threads = min(_threads(), len(texts))
        if threads < 2:
            return [self._encode(text) for text in texts]
        with ThreadPoolExecutor(threads) as pool:  # tiktoken lets other threads run while it encodes
            return list(pool.map(self._encode, texts))


def fast_encoder(inner: Any, state: dict[str, Any], reference: Encode) -> FastEncoder | None:
    """Return an encoder of documents for a `tokenizers.Tokenizer` with the tokenizer.json `state`.

    None if tiktoken is not installed, cannot follow the tokenizer's rules, or gives other ids.
    """
    try:
        from tiktoken import Encoding
    except ImportError:
        return None
    pattern = _split_pattern(state)
    if pattern is None or not _is_plain_bpe(state["model"]) or not _all_reachable(inner, state):
        return None
    tokens, vocab = _ranked_tokens(state["model"]), state["model"]["vocab"]
    ranks = {bytes(BYTE_OF[character] for character in token): rank for rank, token in enumerate(tokens)}
    ids = np.array([vocab.get(token, UNKNOWN) for token in tokens], np.uint32)
    try:
        encoding = Encoding("converted", pat_str=pattern, mergeable_ranks=ranks, special_tokens={SPECIAL: len(ranks)})
    except ValueError:  # it cannot read the pattern
        return None
    encoder = FastEncoder(partial(_encode, encoding, ids, reference), reference)
    return encoder if encoder.parity else None


def _encode(encoding: Any, ids: Ids, reference: Encode, text: str) -> Ids:
    try:
        encoded: Ids = ids[encoding.encode_to_numpy(text, disallowed_special=())]
    except BaseException as error:  # its Rust code panics, with no Exception, if a pattern needs too much memory
        if type(error).__name__ not in ("PanicException", "ValueError"):
            raise
        return reference([text])[0]
    return reference([text])[0] if encoded.size and encoded.max() == UNKNOWN else encoded


def _split_pattern(state: dict[str, Any]) -> str | None:
    """Return a pre-tokenizer's regex; None if it does more than split and spell bytes."""
    if state.get("normalizer") or any(not token["special"] for token in state["added_tokens"]):
        return None  # added tokens that are not special are matched in a text
    *splitters, spells = steps_of(state, "pre_tokenizer") or [{}]
    if spells.get("type") != "ByteLevel" or spells.get("add_prefix_space"):
        return None
    if not splitters:
        return GPT2_SPLIT if spells.get("use_regex", True) else None
    first = splitters[0]
    plain = first.get("type") == "Split" and first.get("behavior") == "Isolated" and not first.get("invert")
    if len(splitters) > 1 or not plain or spells.get("use_regex", True):
        return None
    pattern = first.get("pattern", {}).get("Regex")
    return str(pattern) if pattern else None


def _ranked_tokens(model: dict[str, Any]) -> list[str]:
    """Return the tokens of single bytes, then those of merges in their order: tiktoken's ranks."""
    return [*BYTE_OF, *(made for _, _, made in merges_of(model))]


def _is_plain_bpe(model: dict[str, Any]) -> bool:
    """Return whether a model is a BPE over bytes whose merges make different tokens."""
    changes = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model.get("type") != "BPE" or any(model.get(name) for name in changes):
        return False
    tokens = _ranked_tokens(model)
    known = len(set(tokens)) == len(tokens) and all(token in model["vocab"] for token in tokens[len(BYTE_OF) :])
    return known and all(character in BYTE_OF for token in tokens for character in token)


def _all_reachable(inner: Any, state: dict[str, Any]) -> bool:
    """Return whether merges turn the bytes of every token into that token, which tiktoken assumes.

    With `ignore_merges`, tokenizers assumes it too, for any token of the vocabulary.
    """
    model, tokenize = state["model"], inner.model.tokenize
    vocab = model["vocab"]
    spelled = [token for token in _ranked_tokens(model) if token in vocab]
    if model.get("ignore_merges"):
        return not vocab.keys() - set(spelled) - {token["content"] for token in state["added_tokens"]}
    return all([piece.id for piece in tokenize(token)] == [vocab[token]] for token in spelled)


def _threads() -> int:
    """Return the number of threads that `tokenizers` would use, from its environment variables."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("off", "false", "f", "no", "n", "0"):
        return 1
    wanted = os.environ.get("RAYON_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() and int(wanted) else os.cpu_count() or 1
