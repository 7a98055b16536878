"""Ids of documents by `tiktoken`, where it is installed and gives those of `tokenizers`, several times as fast.

What a store holds must not depend on what is installed. So a tokenizer is converted only where the two are known to
follow the same rules, and the strings below and a sample of the very corpus are encoded by both before any id is given.
"""

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.errors import DataError

Ids = NDArray[np.uint32]


Encode = Callable[[Sequence[str]], list[Ids]]


# What ByteLevel(use_regex=True) splits by: the pattern of GPT-2 (Radford et al. 2019, code released with it), written
# so that nothing is tried twice.
GPT2_SPLIT = r"""'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""


HARD = (
    "", " ", "  a   b    ", "\n\n\n x\r\n\r\n\ty \x0b\x0c\x1c\x1f\x85z", "\u00a0\u2003\u3000 \u200b\u2028\u2029\ufeff.",
    "I'm you're he'LL she'd we'Ve 'tis'n't o'clock's", "x=1234567890,12.5e-3 ²³½Ⅷ٣٤٥ १२३",
    "naïve Ångström e\u0301\u0323", "日本語のテキスト、漢字。한국어 텍스트", "Здравствуй Γειά σου", "\u202emixed\u202c",
    "مرحبا שָׁלוֹם สวัสดีครับ", "\x00\x01\x7f\x80\x9f", "😀👩\u200d👩\u200d👧🏽🇫🇷\ufe0f\u20e3",
    "\U0001d4d0\U00020bb7\U000e0041\U0010ffff\ufffd\ufffe", "<|endoftext|>[MASK]<s></s><|im_start|><|special|>",
    "a" * 300 + "!" * 300 + " " * 300 + "\n" * 300, "https://example.org/a_b?c=%20#d {\"k\": [1]}\n\tif (x != y) z++;",
)  # fmt: skip


SAMPLE, SAMPLE_LENGTH = 64, 20_000  # documents of a corpus, and characters of each, that both encode first


SPOT_LENGTH = 1_000  # characters that both encode of each later list of documents


# Spelled in a text it is plain text. With no special token at all, tiktoken 0.14 finds an empty one at every place of a
# text, which takes half of its time.
SPECIAL = "<|special|>"


UNKNOWN = 2**32 - 1  # in place of the id of a byte that the vocabulary lacks


log = logging.getLogger(__name__)


class FastEncoder:
    """Encodes by tiktoken, once it was seen to give what `reference` gives."""

    def __init__(self, encode: Callable[[str], Ids], reference: Encode) -> None:
        self._encode, self._reference = encode, reference
        self._given = False  # whether any ids were
        self.parity = self._agree(HARD)

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, which are those of `reference`.

        Where the first texts show a difference, `reference` encodes from there on. One that shows later raises
        DataError: ids given before may be wrong.
        """
        sample = texts[:1] if self._given else texts[:SAMPLE]
        length = SPOT_LENGTH if self._given else SAMPLE_LENGTH
        if not self._agree([text[:length] for text in sample]):
            self.parity = False
            if self._given:
                raise DataError(
                    f"tiktoken and tokenizers differ on a text that begins {texts[0][:40]!r}, after they agreed on "
                    "others. Prepare the data again without it: pip uninstall tiktoken."
                )
            return self._reference(texts)
        self._given = True
        return self._map(texts)

    def _agree(self, texts: Sequence[str]) -> bool:
        found = self._reference(texts)
        agree = all(np.array_equal(self._encode(text), ids) for text, ids in zip(texts, found, strict=True))
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
    """Return an encoder of documents for a `tokenizers.Tokenizer`, whose tokenizer.json is `state`.

    None where tiktoken is not installed, cannot follow the tokenizer's rules, or gives other ids.
    """
    try:
        from tiktoken import Encoding
    except ImportError:
        return None
    split, ranked = _split(state), _ranked(state)
    if split is None or ranked is None or not _all_reachable(inner, state):
        return None
    ranks = {spelled: rank for rank, spelled in enumerate(ranked)}
    vocab = state["model"]["vocab"]
    ids = np.array([vocab.get(token, UNKNOWN) for token in _spelled_tokens(state)], np.uint32)
    try:
        encoding = Encoding("converted", pat_str=split, mergeable_ranks=ranks, special_tokens={SPECIAL: len(ranks)})
    except ValueError:  # it cannot read the pattern
        return None
    found = FastEncoder(partial(_encode, encoding, ids, reference), reference)
    return found if found.parity else None


