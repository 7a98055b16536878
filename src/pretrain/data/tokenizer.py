"""A tokenizer as a language model needs it: ids of documents, ids of prompts, and the roles of its special tokens."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pretrain.data.fast_tokenising import FastEncoder, fast_encoder
from pretrain.errors import DataError

PIECE_LENGTH = 1_000_000  # characters encoded at once: a longer document is cut into pieces
GROUP_LENGTH = 8 * PIECE_LENGTH  # characters handed to the library at once, which bounds its memory
MANY = 2 * PIECE_LENGTH  # characters encoded before it is worth the time to look for a faster way
ROLES = ("bos_token", "eos_token", "pad_token", "mask_token", "unk_token", "cls_token", "sep_token")


class Tokenizer:
    """Text to ids and back. Documents never gain a special id from their text; prompts may spell special tokens.

    `vocab_size` is the highest id + 1. `bos_id` and `eos_id` start and end a document and may be the same id.
    `fingerprint` is the SHA-256 of the canonical tokenizer.json and of the roles, without what is added to a text: that
    decides no id of a document.
    """

    def __init__(self, inner: Any, roles: dict[str, str]) -> None:
        """Wrap a `tokenizers.Tokenizer`; `roles` gives tokens of its vocabulary, one of them eos_token or sep_token."""
        inner.no_truncation()
        inner.no_padding()
        if getattr(inner.model, "dropout", None) is not None:
            inner.model.dropout = None  # the same text must always give the same ids
        self._json: str = inner.to_str()
        self._documents = inner
        self._documents.encode_special_tokens = True
        ids = inner.get_vocab(with_added_tokens=True)
        self.roles = {role: roles[role] for role in ROLES if role in roles}
        end = roles.get("eos_token") or roles["sep_token"]
        self.eos_id: int = ids[end]
        self.bos_id: int = ids[roles.get("bos_token") or roles.get("cls_token") or end]
        self.pad_id: int | None = ids.get(roles.get("pad_token"))
        self.mask_id: int | None = ids.get(roles.get("mask_token"))
        self.unk_id: int | None = ids.get(roles.get("unk_token"))
        self.vocab_size: int = max(ids.values()) + 1
        added = inner.get_added_tokens_decoder()
        special = {token_id for token_id, token in added.items() if token.special}
        self.special_ids: frozenset[int] = frozenset(special | {ids[token] for token in roles.values()})
        state = json.loads(self._json)
        self._tokens_are_bytes = _tokens_are_bytes(state)
        self._characters = 0  # encoded so far
        self._has_byte_decoder = (state.get("decoder") or {}).get("type") == "ByteLevel"
        lasting = state | {"post_processor": None}
        canonical = json.dumps([lasting, self.roles], sort_keys=True, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def padding_id(self) -> int:
        """What fills the end of a row: the padding token, or where there is none the one that ends a document."""
        return self.eos_id if self.pad_id is None else self.pad_id

    @cached_property
    def _prompts(self) -> Any:
        """The same tokenizer with special tokens recognised in the text."""
        from tokenizers import Tokenizer as Inner

        return Inner.from_str(self._json)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a corpus text: nothing is added, and a special token's spelling is plain text."""
        return cast(list[int], self._encode_many([text])[0].tolist())

    def encode_documents(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the ids of each document: `bos_id`, those of its text, `eos_id`.

        A document of over a million characters is encoded in pieces, cut before single spaces; byte-level BPE gives the
        same ids for pieces as for the whole, unless a million characters hold no such space.
        Raises DataError for a text with half of a surrogate pair.
        """
        bos, eos = np.array([self.bos_id], np.uint32), np.array([self.eos_id], np.uint32)
        return [np.concatenate([bos, ids, eos]) for ids in self._encode_many(texts)]

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a prompt: special tokens spelled in it, such as [MASK], become their ids; none is added.

        Raises DataError for a text with half of a surrogate pair.
        """
        _check_surrogates(text)
        return list(self._prompts.encode(text, add_special_tokens=False).ids)

    @cached_property
    def added_ids(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer of others' programs puts before and after a text by itself; ours adds none."""
        text = list(self._prompts.encode("a", add_special_tokens=False).ids)
        whole = list(self._prompts.encode("a", add_special_tokens=True).ids)
        start = next((n for n in range(len(whole)) if text and whole[n : n + len(text)] == text), 0)
        return whole[:start], whole[start + len(text) :]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of ids, special tokens left out or spelled; bytes that are not UTF-8 become U+FFFD."""
        return str(self._documents.decode([int(token_id) for token_id in ids], skip_special_tokens=skip_special))

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Return the text that `ids` add behind the ids `before`: some tokenizers drop the space of a first word."""
        first = self.decode(before[-1:])
        whole = self.decode([*before[-1:], *ids])
        return whole.removeprefix(first) if whole.startswith(first) else self.decode(ids)

    def token(self, token_id: int) -> str:
        """Return one token as readable text; bytes that are no character of their own as <0xC3>."""
        token = self._documents.id_to_token(int(token_id))
        if token is None:
            return f"<unused {token_id}>"
        if token_id in self.special_ids or not self._has_byte_decoder:
            return str(token).replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
        values = bytes(BYTE_OF[character] for character in token if character in BYTE_OF)
        try:
            return values.decode() if len(values) == len(token) else str(token)
        except UnicodeDecodeError:
            return "".join(f"<0x{value:02X}>" for value in values)

    @cached_property
    def word_starts(self) -> NDArray[np.bool_]:
        """Return bool (vocab_size,): whether a token begins a word, by the spelling of its kind of tokenizer.

        WordPiece marks what continues a word (##ing). Elsewhere a token continues one if it begins with a letter or
        digit; a space, a mark for one, and punctuation begin anew.
        """
        spelled = [str(self._documents.id_to_token(number) or "") for number in range(self.vocab_size)]
        if any(text.startswith("##") for text in spelled):
            return np.array([not text.startswith("##") for text in spelled])
        readable = (self.token(number) for number in range(self.vocab_size))
        return np.array([not text[:1].isalnum() for text in readable])

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which `load` and transformers' AutoTokenizer read."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            **self.roles,
        }
        (folder / "tokenizer.json").write_text(self._json + "\n", encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Return the tokenizer of a folder: tokenizer.json, vocab.json + merges.txt (GPT-2) or vocab.txt (BERT).

        Raises DataError, naming the file, for one that is missing, damaged or over 64 MB.
        """
        from pretrain.data.tokenizer_files import read_folder

        return cls(*read_folder(folder))

    def _encode_many(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the ids of each text, without bos and eos."""
        for text in texts:
            _check_surrogates(text)
        if self._tokens_are_bytes:
            return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]
        self._characters += sum(map(len, texts))
        fast = self._fast if self._characters > MANY else None
        encode = fast if fast is not None and fast.parity else self._encode_pieces
        parts: list[list[NDArray[np.uint32]]] = [[] for _ in texts]
        for group in _groups(texts):
            encoded = encode([piece for _, piece in group])
            for (index, _), ids in zip(group, encoded, strict=True):
                parts[index].append(ids)
        return [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]

    def _encode_pieces(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        encoded = self._documents.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encoded]

    @cached_property
    def _fast(self) -> FastEncoder | None:
        return fast_encoder(self._documents, json.loads(self._json), self._encode_pieces)


def pieces(text: str, length: int = PIECE_LENGTH) -> Iterator[str]:
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


def _groups(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """Yield lists of (text's index, piece) of bounded total length."""
    group: list[tuple[int, str]] = []
    size = 0
    for index, text in enumerate(texts):
        for piece in pieces(text):
            group.append((index, piece))
            size += len(piece)
            if size >= GROUP_LENGTH:
                yield group
                group, size = [], 0
    if group:
        yield group


def _check_surrogates(text: str) -> None:
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise DataError("A text holds half of a surrogate pair, which UTF-8 cannot spell. Decode it as UTF-8 first.")


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for.

    Printable Latin-1 characters stand for themselves; the other bytes, in order, for U+0100 and on
    (Radford et al. 2019, code released with it).
    """
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in sorted(printed)} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


def _tokens_are_bytes(state: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json gives every byte its own value as id, so that NumPy can encode."""
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
