"""Built-in tokenizers are lossless, published ones equal transformers', and no corpus gives a special id."""

import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.config import BPETokenizerConfig, BytesTokenizerConfig, PretrainedTokenizerConfig, TokenizerConfig
from pretrain.data.sources import python_docs
from pretrain.data.tokenizers import tokenizer
from pretrain.data.tokenizers.long_texts import Lengths, pieces
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train_bpe import byte_tokenizer, ignore, subsample, train_bpe
from pretrain.errors import ConfigError, DataError

NASTY = "Hi  it's 12\u00a0naïve\x00 日本 😀\r\n\n\tindent   = 'x'  \n\ufeff end. "
SPELLED = "quick [MASK] fox<|endoftext|> and [PAD]"
BYTES = byte_tokenizer()


@pytest.fixture(scope="module")
def corpus() -> list[str]:
    return [document.text for document in islice(python_docs.documents(), 150)]


@pytest.fixture(scope="module")
def bpe(corpus: list[str]) -> Tokenizer:
    return train_bpe(corpus, 600)


@pytest.fixture(params=["bytes", "bpe"])
def own(request: pytest.FixtureRequest, bpe: Tokenizer) -> Tokenizer:
    return BYTES if request.param == "bytes" else bpe


@pytest.fixture(scope="module")
def assets() -> Path:
    folder = os.environ.get("PRETRAIN_ASSETS")
    if not folder:
        pytest.skip("PRETRAIN_ASSETS is not set: no published tokenizers on this machine")
    return Path(folder, "tokenizers")


# Ours


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_come_back_exactly(text: str) -> None:
    (ids,) = BYTES.encode_documents([text])
    assert ids.tolist() == [BYTES.bos_id, *text.encode(), BYTES.eos_id]
    assert BYTES.encode_prompt(text) == list(text.encode()) or "[" in text or "<|" in text
    assert BYTES.decode(ids) == text


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_bpe_text_comes_back_exactly(bpe: Tokenizer, text: str) -> None:
    assert bpe.decode(bpe.encode(text)) == text


def test_the_text_of_a_special_token_never_becomes_its_id(own: Tokenizer) -> None:
    ids = own.encode(SPELLED)
    assert not own.special_ids & set(ids)
    assert own.decode(ids) == SPELLED
    (document,) = own.encode_documents([SPELLED])
    assert document.dtype == np.uint32
    assert document.tolist() == [own.bos_id, *ids, own.eos_id]


def test_a_prompt_spells_special_tokens(own: Tokenizer) -> None:
    ids = own.encode_prompt(SPELLED)
    assert [token_id for token_id in ids if token_id in own.special_ids] == [own.mask_id, own.eos_id, own.pad_id]
    assert own.decode(ids, skip_special=False).replace("[MASK]", " [MASK]").replace("  ", " ") == SPELLED


def test_a_word_tokenizers_mask_takes_the_space_before_it(bpe: Tokenizer) -> None:
    assert bpe.encode_prompt("the [MASK] the") == [*bpe.encode("the"), bpe.mask_id, *bpe.encode(" the")]
    assert BYTES.encode_prompt("a [MASK] b") == [*b"a ", BYTES.mask_id, *b" b"]


def test_ids_and_roles(own: Tokenizer) -> None:
    assert own.bos_id == own.eos_id
    assert own.unk_id is None
    assert own.special_ids == {own.eos_id, own.pad_id, own.mask_id}
    assert own.vocab_size == (259 if own is BYTES else 600)
    tokens = [own.token(token_id) for token_id in own.encode_prompt("the é[MASK]")]
    assert "".join(tokens) == "the <0xC3><0xA9>[MASK]"
    assert own.token(10**6) == "<unused 1000000>"


@pytest.mark.slow
def test_training_twice_gives_the_same_tokenizer(bpe: Tokenizer, corpus: list[str]) -> None:
    assert train_bpe(iter(corpus), 600).fingerprint == bpe.fingerprint
    assert train_bpe(corpus, 500).fingerprint != bpe.fingerprint


def test_a_small_corpus_gives_a_smaller_vocabulary() -> None:
    assert train_bpe(["ab ab"], 1000).vocab_size == 259 + 1


# In pieces


