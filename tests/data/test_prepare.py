"""Sources prepared together: each keeps its own store, one tokenizer learns from all, and errors name the source."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pretrain.data.config import (
    BPETokenizerConfig,
    BytesTokenizerConfig,
    MixtureConfig,
    MixtureSource,
    TextFilesConfig,
)
from pretrain.data.prepare import Prepared, kept_store, prepare
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.errors import ConfigError, DataError

BPE = BPETokenizerConfig(vocab_size=270)


def write(folder: Path, name: str, word: str) -> TextFilesConfig:
    """Return a corpus of a dozen documents that repeat one word."""
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f'{{"text": "{" ".join([word] * (3 + n))} {n}"}}\n' for n in range(12)))
    return TextFilesConfig(path=str(path))


@pytest.fixture
def mixture(tmp_path: Path) -> MixtureConfig:
    texts = {"larks": write(tmp_path, "larks", "lark"), "owls": write(tmp_path, "owls", "owl")}
    return MixtureConfig(sources={name: MixtureSource(text, weight=1) for name, text in texts.items()})


def prepared(config: object, tmp_path: Path, tokenizer: object) -> tuple[Prepared, list[str]]:
    told: list[str] = []
    return prepare(config, tokenizer, tmp_path / "cache", report=told.append), told  # type: ignore[arg-type]


def test_a_source_shares_its_store_with_a_run_on_it_alone(mixture: MixtureConfig, tmp_path: Path) -> None:
    alone, told = prepared(mixture.parts()["owls"], tmp_path, BytesTokenizerConfig())
    assert [line.startswith("tokenized") for line in told] == [True]
    both, told = prepared(mixture, tmp_path, BytesTokenizerConfig())
    assert [line.startswith("source larks: tokenized") for line in told] == [True]
    assert both.corpora["owls"].folder == alone.corpora[""].folder
    assert prepared(mixture, tmp_path, BytesTokenizerConfig())[1] == []
    assert both.train.keys() == {"larks", "owls"}
    assert both.fingerprint not in (alone.fingerprint, *(store.fingerprint for store in both.train.values()))


def test_drafts_of_killed_processes_are_removed_once_they_are_old(mixture: MixtureConfig, tmp_path: Path) -> None:
    stores = tmp_path / "cache" / "stores"
    old, young, link = (stores / f"text_files-{digit * 16}.tmp-1" for digit in "abc")
    own = stores / "notes.tmp-4"  # no name of a draft
    for path in (old, young, own, stores / "text_files-dddddddddddddddd"):
        (path / "train").mkdir(parents=True)
        (path / "train" / "00000.tok").write_bytes(b"half")
    link.symlink_to(own)
    for path in [*stores.glob("*"), *stores.rglob("*")]:
        if path.name != "00000.tok" or young not in path.parents:
            os.utime(path, (0, 0), follow_symlinks=False)
    kept = set(stores.iterdir()) - {old}
    result, _ = prepared(mixture.parts()["owls"], tmp_path, BytesTokenizerConfig())
    assert set(stores.iterdir()) == kept | {result.corpora[""].folder}


def test_a_tokenizer_is_trained_on_all_sources_and_cached_by_them(mixture: MixtureConfig, tmp_path: Path) -> None:
    both, told = prepared(mixture, tmp_path, BPE)
    assert told[0].startswith("training a tokenizer")
    words = {both.tokenizer.decode([token]) for token in range(both.tokenizer.vocab_size)}
    assert {" lark", " owl"} <= words
    assert prepared(mixture, tmp_path, BPE)[1] == []
    write(tmp_path, "owls", "eagle")
    other, told = prepared(mixture, tmp_path, BPE)
    assert told[0].startswith("training a tokenizer")
    assert other.tokenizer.fingerprint != both.tokenizer.fingerprint
    assert other.fingerprint != both.fingerprint


def test_sources_have_own_fractions_and_tokenizers_see_training_text(
    mixture: MixtureConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = BPETokenizerConfig.train

    def watched(config: BPETokenizerConfig, texts: Iterator[str], report: Any) -> Tokenizer:
        seen.extend(texts)
        return original(config, iter(seen), report)

    monkeypatch.setattr(BPETokenizerConfig, "train", watched)
    mixture.validation_fraction = 0.3
    mixture.sources["owls"].validation_fraction = 0.0
    both, _ = prepared(mixture, tmp_path, BPE)
    assert both.validation.keys() == {"larks"}
    assert both.train["larks"].n_documents + both.validation["larks"].n_documents == 12
    trained = [store.document(n) for store in both.train.values() for n in range(store.n_documents)]
    assert seen == [both.tokenizer.decode(document[1:-1].tolist()) for document in trained]


def test_what_is_skipped_of_a_validation_set_is_counted_too(tmp_path: Path) -> None:
    data = write(tmp_path, "larks", "lark")
    (tmp_path / "held.jsonl").write_text('{"text": "an owl"}\nnot JSON\n{"text": ""}\n')
    with Path(data.path).open("a") as file:
        file.write("no JSON either\n")
    data.validation_path = str(tmp_path / "held.jsonl")
    _, told = prepared(data, tmp_path, BytesTokenizerConfig())
    assert "tokenized 12 documents to train on and 1 to validate on, 1 skipped (empty), 2 skipped (not JSON)" in told


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"path": "nowhere"}, DataError, r"data\.sources\.owls\.path=nowhere does not exist"),
        (
            {"path": "rows.txt"},
            DataError,
            r"JSON lines, not like .* by data\.sources\.owls\.format=jsonl, or as plain text",
        ),
        ({"text_column": "body"}, DataError, r"has no data\.sources\.owls\.text_column=body\. Try one .*: text\."),
        ({"separator": ""}, ConfigError, r"data\.sources\.owls\.separator='' separates nothing\. .*owls\.separator="),
        ({"validation_path": "x"}, DataError, r"data\.sources\.owls\.validation_path=x does not exist"),
    ],
)
@pytest.mark.parametrize("tokenizer", [BPE, BytesTokenizerConfig()], ids=["bpe", "bytes"])
def test_an_error_names_the_setting_of_its_source(
    mixture: MixtureConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    kind: type,
    message: str,
    tokenizer: object,
) -> None:
    (tmp_path / "rows.txt").write_text('{"text": "owl"}')
    monkeypatch.chdir(tmp_path)
    for name, value in change.items():
        setattr(mixture.sources["owls"].text, name, value)
    with pytest.raises(kind, match=message):
        prepared(mixture, tmp_path, tokenizer)


def test_a_store_is_found_beside_damaged_ones_of_other_text(mixture: MixtureConfig, tmp_path: Path) -> None:
    (store,) = prepared(mixture.parts()["owls"], tmp_path, BytesTokenizerConfig())[0].train.values()
    for name, content in (("a", b'{"fingerprint": '), ("b", b"[]")):
        folder = tmp_path / "cache" / "stores" / name / "train"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(content)
    found = kept_store(store.fingerprint, tmp_path / "cache")
    assert found is not None
    assert found.folder == store.folder
    assert kept_store("another", tmp_path / "cache") is None
