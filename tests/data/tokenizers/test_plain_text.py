"""Special tokens spelled in a document are encoded as text by every kind of tokenizer, or it is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import KINDS, SPECIAL, lines, tokenizer_of
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Inner

from pretrain.data.config import PretrainedTokenizerConfig, TextFilesConfig
from pretrain.data.prepare import prepare
from pretrain.data.sources.source import Document
from pretrain.data.token_store.build import _values
from pretrain.data.tokenizers.plain_text import spelled_by_model
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train_bpe import byte_tokenizer
from pretrain.errors import DataError

SPELLED = "<s>the old price</s> new <mask> and <pad> </s> x<s> <unk>"
TOKENIZERS = {kind: tokenizer_of(kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_never_gets_a_special_id(kind: str) -> None:
    ours = TOKENIZERS[kind]
    (document,) = ours.encode_documents([SPELLED])
    special = ours.special_ids - {ours.unk_id}
    assert not special & set(document[1:-1].tolist())
    assert special <= set(ours.encode_prompt(" ".join(SPECIAL)))  # a prompt may still spell them
    if "word" not in kind or kind == "word pairs":
        assert ours.unk_id not in ours.encode("<s>the")[:1]  # the characters are known


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    text=st.lists(st.sampled_from([*SPECIAL, " ", "the", "<", "/s>", "x", "##", "\n"])).map("".join),
)
def test_no_arrangement_of_special_tokens_becomes_one(kind: str, text: str) -> None:
    ours = TOKENIZERS[kind]
    assert not (ours.special_ids - {ours.unk_id}) & set(ours.encode(text))


@pytest.mark.parametrize("kind", KINDS)
def test_texts_without_special_tokens_keep_their_ids(kind: str) -> None:
    ours = TOKENIZERS[kind]
    for text in lines(20):
        assert ours.encode(text) == ours.encode_prompt(text)


def test_only_tokenizers_that_spell_special_tokens_have_other_stores() -> None:
    changed = {kind for kind, ours in TOKENIZERS.items() if ours.ids_version}
    assert changed == set(KINDS) - {"byte level", "word pairs"}
    assert byte_tokenizer().ids_version == 0


def word_level(special: str, **options: object) -> Tokenizer:
    inner = Inner(models.WordLevel({"a": 0, special: 1, "b": 2, **({"<unk>": 3} if options else {})}, **options))
    inner.pre_tokenizer = pre_tokenizers.Split("|", "removed")
    inner.add_special_tokens([AddedToken(special, special=True)])
    return Tokenizer(inner, {"eos_token": special})


def test_a_special_token_that_is_an_ordinary_character_is_refused() -> None:
    for special in ("\n", "b"):
        ours = word_level(special, unk_token="<unk>")
        assert ours.encode_prompt("a") == [0]  # a prompt can be read
        with pytest.raises(DataError, match=r"special token '(\\n|b)' is a single character or white space.*would get"):
            ours.encode("a")
    dropped = word_level("\n", unk_token="<unk>")._inner
    dropped.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert Tokenizer(dropped, {"eos_token": "\n"}).encode("a\na") == [0, 0]


def test_a_special_token_that_is_part_of_ordinary_ones_is_refused() -> None:
    vocab = {token: number for number, token in enumerate(["a", "b", "c", "ab", "abc"])}
    inner = Inner(models.BPE(vocab, [("a", "b"), ("ab", "c")]))
    inner.add_special_tokens([AddedToken("ab", special=True)])
    with pytest.raises(DataError, match=r"special token 'ab' is a part of its ordinary token 'abc'"):
        Tokenizer(inner, {"eos_token": "ab"}).encode("abc")


def test_without_an_unknown_token_the_error_names_the_text() -> None:
    with pytest.raises(DataError, match=r"cannot encode a text that begins '</s>': .*UNK.* Name another tokenizer"):
        word_level("</s>").encode("</s>")


def test_a_special_id_from_a_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tokenizer_of("unigram")
    monkeypatch.setattr(ours, "_spelled", frozenset())  # as if the rules above had overlooked it
    with pytest.raises(DataError, match=r"gives the id \d of its special token '</s>' for a text that begins 'a </s>'"):
        ours.encode("a </s>")


@pytest.mark.parametrize("kind", ["llama", "unigram", "metaspace bpe", "byte level", "byte level, prefixed"])
def test_a_following_text_gets_no_extra_space(kind: str) -> None:
    ours = TOKENIZERS[kind]
    assert ours._inner.decoder is not None or ours._inner.pre_tokenizer is not None
    ids = [*ours.encode("the qui"), *ours.encode_following("ck fox")]
    spelled = "".join(str(ours._inner.id_to_token(number)) for number in ids)
    assert spelled.replace("Ġ", " ").replace("▁", " ").strip() == "the quick fox"


def test_a_response_that_joins_its_prompt_gets_no_space() -> None:
    ours = TOKENIZERS["llama"]
    documents = [Document("the quick fox", "p:1", prompt_characters=len("the qui"))]
    encoded = ours.encode_documents([documents[0].text])
    whole = encoded[0]
    values = _values(documents, encoded, ours, [])
    assert values == [1 + len(ours.encode("the qui"))]
    assert not np.array_equal(encoded[0], whole)  # "quick" is one token, and the prompt ends inside of it
    assert ours.decode(encoded[0]) == "the quick fox"
    assert encoded[0][-1] == ours.eos_id


def test_marked_text_shows_special_tokens_as_such() -> None:
    for kind in ("unigram", "llama"):
        ours = TOKENIZERS[kind]
        ids = [ours.bos_id, *ours.encode("the </s> fox"), ours.eos_id, ours.bos_id, *ours.encode("dog")]
        assert ours.decode_marked(ids) == "[[<s>]]the </s> fox[[</s>]][[<s>]] dog"
        assert ours.decode_marked([]) == ""


def test_a_prepared_corpus_holds_no_special_token(tmp_path: Path) -> None:
    TOKENIZERS["unigram"].save(tmp_path / "tokenizer")
    records = [{"text": f"{SPELLED} {number}"} for number in range(30)]
    (tmp_path / "html.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = prepare(
        TextFilesConfig(path=str(tmp_path / "html.jsonl")),
        PretrainedTokenizerConfig(path=str(tmp_path / "tokenizer")),
        tmp_path / "cache",
        report=lambda line: None,
    )
    special = found.tokenizer.never_text
    store = found.train[""]
    ids = np.concatenate([store.document(number) for number in range(store.n_documents)])
    assert int(special[ids].sum()) == 2 * store.n_documents  # what begins and ends each document


def test_merges_are_read_in_both_spellings() -> None:
    state = {"model": {"type": "BPE", "vocab": {"<": 0, "s>": 1, "<s>": 2}, "merges": ["< s>"]}}
    assert spelled_by_model(state, ["<s>"]) == {"<s>"}
    state["model"]["merges"] = [["<", "s>"]]
    assert spelled_by_model(state, ["<s>", "</s>"]) == {"<s>"}
