"""A long text encoded in parts has the ids of the whole text, with every kind of tokenizer and every cut."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, lines, tokenizer_of

from pretrain.data.tokenizers import tokenizer
from pretrain.data.tokenizers.long_texts import Lengths, offsets_by_length
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train_bpe import byte_tokenizer

SHORT = Lengths(part=300, overlap=200, margin=60, agreement=60, group=3)
WHOLE = Lengths(part=10**9)
TOKENIZERS = {kind: tokenizer_of(kind) for kind in KINDS}


def encoded(ours: Tokenizer, text: str, lengths: Lengths) -> list[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "LENGTHS", lengths)
        return ours.encode(text)


ALPHABETS = (
    [*lines(20), "\n", " ", "\n\n", "  "], [*"abot 1", "the ", "fox", "\n", "日", "é"], list("acgt"), ["ab"],
    [" x"], ["1"], ["the quick ", "日本"], ["</s>", "<mask> ", "##"],
)  # fmt: skip


def drawn_text(seed: int) -> str:
    """Return 400 to 2,000 characters, drawn from few strings or many."""
    draw = random.Random(seed)
    wanted, text = draw.randint(400, 2000), ""
    alphabet = draw.choice(ALPHABETS)
    while len(text) < wanted:
        text += draw.choice(alphabet)
    return text


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@example("word pairs", 517, 344)  # the same tokens of other pairs of words, over a stretch longer than the agreement
@given(kind=st.sampled_from(list(KINDS)), seed=st.integers(0, 2**32), part=st.integers(120, 700))
def test_parts_have_the_ids_of_the_whole(kind: str, seed: int, part: int) -> None:
    ours, text = TOKENIZERS[kind], drawn_text(seed)
    assert encoded(ours, text, replace(SHORT, part=part)) == encoded(ours, text, WHOLE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [" ".join(lines(60)), "".join(lines(60)).replace(" ", ""), "the quick fox " * 300])
def test_no_cut_adds_or_takes_a_token(kind: str, text: str) -> None:
    ours = TOKENIZERS[kind]
    assert encoded(ours, text, SHORT) == encoded(ours, text, WHOLE)


def test_ordinary_text_is_never_encoded_whole() -> None:
    ours, text, lengths = TOKENIZERS["llama"], "\n".join(lines(100)), list[int]()
    encode = Tokenizer._encode_with_offsets
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ours, "_encode_with_offsets", lambda parts: lengths.extend(map(len, parts)) or encode(ours, parts)
        )
        encoded(ours, text, SHORT)
    assert max(lengths) <= SHORT.part + SHORT.overlap < len(text) / 4
    assert sum(lengths) < 2 * len(text)


@pytest.mark.slow
def test_a_document_of_millions_of_characters_is_that_of_the_whole() -> None:
    ours = TOKENIZERS["metaspace bpe"]
    long = " ".join(lines()) * 90
    assert len(long) > tokenizer.LENGTHS.part
    (document,) = ours.encode_documents([long])
    assert document[1:-1].tolist() == encoded(ours, long, WHOLE)


def test_offsets_of_tokens_that_are_bytes() -> None:
    ours = byte_tokenizer()
    ids = np.array(ours.encode("aé😀b"), np.uint32)
    found = offsets_by_length(ids, "aé😀b", np.ones(ours.vocab_size, np.int64))
    assert found is not None
    assert found.starts.tolist() == [0, 1, 1, 2, 2, 2, 2, 3]
    assert offsets_by_length(ids[1:], "aé😀b", np.ones(ours.vocab_size, np.int64)) is None
