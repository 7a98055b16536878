"""Tokenizer of a language model: ids of documents and prompts, roles of special tokens."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pretrain.data.tokenizers.load import CHAT_TEMPLATE, check_usable, read_chat_template, read_folder
from pretrain.data.tokenizers.long_texts import Lengths, Offsets, encode_in_parts, offsets_by_length
from pretrain.data.tokenizers.plain_text import as_plain_text, spelled_by_model
from pretrain.data.tokenizers.rust_calls import library_errors, suppressed_panics
from pretrain.data.tokenizers.tiktoken_encoder import FastEncoder, fast_encoder
from pretrain.data.tokenizers.tokenizer_json import BYTE_OF, ids_are_bytes, splits_at_spaces, unknown_ids
from pretrain.errors import ConfigError, DataError

LENGTHS = Lengths()
ADVICE = "Name another tokenizer.path, or train one: tokenizer=bpe."
MIN_FAST_CHARACTERS = 2 * LENGTHS.part  # encoded before converting to tiktoken pays
ROLES = ("bos_token", "eos_token", "pad_token", "mask_token", "unk_token", "cls_token", "sep_token")


class Tokenizer:
    """Text to ids and back. Documents never give special ids; prompts may spell special tokens.

    `vocab_size` is the highest id + 1. `bos_id` and `eos_id` start and end a document and may be the same id.
    `fingerprint` is the SHA-256 of the canonical tokenizer.json and of the roles. It leaves out the post-processor,
    which decides no id of a document.
    """

    def __init__(self, inner: Any, roles: dict[str, str], chat_template: str | None = None) -> None:
        """Wrap a `tokenizers.Tokenizer`; `roles` names tokens of its vocabulary, eos_token or sep_token among them."""
        self.chat_template = chat_template  # a Jinja text; it decides no id of a document, so no fingerprint has it
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
        self._ids_are_bytes = ids_are_bytes(state) and min(self.special_ids) >= len(BYTE_OF)
        self._spelled = spelled_by_model(state, special)
        self._unknown_ids = unknown_ids(state, ids, self.unk_id) - {self.eos_id, self.bos_id, self.mask_id}
        self.ids_version = int(bool(self._spelled) or not splits_at_spaces(state))
        self._is_unigram = state["model"]["type"] == "Unigram"
        self._encoded_characters = 0
        self._has_byte_decoder = (state.get("decoder") or {}).get("type") == "ByteLevel"
        canonical = json.dumps([state | {"post_processor": None}, self.roles], sort_keys=True, separators=(",", ":"))
        self.fingerprint = hashlib.sha256(canonical.encode()).hexdigest()

    def with_mask(self, token: str) -> "Tokenizer":
        """Return the tokenizer with this mask token, or itself if it has one of its own.

        A token that it lacks is added, with the id after the highest. Raises ConfigError for a token that has another
        use.
        """
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Inner

        if self.mask_id is not None:
            return self
        inner = Inner.from_str(self._json)
        ids = inner.get_vocab(with_added_tokens=True)
        in_use = token in ids and token not in {each.content for each in inner.get_added_tokens_decoder().values()}
        if not token or in_use or token in self.roles.values():
            raise ConfigError(
                f"tokenizer.mask_token={token!a} is a token with another use: text or a document's ends have it. Name "
                "an unused one of the added tokens, or a new one: tokenizer.mask_token='[MASK]'."
            )
        inner.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        return Tokenizer(inner, self.roles | {"mask_token": token}, self.chat_template)

    @property
    def padding_id(self) -> int:
        """Id that fills the end of a row: the padding token's, else `eos_id`."""
        return self.eos_id if self.pad_id is None else self.pad_id

    @cached_property
    def _documents(self) -> Any:
        """The `tokenizers.Tokenizer` that encodes documents: a special token's spelling is text. It cannot decode."""
        from tokenizers import Tokenizer as Inner

        state = as_plain_text(json.loads(self._json), self._spelled) if self._spelled else None
        with library_errors("the tokenizer cannot be read without its special tokens", ADVICE):
            inner = Inner.from_str(self._json if state is None else json.dumps(state))
        inner.encode_special_tokens = True
        return inner

    @cached_property
    def never_text(self) -> NDArray[np.bool_]:
        """Ids that no text may give, bool (vocab_size,): special ones but the unknown token's."""
        never = np.zeros(self.vocab_size, np.bool_)
        never[sorted(self.special_ids - self._unknown_ids)] = True
        return never

    def encode(self, text: str) -> list[int]:
        """Return the ids of a corpus text, in which a special token's spelling is text."""
        return cast(list[int], self._encode_many([text])[0].tolist())

    def encode_documents(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the ids of each document, uint32: `bos_id`, its text, `eos_id`.

        A document of over a million characters is encoded in overlapping parts, with the ids of the whole text.
        Raises DataError for a text with a lone surrogate, one that the tokenizer cannot encode, and a tokenizer that
        cannot distinguish special tokens from their spelling.
        """
        bos, eos = np.array([self.bos_id], np.uint32), np.array([self.eos_id], np.uint32)
        return [np.concatenate([bos, ids, eos]) for ids in self._encode_many(texts)]

    def encode_text_pairs(self, pairs: Sequence[tuple[str, str | None]]) -> list[NDArray[np.uint32]]:
        """Return the ids of each text with its second one: `bos_id`, text, `eos_id`, second text, `eos_id`.

        A text whose second one is None is encoded as a document. Raises DataError as `encode_documents` does.
        Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805, section 3, without its types of tokens.
        """
        encoded = self.encode_documents([first for first, _ in pairs])
        second = iter(self.encode_documents([second for _, second in pairs if second is not None]))
        return [
            ids if text is None else np.concatenate([ids, next(second)[1:]])
            for ids, (_, text) in zip(encoded, pairs, strict=True)
        ]

    def encode_following(self, text: str) -> list[int]:
        """Return the ids of a text that follows other text, without a prepended space."""
        for anchor in (".", "\n", "a") if self.ids_version else ():
            first, both = self.encode(anchor), self.encode(anchor + text)
            ids = both[len(first) :]
            # without the spelling of an unknown anchor, as decoding without a decoder writes spaces between all tokens
            same_start = self._decode_after(first, ids, True)[:1].isspace() == text[:1].isspace()
            if first and both[: len(first)] == first and same_start:
                return ids
        return self.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a prompt; special tokens spelled in it, such as [MASK], count.

        Raises DataError for a text with a lone surrogate.
        """
        _check_surrogates(text)
        return self._prompt_ids(text)

    def _prompt_ids(self, text: str, add_special_tokens: bool = False) -> list[int]:
        with suppressed_panics(), library_errors(f"the tokenizer cannot encode the prompt {text[:40]!a}", ADVICE):
            return list(self._inner.encode(text, add_special_tokens=add_special_tokens).ids)

    @property
    def unscored_ids(self) -> frozenset[int]:
        """Special ids that stand for no text: all but those of unknown characters."""
        return self.special_ids - self._unknown_ids

    @cached_property
    def added_ids(self) -> tuple[list[int], list[int]]:
        """Ids that the post-processor adds before and after a text in other programs."""
        text, framed = self._prompt_ids("a"), self._prompt_ids("a", add_special_tokens=True)
        start = next((n for n in range(len(framed)) if text and framed[n : n + len(text)] == text), 0)
        return framed[:start], framed[start + len(text) :]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of ids, special tokens left out or spelled; invalid UTF-8 becomes U+FFFD."""
        numbers = [int(token_id) for token_id in ids]
        with suppressed_panics(), library_errors(f"the tokenizer cannot decode ids such as {numbers[:8]}", ADVICE):
            return str(self._inner.decode(numbers, skip_special_tokens=skip_special))

    def decode_marked(self, ids: Sequence[int]) -> str:
        """Return the text of ids with special tokens in double brackets, such as [[</s>]]."""
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
        """Return the text that `ids` add to `before`: tokenizers may drop a first space."""
        # an unknown one is spelled, as a word keeps its space only after another
        return self._decode_after(before, ids, not self._unknown_ids.intersection(map(int, before[-1:])))

    def _decode_after(self, before: Sequence[int], ids: Sequence[int], skip_special: bool) -> str:
        first = self.decode(before[-1:], skip_special)
        both = self.decode([*before[-1:], *ids], skip_special)
        return both.removeprefix(first) if both.startswith(first) else self.decode(ids)

    def token(self, token_id: int) -> str:
        """Return one token as readable text; bytes that are no complete character become <0xC3>."""
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
        """Whether a mask replaces a word with the space before it, as RoBERTa's does."""
        token = self._inner.get_added_tokens_decoder().get(self.mask_id)
        return token is not None and bool(token.lstrip)

    @cached_property
    def word_starts(self) -> NDArray[np.bool_]:
        """Tokens that begin a word, bool (vocab_size,), by the spelling of the kind of tokenizer.

        WordPiece marks tokens that continue a word (##ing). Elsewhere a token continues one if it begins with a letter
        or digit; a space, a mark for one, and punctuation begin a word.
        """
        spelled = [str(self._inner.id_to_token(number) or "") for number in range(self.vocab_size)]
        if any(text.startswith("##") for text in spelled):
            return np.array([not text.startswith("##") for text in spelled])
        readable = (self.token(number) for number in range(self.vocab_size))
        return np.array([not text[:1].isalnum() for text in readable])

    def save(self, folder: Path) -> None:
        """Write the files that `load` and transformers' AutoTokenizer read."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_input_names": ["input_ids", "attention_mask"],
            **self.roles,
        }
        (folder / "tokenizer.json").write_text(self._json + "\n", encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

        if self.chat_template is not None:
            (folder / CHAT_TEMPLATE).write_text(self.chat_template, encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Return the tokenizer of a folder: tokenizer.json, vocab.json + merges.txt (GPT-2) or vocab.txt (BERT).

        Raises DataError that names the file if it is missing, damaged, over 64 MB or beyond the limits of `limits.py`.
        """
        tokenizer = cls(*read_folder(folder), read_chat_template(folder))
        check_usable(folder, lambda text: tokenizer.decode(tokenizer.encode_prompt(text)))
        return tokenizer

    def _encode_many(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the ids of each text, without bos and eos."""
        for text in texts:
            _check_surrogates(text)
        if self._ids_are_bytes:
            return [np.frombuffer(text.encode(), np.uint8).astype(np.uint32) for text in texts]
        self._encoded_characters += sum(map(len, texts))
        encoded: list[Any] = [None] * len(texts)
        for group in _groups(texts):
            for number, ids in zip(group, self._encode_texts([texts[number] for number in group]), strict=True):
                encoded[number] = ids
        for number, text in enumerate(texts):
            if encoded[number] is None:
                encoded[number] = encode_in_parts(text, self._encode_with_offsets, LENGTHS)
            self._check_special(encoded[number], text)
        return encoded

    def _encode_texts(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Return the ids of each text, encoded whole, by tiktoken if that pays and agrees."""
        fast = self._fast if self._encoded_characters > MIN_FAST_CHARACTERS else None
        return fast(texts) if fast is not None and fast.parity else self._encode_by_library(texts)

    def _encode_by_library(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        documents = self._documents
        with suppressed_panics(), library_errors(f"the tokenizer cannot encode {_begins(texts)}", ADVICE):
            encoded = documents.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encoded]

    def _encode_with_offsets(self, texts: Sequence[str]) -> list[Offsets]:
        """Return the ids of each text, encoded whole, with the offsets of their tokens."""
        if self._token_bytes is not None:
            encoded = self._encode_texts(texts)
            by_length = [
                offsets_by_length(ids, text, self._token_bytes) for ids, text in zip(encoded, texts, strict=True)
            ]
            if None not in by_length:
                return cast(list[Offsets], by_length)
        documents = self._documents
        with suppressed_panics(), library_errors(f"the tokenizer cannot encode {_begins(texts)}", ADVICE):
            encodings = documents.encode_batch(texts, add_special_tokens=False)
        return [
            Offsets(
                np.array(encoding.ids, np.uint32),
                np.array([start for start, _ in encoding.offsets], np.int64),
                np.array([-1 if word is None else word for word in encoding.word_ids], np.int64),
                between_words=self._is_unigram,
            )
            for encoding in encodings
        ]

    @cached_property
    def _token_bytes(self) -> NDArray[np.int64] | None:
        """Bytes of each id, (vocab_size,); None unless tokens are bytes of the unchanged text."""
        if not self._has_byte_decoder:
            return None
        added = {number: token.content for number, token in self._inner.get_added_tokens_decoder().items()}
        tokens = (self._inner.id_to_token(number) or "" for number in range(self.vocab_size))
        return np.array([len(added.get(n, "").encode()) or len(token) for n, token in enumerate(tokens)], np.int64)

    @cached_property
    def _fast(self) -> FastEncoder | None:
        return fast_encoder(self._documents, json.loads(self._documents.to_str()), self._encode_by_library)

    def _check_special(self, ids: NDArray[np.uint32], text: str) -> None:
        """Raise DataError if a text has got the id of a special token."""
        special = ids[self.never_text[ids]]
        if len(special):
            raise DataError(
                f"the tokenizer gives the id {special[0]} of its special token {self.token(int(special[0]))!a} for a "
                f"text that begins {text[:40]!a}, and cannot distinguish the token from text. {ADVICE}"
            )


def _groups(texts: Sequence[str]) -> Iterator[list[int]]:
    """Yield the indices of texts that are encoded whole, in groups of bounded length."""
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


def _check_surrogates(text: str) -> None:
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise DataError("A text holds a lone surrogate, which UTF-8 cannot encode. Decode the file as UTF-8 first.")
