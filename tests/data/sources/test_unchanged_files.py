"""A corpus is cached under its hash: a later read of other contents is an error, in every format."""

import gzip
import io
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data import prepare as preparing
from pretrain.data.config import (
    BPETokenizerConfig,
    BytesTokenizerConfig,
    DataConfig,
    Format,
    HuggingFaceConfig,
    Mode,
    PythonDocsConfig,
    TextFilesConfig,
    TokenizerConfig,
)
from pretrain.data.fine_tuning_config import PairsConfig
from pretrain.data.prepare import Prepared, finish_stream, prepare
from pretrain.data.sources import python_docs, unchanged_files
from pretrain.data.sources.unchanged_files import UnchangedFile, hash_file
from pretrain.data.streaming.read_ahead import ReadAheadJob, _produce
from pretrain.errors import DataError

BYTES = BytesTokenizerConfig()


def lines(count: int, word: str = "old") -> bytes:
    records = ({"text": f"{word} {n} " + "word " * 9, "prompt": f"{n}?", "response": word} for n in range(count))
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def parquet(count: int, word: str = "old") -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    found = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"text": [f"{word} {n}" for n in range(count)]}), found)
    return found.getvalue()


def gz(count: int, word: str = "old") -> bytes:
    return gzip.compress(lines(count, word), mtime=0)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unchanged_files, "BLOCK_BYTES", 1000)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return what has something happen between the hashing of a corpus and the reading of it."""
    opened = preparing._open

    def happen(change: Callable[[], object]) -> None:
        def changed(*arguments: Any) -> Any:
            found = opened(*arguments)
            change()
            return found

        monkeypatch.setattr(preparing, "_open", changed)

    return happen


def made(data: DataConfig, folder: Path, tokenizer: TokenizerConfig = BYTES) -> Prepared:
    return prepare(data, tokenizer, folder / "cache", lambda line: None)


def to_its_end(data: DataConfig, folder: Path) -> None:
    finish_stream(made(data, folder), data, lambda line: None)


def documents(prepared: Prepared) -> int:
    return sum(store.n_documents for store in [*prepared.train.values(), *prepared.validation.values()])


def test_what_was_appended_since_a_corpus_was_hashed_is_not_read(tmp_path: Path, meanwhile) -> None:
    path = tmp_path / "text.jsonl"
    path.write_bytes(lines(200))
    meanwhile(lambda: path.write_bytes(lines(200) + lines(50, "late")))
    first = made(TextFilesConfig(path=str(path)), tmp_path)
    assert documents(first) == 200
    meanwhile(lambda: None)
    assert documents(made(TextFilesConfig(path=str(path)), tmp_path)) == 250
    path.write_bytes(lines(200))
    again = made(TextFilesConfig(path=str(path)), tmp_path)
    assert (documents(again), again.corpora[""].folder) == (200, first.corpora[""].folder)


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", lines), ("a.jsonl.gz", gz), ("a.parquet", parquet), ("a.txt", lines)]
)
@pytest.mark.parametrize("change", ["another", "shorter"])
@pytest.mark.parametrize("mode", [Mode.prepare, Mode.stream])
def test_a_file_that_changes_while_it_is_prepared_is_refused(
    tmp_path: Path, meanwhile, name: str, content: Callable[..., bytes], change: str, mode: Mode
) -> None:
    path = tmp_path / name
    path.write_bytes(content(200))
    meanwhile(lambda: path.write_bytes(content(200, "new") if change == "another" else content(200)[:-900]))
    form = Format.text if name == "a.txt" else Format.auto
    data = TextFilesConfig(path=str(path), mode=mode, era_tokens=4000, format=form)
    with pytest.raises(
        DataError, match=rf"{re.escape(name)}' (has changed since it was ha|cannot be read to its)"
    ) as no:
        to_its_end(data, tmp_path)
    assert no.value.exit_code == 3
    assert not list((tmp_path / "cache").glob("stores/*/done.json"))


def test_pairs_are_known_by_their_blocks_too(tmp_path: Path, meanwhile) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(lines(50))
    meanwhile(lambda: path.write_bytes(lines(50, "new")))
    with pytest.raises(DataError, match=r"pairs\.jsonl' has changed since it was hashed"):
        made(PairsConfig(path=str(path)), tmp_path)


def test_a_tokenizer_does_not_learn_from_other_text(tmp_path: Path, meanwhile) -> None:
    path = tmp_path / "text.jsonl"
    path.write_bytes(lines(50))
    meanwhile(lambda: path.write_bytes(lines(50, "new")))
    with pytest.raises(DataError, match=r"text\.jsonl' has changed since it was hashed"):
        made(TextFilesConfig(path=str(path)), tmp_path, BPETokenizerConfig(vocab_size=270))
    assert not list((tmp_path / "cache").glob("tokenizers/*"))


@pytest.mark.parametrize("how", ["the run", "the process that reads ahead"])
def test_later_eras_are_of_the_text_that_was_hashed(tmp_path: Path, how: str) -> None:
    path = tmp_path / "text.jsonl"
    path.write_bytes(lines(200))
    data = TextFilesConfig(path=str(path), mode=Mode.stream, era_tokens=2000)
    first = made(data, tmp_path)
    assert first.stream is not None
    before = len(first.stream.ledger.eras)
    path.write_bytes(lines(100) + lines(100, "new"))
    resume_readings = {
        "the run": lambda: finish_stream(first, data, lambda line: None),
        "the process that reads ahead": lambda: _produce(
            ReadAheadJob(data, first.stream.folder, 64, 10**9, first.stream.hashed), threading.Event()
        ),
    }
    with pytest.raises(DataError, match=r"text\.jsonl' has changed since it was hashed"):
        resume_readings[how]()
    assert not first.stream.ended()
    assert len(first.stream.ledger.eras) >= before
    for era in first.stream.ledger.eras:
        names = (first.stream.era(era.number).document(n) for n in range(era.documents))
        assert not any(b"new" in bytes(tokens[tokens < 256].astype(np.uint8)) for tokens in names)


def test_a_data_set_of_this_machine_is_hashed_again_once_it_was_read(tmp_path: Path, meanwhile) -> None:
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "train.jsonl"
    path.write_bytes(lines(30))
    meanwhile(lambda: path.write_bytes(lines(30, "new")))
    with pytest.raises(
        DataError, match=r"set, data\.split=train changed while it was being prepared, so the result is"
    ):
        made(HuggingFaceConfig(path=str(tmp_path / "set")), tmp_path)
    assert not list((tmp_path / "cache").glob("stores/*/done.json"))


def test_a_python_that_is_updated_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prints = iter("ab")
    monkeypatch.setattr(python_docs, "fingerprint", lambda: next(prints))
    monkeypatch.setattr(python_docs, "documents", lambda: iter(DOCUMENTS))
    with pytest.raises(DataError, match=r"this Python's standard library changed while it was being prepared"):
        made(PythonDocsConfig(), tmp_path)


DOCUMENTS = [python_docs.Document(f"text number {n} of some words", f"{n}") for n in range(30)]


def test_a_cached_tokenizer_that_is_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    path.write_bytes(lines(50))
    data, bpe = TextFilesConfig(path=str(path)), BPETokenizerConfig(vocab_size=270)
    right = made(data, tmp_path, bpe).tokenizer.fingerprint
    (folder,) = (tmp_path / "cache" / "tokenizers").iterdir()
    whole = (folder / "tokenizer.json").read_text()
    assert ' 9"' not in whole
    (folder / "tokenizer.json").write_text(whole.replace('"z":', '" 9":'))
    with pytest.raises(DataError, match=r"the tokenizer in .* has changed since it was trained\. Delete the folder"):
        made(data, tmp_path, bpe)
    (folder / "tokenizer.json").write_text(whole)
    (folder / "fingerprint.txt").unlink()  # as earlier versions left it
    assert made(data, tmp_path, bpe).tokenizer.fingerprint == right


@given(
    content=st.binary(max_size=50),
    appended=st.binary(max_size=20),
    reads=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 30)), max_size=8),
    block=st.integers(1, 20),
)
def test_a_file_reads_as_it_was(content: bytes, appended: bytes, reads: list[tuple[int, int]], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unchanged_files, "BLOCK_BYTES", block)
        _, hashed = hash_file(io.BytesIO(content))
        expected = io.BytesIO(content)
        found = io.BufferedReader(UnchangedFile(io.BytesIO(content + appended), hashed, Path("a")), 7)
        assert found.read() == content
        for place, size in reads:
            assert (found.seek(place), found.read(size)) == (expected.seek(place), expected.read(size))
        assert found.seek(-len(content), io.SEEK_END) == 0
        if content:
            other = bytes([content[0] ^ 1]) + content[1:]
            with pytest.raises(DataError, match="'a' has changed since it was hashed"):
                UnchangedFile(io.BytesIO(other), hashed, Path("a")).read(1)