def _encode(encoding: Any, ids: Ids, reference: Encode, text: str) -> Ids:
    try:
        found: Ids = ids[encoding.encode_to_numpy(text, disallowed_special=())]
    except BaseException as error:  # its Rust code panics where a pattern needs too much memory: no Exception
        if type(error).__name__ not in ("PanicException", "ValueError"):
            raise
        return reference([text])[0]
    return reference([text])[0] if found.size and found.max() == UNKNOWN else found


def _split(state: dict[str, Any]) -> str | None:
    """Return the pattern of a tokenizer's pre-tokens; none where it does more than split by one and spell bytes."""
    splitter = state.get("pre_tokenizer") or {}
    parts = splitter.get("pretokenizers", []) if splitter.get("type") == "Sequence" else [splitter]
    spells = parts[-1] if parts else {}
    if spells.get("type") != "ByteLevel" or spells.get("add_prefix_space") or state.get("normalizer"):
        return None
    if any(not token["special"] for token in state["added_tokens"]):  # are looked for in a text
        return None
    if len(parts) == 1:
        return GPT2_SPLIT if spells.get("use_regex", True) else None
    first = parts[0]
    plain = first.get("type") == "Split" and first.get("behavior") == "Isolated" and not first.get("invert")
    if len(parts) != 2 or not plain or spells.get("use_regex", True):
        return None
    pattern = first.get("pattern", {}).get("Regex")
    return str(pattern) if pattern else None


def _merges(state: dict[str, Any]) -> list[str]:
    """Return the token that each merge makes."""
    return ["".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in state["model"]["merges"]]


def _spelled_tokens(state: dict[str, Any]) -> list[str]:
    """Return the tokens of single bytes and those that merges make, in the order in which they are to be preferred."""
    from pretrain.data.tokenizers.tokenizer import BYTE_OF

    return [*BYTE_OF, *_merges(state)]


def _ranked(state: dict[str, Any]) -> list[bytes] | None:
    """Return these tokens as bytes; none where the model is no BPE over bytes, or two merges make the same token."""
    from pretrain.data.tokenizers.tokenizer import BYTE_OF

    model = state["model"]
    changes = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if model.get("type") != "BPE" or any(model.get(name) for name in changes):
        return None
    tokens = _spelled_tokens(state)
    if len(set(tokens)) < len(tokens) or any(token not in model["vocab"] for token in _merges(state)):
        return None
    if any(character not in BYTE_OF for token in tokens for character in token):
        return None
    return [bytes(BYTE_OF[character] for character in token) for token in tokens]


def _all_reachable(inner: Any, state: dict[str, Any]) -> bool:
    """Return whether every token is what merges make of its own bytes: tiktoken takes a token for it unasked.

    With `ignore_merges`, tokenizers does so too, and with any token of the vocabulary.
    """
    vocab, tokenize = state["model"]["vocab"], inner.model.tokenize
    spelled = [token for token in _spelled_tokens(state) if token in vocab]
    if state["model"].get("ignore_merges"):
        return not vocab.keys() - set(spelled) - {token["content"] for token in state["added_tokens"]}
    return all([found.id for found in tokenize(token)] == [vocab[token]] for token in spelled)


def _threads() -> int:
    """Return how many threads `tokenizers` would use here: what keeps it to one keeps us to one."""
    if os.environ.get("TOKENIZERS_PARALLELISM", "").lower() in ("off", "false", "f", "no", "n", "0"):
        return 1
    given = os.environ.get("RAYON_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else os.cpu_count() or 1