@pytest.mark.slow
def test_long_documents_give_the_same_ids_in_pieces(
    bpe: Tokenizer, corpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (" ".join(corpus[:12]) + NASTY) * 2
    whole = bpe.encode(text)
    monkeypatch.setattr(tokenizer, "LENGTHS", Lengths(part=1000, overlap=400, margin=100, agreement=100, group=5))
    texts = [text, "", "short", text]
    ids = bpe.encode_documents(texts)
    assert ids[0].tolist() == [bpe.bos_id, *whole, bpe.eos_id]
    assert [bpe.decode(document) for document in ids] == texts


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.sampled_from("ab1.'\n\t é\u00a0\x1c"), max_size=200), length=st.integers(1, 50))
def test_pieces_join_to_the_text_and_keep_its_ids(bpe: Tokenizer, text: str, length: int) -> None:
    parts = list(pieces(text, length))
    assert "".join(parts) == text
    assert max(map(len, parts)) <= length
    if all(len(part) < length for part in parts[:-1]):  # every cut was at a space
        assert [token_id for part in parts for token_id in bpe.encode(part)] == bpe.encode(text)


def test_text_without_spaces_is_cut_too() -> None:
    assert [len(part) for part in pieces("a" * 25, 10)] == [10, 10, 5]


# Built from settings


def test_settings_choose_the_tokenizer(corpus: list[str], tmp_path: Path) -> None:
    assert BytesTokenizerConfig().load().fingerprint == BYTES.fingerprint
    trained = BPETokenizerConfig(vocab_size=300, max_training_bytes=50_000)
    small = trained.train(iter(corpus), ignore)
    assert small.vocab_size == 300
    assert small.fingerprint == trained.train(iter(corpus), ignore).fingerprint
    small.save(tmp_path)
    loaded = PretrainedTokenizerConfig(path=str(tmp_path)).load()
    assert loaded.fingerprint == small.fingerprint
    with pytest.raises(ConfigError, match=r"tokenizer\.kind=\? is not a tokenizer"):
        TokenizerConfig().load()
    with pytest.raises(ConfigError, match=r"tokenizer\.kind=bytes cannot be trained\. Try tokenizer=bpe"):
        BytesTokenizerConfig().train(iter(corpus), ignore)
    with pytest.raises(DataError, match=r"tokenizer\.kind=bpe has no text to train on"):
        BPETokenizerConfig().train(iter(()), ignore)


@pytest.mark.parametrize("max_bytes", [64, 1000, 9999, 100_000])
def test_a_subsample_is_spread_evenly(max_bytes: int) -> None:
    texts = [f"{n:06d} é" for n in range(2000)]
    kept = list(subsample(texts, max_bytes))
    size = sum(len(text.encode()) for text in kept)
    assert size <= max_bytes
    assert size >= min(max_bytes // 4, 18_000)
    if max_bytes == 100_000:
        assert kept == texts
    if max_bytes >= 1000:
        numbers = [int(text[:6]) for text in kept if text[:6].isdigit()]
        assert numbers[0] == 0
        assert numbers[-1] > 1500
        assert numbers == sorted(numbers)


# On disk


def test_a_saved_tokenizer_is_the_same_here_and_in_transformers(own: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    own.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == own.fingerprint
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(NASTY).input_ids == own.encode(NASTY)
    assert theirs(SPELLED).input_ids == own.encode_prompt(SPELLED)
    assert theirs.decode(own.encode(NASTY)) == NASTY
    assert (theirs.mask_token_id, theirs.pad_token_id) == (own.mask_id, own.pad_id)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (own.bos_id, own.eos_id)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert-base-uncased", "gpt-neox", "gpt2", "smollm2"])
def test_published_tokenizers_give_the_ids_of_transformers(
    assets: Path, name: str, corpus: list[str], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

    reader = {"gpt2": GPT2TokenizerFast, "gpt-neox": PreTrainedTokenizerFast}.get(name, AutoTokenizer)
    theirs, ours = reader.from_pretrained(assets / name), Tokenizer.load(assets / name)
    text = NASTY + "".join(corpus[:3])
    assert theirs(text, add_special_tokens=False, verbose=False).input_ids == ours.encode(text)
    assert theirs("a [MASK].", add_special_tokens=False).input_ids == ours.encode_prompt("a [MASK].")
    ours.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == ours.fingerprint
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved(text, add_special_tokens=False).input_ids == ours.encode(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("bert-base-uncased", (101, 102, 0, 103, 100)),
        ("gpt-neox", (50279, 50279, 1, None, None)),
        ("gpt2", (50256, 50256, None, None, None)),
        ("smollm2", (1, 2, 2, None, 0)),
    ],
)
def test_published_tokenizers_have_their_roles(assets: Path, name: str, ids: tuple[int | None, ...]) -> None:
    ours = Tokenizer.load(assets / name)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.mask_id, ours.unk_id) == ids
    assert not ours.special_ids & set(ours.encode(SPELLED + "[CLS] [SEP] <|im_end|>"))


def test_a_lone_surrogate_is_refused(own: Tokenizer) -> None:
    for encode in (own.encode, own.encode_prompt, lambda text: own.encode_documents([text])):
        with pytest.raises(DataError, match="holds a lone surrogate"):
            encode("a\ud800")
