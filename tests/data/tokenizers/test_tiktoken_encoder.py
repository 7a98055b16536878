"""tiktoken encodes documents with the ids of tokenizers; if any differ, tokenizers encodes."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.sources import python_docs
from pretrain.data.tokenizers import tokenizer
from pretrain.data.tokenizers.tiktoken_encoder import (
    HARD,
    SAMPLE,
    SAMPLE_LENGTH,
    SPOT_LENGTH,
    FastEncoder,
    Ids,
    fast_encoder,
)
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train_bpe import train_bpe
from pretrain.errors import DataError


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return [document.text for document in islice(python_docs.documents(), 120)]


@pytest.fixture(scope="module")
def bpe(corpus: list[str]) -> Tokenizer:
    return train_bpe(corpus, 600)


def published(name: str) -> Tokenizer:
    folder = os.environ.get("PRETRAIN_ASSETS")
    if not folder:
        pytest.skip("PRETRAIN_ASSETS is not set: no published tokenizers on this machine")
    return Tokenizer.load(Path(folder, "tokenizers", name))


def converted(own: Tokenizer, change: Callable[[dict[str, Any]], object] = lambda state: None) -> FastEncoder | None:
    pytest.importorskip("tiktoken", reason="tiktoken is not installed: pip install tiktoken")
    state = json.loads(own._json)
    change(state)
    return fast_encoder(own._documents, state, own._encode_by_library)


def letters(text: str) -> Ids:
    return np.array([ord(character) for character in text], np.uint32)


def all_letters(texts: Sequence[str]) -> list[Ids]:
    return [letters(text) for text in texts]


# With tiktoken itself


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "smollm2"])
def test_a_published_tokenizer_gives_the_same_ids(name: str, corpus: list[str]) -> None:
    own = published(name)
    fast = converted(own)
    assert fast is not None
    texts = [*corpus, *HARD, "".join(HARD), "".join(map(chr, range(0xD800))), "\U00040000 is no character yet"]
    for text, ids in zip(texts, own._encode_by_library(texts), strict=True):
        assert np.array_equal(fast._encode(text), ids), text[:100]


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_gives_the_same_ids(bpe: Tokenizer, text: str) -> None:
    fast = converted(bpe)
    assert fast is not None
    assert np.array_equal(fast._encode(text), bpe._encode_by_library([text])[0])


def test_a_pattern_like_llamas_is_converted(bpe: Tokenizer, corpus: list[str]) -> None:
    from tokenizers import Tokenizer as Library

    pattern = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    state = json.loads(bpe._json)
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    spell = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, spell]}
    own = Tokenizer(Library.from_str(json.dumps(state)), bpe.roles)
    fast = converted(own)
    assert fast is not None
    for text, ids in zip(corpus, own._encode_by_library(corpus), strict=True):
        assert np.array_equal(fast._encode(text), ids)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(normalizer={"type": "NFC"}),
        lambda state: state["model"].update(unk_token="a"),
        lambda state: state["model"].update(type="WordPiece"),
        lambda state: state["model"]["merges"].append(state["model"]["merges"][0]),
        lambda state: state["added_tokens"][0].update(special=False),
        lambda state: state["pre_tokenizer"].update(add_prefix_space=True),
        lambda state: state.update(pre_tokenizer={"type": "Whitespace"}),
        lambda state: state.update(pre_tokenizer=None),
    ],
)
def test_other_rules_are_left_to_tokenizers(bpe: Tokenizer, change: Callable[[dict[str, Any]], object]) -> None:
    assert converted(bpe, change) is None


@pytest.mark.slow
def test_a_document_is_the_same_with_and_without(
    bpe: Tokenizer, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bpe.encode_documents([*corpus, *HARD])
    monkeypatch.setattr(tokenizer, "MIN_FAST_CHARACTERS", 0)
    after = bpe.encode_documents([*corpus, *HARD])
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


# Whether it is installed or not


def test_without_tiktoken_tokenizers_encodes(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert fast_encoder(bpe._documents, json.loads(bpe._json), bpe._encode_by_library) is None


@pytest.mark.slow
def test_after_agreement_only_samples_are_compared() -> None:
    compared: list[str] = []

    def reference(texts: Sequence[str]) -> list[Ids]:
        compared.extend(texts)
        return all_letters(texts)

    fast = FastEncoder(letters, reference)
    assert fast.parity
    compared.clear()
    texts = [f"text {number} {'a' * SAMPLE_LENGTH}" for number in range(SAMPLE + 50)]
    for _ in range(2):
        assert all(np.array_equal(a, b) for a, b in zip(fast(texts), all_letters(texts), strict=True))
    assert compared == [*(text[:SAMPLE_LENGTH] for text in texts[:SAMPLE]), texts[0][:SPOT_LENGTH]]


def test_a_late_difference_is_an_error() -> None:
    fast = FastEncoder(lambda text: letters(text.replace("wrong", "right")), all_letters)
    fast(["a text"])
    with pytest.raises(DataError, match=r"differ on a text that begins 'a wrong text', .*pip uninstall tiktoken"):
        fast(["a wrong text"])
    assert not fast.parity


def test_a_difference_in_a_hard_string_disables_tiktoken() -> None:
    assert not FastEncoder(lambda text: letters(text.replace("\u2028", " ")), all_letters).parity


def test_a_difference_in_the_first_texts_disables_tiktoken(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a text", "a wrong text", "another"]
    expected = bpe.encode_documents(texts)

    def encode(text: str) -> Ids:
        return bpe._encode_by_library([text])[0][: -1 if "wrong" in text else None]

    fast = FastEncoder(encode, bpe._encode_by_library)
    assert fast.parity
    monkeypatch.setattr(tokenizer, "MIN_FAST_CHARACTERS", 0)
    monkeypatch.setitem(vars(bpe), "_fast", fast)
    for _ in range(2):
        found = bpe.encode_documents(texts)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not fast.parity
