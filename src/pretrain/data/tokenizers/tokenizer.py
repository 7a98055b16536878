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

from pretrain.data.tokenizers.long_texts import Lengths, Located, encode_in_parts, located_by_length
from pretrain.data.tokenizers.plain_text import as_plain_text, spelled_by_model
from pretrain.data.tokenizers.rust_calls import library_errors, suppressed_panics
from pretrain.data.tokenizers.tiktoken_encoder import FastEncoder, fast_encoder
from pretrain.errors import DataError

LENGTHS = Lengths()


ADVICE = "Name another tokenizer.path, or train one: tokenizer=bpe."


MANY = 2 * LENGTHS.part  # characters encoded before it is worth the time to look for a faster way


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
        self._inner = inner
        self._json: str = inner.to_str()
        ids = inner.get_vocab(with_added_tokens=True)
        self.roles = {role: roles[role] for role in ROLES if role in roles}
        end = roles.get("eos_token") or roles["sep_token"]
        self.eos_id: int = ids[end]
        self.bos_id: int = ids[roles.get("bos_token") or roles.get("cls_token") or end]
        self.pad_id: int | None = ids.get(roles.get("pad_token"))
        self.mask_id: int | None = ids.get(roles.get("mask_token"))
        self.unk_id: int | None = ids.get(roles.get("unk_token"))
        self.vocab_size: int = max(ids.values()) + 1
        added = inner.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special} | set(roles.values())
        self.special_ids: frozenset[int] = frozenset(ids[token] for token in special)
        state = json.loads(self._json)
        self._tokens_are_bytes = _tokens_are_bytes(state) and min(self.special_ids) >= len(BYTE_OF)
        self._spelled = spelled_by_model(state, special)
        self._unknown_ids = _unknown_ids(state, ids, self.unk_id) - {self.eos_id, self.bos_id, self.mask_id}
        self.ids_version = int(bool(self._spelled) or not _splits_at_spaces(state))
        self._weighs_words = state["model"]["type"] == "Unigram"
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
    def _documents(self) -> Any:
        """The same tokenizer for texts in which the spelling of a special token is text; it decodes nothing."""
        from tokenizers import Tokenizer as Inner

        state = as_plain_text(json.loads(self._json), self._spelled) if self._spelled else None
        with library_errors("the tokenizer cannot be read without its special tokens", ADVICE):
            inner = Inner.from_str(self._json if state is None else json.dumps(state))
        inner.encode_special_tokens = True
        return inner

    @cached_property
    def never_text(self) -> NDArray[np.bool_]:
        """Whether an id, bool (vocab_size,), must not come of a text: that of any special token but an unknown one."""
        never = np.zeros(self.vocab_size, np.bool_)
        never[sorted(self.special_ids - self._unknown_ids)] = True
        return never

    def encode(self, text: str) -> list[int]:
        """Return the ids of a corpus text: nothing is added, and a special token's spelling is plain text."""
        return cast(list[int], self._encode_many([text])[0].tolist())

    def encode_documents(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the ids of each document: `bos_id`, those of its text, `eos_id`.

        A document of over a million characters is encoded in parts that overlap, and has the ids of the whole.
        Raises DataError for a text with half of a surrogate pair, one that the tokenizer cannot encode, and where the
        tokenizer cannot tell special tokens from their spelling in a text.
        """
        bos, eos = np.array([self.bos_id], np.uint32), np.array([self.eos_id], np.uint32)
        return [np.concatenate([bos, ids, eos]) for ids in self._encode_many(texts)]

    def encode_behind(self, text: str) -> list[int]:
        """Return the ids of a corpus text as they are behind another one: tokenizers that begin each text with a space
        put none there."""
        for anchor in (".", "\n", "a") if self.ids_version else ():
            first, whole = self.encode(anchor), self.encode(anchor + text)
            rest = whole[len(first) :]
            if first and whole[: len(first)] == first and _spaced(self.decode_after(first, rest)) == _spaced(text):
                return rest
        return self.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a prompt: special tokens spelled in it, such as [MASK], become their ids; none is added.

        Raises DataError for a text with half of a surrogate pair.
        """
        _check_surrogates(text)
        return self._prompt_ids(text)

    def _prompt_ids(self, text: str, add_special_tokens: bool = False) -> list[int]:
        with suppressed_panics(), library_errors(f"the tokenizer cannot encode the prompt {text[:40]!a}", ADVICE):
            return list(self._inner.encode(text, add_special_tokens=add_special_tokens).ids)

    @cached_property
    def added_ids(self) -> tuple[list[int], list[int]]:
        """Ids that the tokenizer of others' programs puts before and after a text by itself; ours adds none."""
        text, whole = self._prompt_ids("a"), self._prompt_ids("a", add_special_tokens=True)
        start = next((n for n in range(len(whole)) if text and whole[n : n + len(text)] == text), 0)
        return whole[:start], whole[start + len(text) :]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of ids, special tokens left out or spelled; bytes that are not UTF-8 become U+FFFD."""
        numbers = [int(token_id) for token_id in ids]
        with suppressed_panics(), library_errors(f"the tokenizer cannot decode ids such as {numbers[:8]}", ADVICE):
            return str(self._inner.decode(numbers, skip_special_tokens=skip_special))

    def decode_marked(self, ids: Sequence[int]) -> str:
        """Return the text of ids with special tokens in double brackets, [[</s>]]: a text that spells one has none."""
        text, run, before = "", list[int](), list[int]()
        for token_id in [*map(int, ids), -1]:
            if token_id >= 0 and token_id not in self.special_ids:
                run.append(token_id)
                continue
            text += self.decode_after(before, run) if run else ""
            text += f"[[{self.token(token_id)}]]" if token_id >= 0 else ""
            before, run = run[-1:] or before, []
        return text

    def decode_after(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """Return the text that `ids` add behind the ids `before`: some tokenizers drop the space of a first word."""
        first = self.decode(before[-1:])
        whole = self.decode([*before[-1:], *ids])
        return whole.removeprefix(first) if whole.startswith(first) else self.decode(ids)

    def token(self, token_id: int) -> str:
        """Return one token as readable text; bytes that are no character of their own as <0xC3>."""
        token = self._inner.id_to_token(int(token_id))
        if token is None:
            return f"<unused {token_id}>"
        if token_id in self.special_ids or not self._has_byte_decoder:
            return str(token).replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
        values = bytes(BYTE_OF[character] for character in token if character in BYTE_OF)
        try:
            return values.decode() if len(values) == len(token) else str(token)
        except UnicodeDecodeError:
            return "".join(f"<0x{value:02X}>" for value in values)

    @property
    def mask_takes_space(self) -> bool:
        """Whether a mask stands for a word with the space before it, as RoBERTa's does."""
        token = self._inner.get_added_tokens_decoder().get(self.mask_id)
        return token is not None and bool(token.lstrip)

    @cached_property
    def word_starts(self) -> NDArray[np.bool_]:
        """Return bool (vocab_size,): whether a token begins a word, by the spelling of its kind of tokenizer.

        WordPiece marks what continues a word (##ing). Elsewhere a token continues one if it begins with a letter or
        digit; a space, a mark for one, and punctuation begin anew.
        """
        spelled = [str(self._inner.id_to_token(number) or "") for number in range(self.vocab_size)]
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

        Raises DataError, naming the file, for one that is missing, damaged, over 64 MB or beyond `tokenizer_limits`.
        """
        from pretrain.data.tokenizers.load import read_folder, try_out

        found = cls(*read_folder(folder))
        try_out(folder, found)
        return found

    def _encode_many(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the ids of each text, without bos and eos."""
        for text in texts:
            _check_surrogates(text)
        if self._tokens_are_bytes:
            return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]
        self._characters += sum(map(len, texts))
        found: list[Any] = [None] * len(texts)
        for group in _groups(texts):
            for number, ids in zip(group, self._encode_texts([texts[number] for number in group]), strict=True):
                found[number] = ids
        for number, text in enumerate(texts):
            if found[number] is None:
                found[number] = encode_in_parts(text, self._locate, LENGTHS)
            self._check_special(found[number], text)
        return found

    def _encode_texts(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the ids of each text, encoded whole, by the fastest way that gives them."""
        fast = self._fast if self._characters > MANY else None
        return fast(texts) if fast is not None and fast.parity else self._encode_pieces(texts)

    def _encode_pieces(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        documents = self._documents
        with suppressed_panics(), library_errors(f"the tokenizer cannot encode {_begins(texts)}", ADVICE):
            encoded = documents.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encoded]

    def _locate(self, texts: Sequence[str]) -> list[Located]:
        """Return the ids of each text, encoded whole, with where their tokens begin."""
        if self._token_bytes is not None:
            encoded = self._encode_texts(texts)
            found = [located_by_length(ids, text, self._token_bytes) for ids, text in zip(encoded, texts, strict=True)]
            if all(each is not None for each in found):
                return cast(list[Located], found)
        documents = self._documents
        with suppressed_panics(), library_errors(f"the tokenizer cannot encode {_begins(texts)}", ADVICE):
            encodings = documents.encode_batch(texts, add_special_tokens=False)
        return [
            Located(
                np.array(each.ids, np.uint32),
                np.array([start for start, _ in each.offsets], np.int64),
                np.array([-1 if word is None else word for word in each.word_ids], np.int64),
                between_words=self._weighs_words,
            )
            for each in encodings
        ]

    @cached_property
    def _token_bytes(self) -> NDArray[np.int64] | None:
        """How many bytes each id stands for, (vocab_size,), where tokens are bytes of the text as it stands."""
        if not self._has_byte_decoder:
            return None
        added = {number: token.content for number, token in self._inner.get_added_tokens_decoder().items()}
        tokens = (self._inner.id_to_token(number) or "" for number in range(self.vocab_size))
        return np.array([len(added.get(n, "").encode()) or len(token) for n, token in enumerate(tokens)], np.int64)

    @cached_property
    def _fast(self) -> FastEncoder | None:
        return fast_encoder(self._documents, json.loads(self._documents.to_str()), self._encode_pieces)

    def _check_special(self, ids: NDArray[np.uint32], text: str) -> None:
        """Raise DataError where a text has gained a special id: what is trained on must be what the text says."""
        gained = ids[self.never_text[ids]]
        if len(gained):
            raise DataError(
                f"the tokenizer gives the id {gained[0]} of its special token {self.token(int(gained[0]))!a} for a "
                f"text that begins {text[:40]!a}, and cannot tell the token from text. {ADVICE}"
            )


def _groups(texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield the numbers of texts that are encoded whole, together of bounded length."""
    group: list[int] = []
    size = 0
    for number, text in enumerate(texts):
        if len(text) <= LENGTHS.part:
            group.append(number)
            size += len(text)
        if size >= LENGTHS.group * LENGTHS.part:
            yield group
            group, size = [], 0
    if group:
        yield group


def _begins(texts: Sequence[str]) -> str:
    return f"a text that begins {texts[0][:40]!a}" if len(texts) == 1 else f"one of {len(texts):,} texts"


def _spaced(text: str) -> bool:
    return text[:1].isspace()


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


def _unknown_ids(state: dict[str, Any], ids: dict[str, int], unk_id: int | None) -> frozenset[int]:
    """Return the ids that stand for what a tokenizer does not know: of its model, and of the role."""
    model = state["model"]
    found = (model.get("unk_id"), ids.get(model.get("unk_token")), unk_id)
    return frozenset(number for number in found if number is not None)


def _splits_at_spaces(state: dict[str, Any]) -> bool:
    """Return whether texts cut before a single space always had the ids of the whole.

    Documents of over a million characters were once cut so, whatever the tokenizer; stores of others are made anew.
    """
    text = json.dumps([state.get("normalizer"), state.get("pre_tokenizer")])
    changes = ('"Prepend"', '"Strip"', '"Metaspace"', '"add_prefix_space": true')
    return ('"ByteLevel"' in text or '"BertPreTokenizer"' in text) and not any(name in text for name in changes)
