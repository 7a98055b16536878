"""A corpus whose parts do not fit its manifest is refused, and so is a place in which none can be written."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curation_documents import lines, settings

from pretrain.data.config import CuratedConfig
from pretrain.data.curation.base_corpus import index_dtype, index_of, open_base
from pretrain.data.curation.config import CurationConfig, HuggingFaceSource
from pretrain.data.curation.curate import curate
from pretrain.data.curation.forget import forgotten_before
from pretrain.data.curation.manifest import check_identity, manifest_bytes, read_manifest
from pretrain.data.curation.near_duplicates.shuffle_files import write_rows
from pretrain.data.curation.output_folder import locked
from pretrain.data.curation.verify import verify
from pretrain.errors import CheckpointError, ConfigError, DataError

COUNTS = {"documents": 1, "characters": 2, "bytes": 3}


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a corpus of eight documents."""
    folder = tmp_path_factory.mktemp("curated")
    (folder / "a.jsonl").write_bytes(lines(12))
    curate(settings(folder / "a.jsonl", folder / "corpus"), report=lambda line: None)
    return folder / "corpus"


@pytest.fixture
def corpus(curated: Path, tmp_path: Path) -> Path:
    """Return a copy of the corpus, to be damaged."""
    return Path(shutil.copytree(curated, tmp_path / "corpus"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a corpus, with a right seal."""
    manifest = read_manifest(folder)
    change(manifest)
    parts = {name: manifest[name] for name in manifest if name not in ("format", "version", "record_sha256")}
    (folder / "manifest.json").write_bytes(manifest_bytes(parts))


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ({"file": "../a.parquet", **COUNTS}, r"it lists the shard '\.\./a\.parquet', which is no name in data/"),
        ({"file": "data/a.parquet", **COUNTS}, r"it lists the shard 'data/a\.parquet', which is no name in data/"),
        ({"file": 5, **COUNTS}, r"it lists the shard '5', which is no name in data/"),
        ({"file": "data/00000.parquet", **COUNTS, "bytes": "3"}, r"it has no counts of data/00000\.parquet"),
        ({"file": "data/00000.parquet", **COUNTS, "documents": True}, r"it has no counts of data/00000\.parquet"),
    ],
)
def test_a_shard_that_no_curation_writes_is_refused(tmp_path: Path, shard: dict[str, Any], message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(manifest_bytes({"shards": [shard]}))
    with pytest.raises(DataError, match=rf"{tmp_path}/manifest\.json is not the manifest of a corpus: {message}\."):
        read_manifest(tmp_path)


def test_counts_that_do_not_add_up_name_their_source() -> None:
    removed = {"gopher.words": {"first": 2, "all": 5}}
    documents: dict[str, Any] = {"read": 9, "unusable": {"empty": 1}, "removed": removed, "exact": 3, "kept": 3}
    check_identity({"web": {"documents": documents}})
    documents["kept"] = 4
    message = (
        r"the counts of source web do not add up: 9 documents read, 1 unusable, 2 removed by rules, 3 \D+, .*4 kept\. "
        r"Delete work/ in the output folder and start again\."
    )
    with pytest.raises(DataError, match=message):
        check_identity({"web": {"documents": documents}})


@pytest.mark.slow
def test_a_base_without_an_index_is_refused(corpus: Path, tmp_path: Path) -> None:
    edit(corpus, lambda manifest: manifest.pop("index"))
    duplicates = settings("a.jsonl", tmp_path / "new").duplicates
    message = r"corpus/manifest\.json names no index, by which duplicates are found\. Curate the base corpus again\."
    with pytest.raises(DataError, match=message):
        open_base(str(corpus), tmp_path / "new", duplicates)


def test_an_index_of_other_documents_is_refused(tmp_path: Path) -> None:
    path, rows = tmp_path / "00000.rows", np.zeros(3, index_dtype(0))
    write_rows(path, rows, np.zeros(3, np.int64), 1)
    entry = {"file": path.name, "bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert len(index_of(tmp_path, {"index": entry, "documents": 3}, 0)) == 3
    message = r"00000\.rows has 3 rows for 2 documents\. Give the command that made the corpus again"
    with pytest.raises(DataError, match=message):
        index_of(tmp_path, {"index": entry, "documents": 2}, 0)


@pytest.mark.slow
def test_a_shard_that_is_no_parquet_is_refused_even_if_the_manifest_lists_it(corpus: Path) -> None:
    (path,) = (corpus / "data").iterdir()
    path.unlink()  # it is a second name of a file in work/
    path.write_bytes(b"no parquet")
    digest = hashlib.sha256(b"no parquet").hexdigest()
    edit(corpus, lambda manifest: manifest["shards"][0].update(bytes=10, sha256=digest))
    message = r"data/\d+\.parquet cannot be read: Parquet magic bytes not found.*Give the command that made the corpus"
    with pytest.raises(DataError, match=message):
        list(CuratedConfig(path=str(corpus)).open().documents())


@pytest.mark.slow
def test_a_document_that_stands_in_a_corpus_twice_is_found(corpus: Path) -> None:
    (path,) = (corpus / "data").iterdir()
    table = pq.read_table(path)
    path.unlink()  # it is a second name of a file in work/
    pq.write_table(pa.concat_tables([table.slice(0, 1), table.slice(0, 1), table.slice(2)]), path)
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    edit(corpus, lambda manifest: manifest["shards"][0].update(bytes=len(data), sha256=digest))
    identity = table["id"][0].as_py()
    message = (
        rf"parquet has the document {identity}, which stands in the corpus before\. Give the command that made the"
    )
    with pytest.raises(DataError, match=message):
        verify(corpus)


@pytest.mark.slow
def test_a_corpus_that_is_curated_anew_while_it_is_prepared_is_noticed(corpus: Path) -> None:
    source = CuratedConfig(path=str(corpus)).open()
    source.check_unchanged()
    edit(corpus, lambda manifest: manifest.update(fingerprint="0" * 64))
    message = (
        r"data\.path=.*corpus was written anew while it was being prepared, so the result is dropped\. Start again"
    )
    with pytest.raises(DataError, match=message):
        source.check_unchanged()


@pytest.mark.slow
def test_deleting_the_tokens_of_what_was_forgotten_needs_something_forgotten(corpus: Path) -> None:
    message = r"corpus has forgotten no document\. Say which: domain=example\.org dry_run=true\."
    with pytest.raises(ConfigError, match=message):
        forgotten_before(corpus)


@pytest.mark.parametrize(
    ("make", "kind"), [(os.mkfifo, "a FIFO"), (Path.mkdir, "a folder"), (lambda path: path.symlink_to("x"), "a link")]
)
def test_a_lock_that_is_no_file_is_refused(tmp_path: Path, make: Callable[[Path], object], kind: str) -> None:
    (tmp_path / "work").mkdir()
    make(tmp_path / "work" / "lock")
    message = rf"work/lock cannot be opened: it is {kind}, and only a regular file is written here\. Delete it\."
    with pytest.raises(CheckpointError, match=message), locked(tmp_path):
        pass


@pytest.mark.slow
def test_a_disk_without_room_for_the_texts_is_found_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(12))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    size = (tmp_path / "a.jsonl").stat().st_size
    message = (
        rf"out/work needs about {size:,} bytes, and 1,000 are free\. Free some space, or choose an output on another"
    )
    with pytest.raises(CheckpointError, match=message):
        curate(settings(tmp_path / "a.jsonl", tmp_path / "out"), report=lambda line: None)
    assert not list((tmp_path / "out" / "work").glob("read-*"))
    assert json.loads(next((tmp_path / "out" / "work").glob("files-*/plan.json")).read_text())


@pytest.mark.slow
def test_a_hugging_face_folder_that_has_changed_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "the text of before"}\n')
    source = HuggingFaceSource(path=str(folder), license="MIT")
    config = CurationConfig(output=str(tmp_path / "out"), sources={"a": source}, workers=1)
    assert curate(config, report=lambda line: None)["documents"] == 1
    assert curate(config, report=lambda line: None)["documents"] == 1
    (folder / "train-2.jsonl").write_text('{"text": "another text"}\n')
    with pytest.raises(DataError, match=r"a/set train has changed since this curation began in .* another output"):
        curate(config, report=lambda line: None)


def test_a_corpus_that_keeps_equal_texts_is_sound(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "twice the same"}\n' * 2)
    curate(settings(tmp_path / "a.jsonl", tmp_path / "corpus", "duplicates=off"), report=lambda line: None)
    assert verify(tmp_path / "corpus").documents == 2


def test_texts_that_none_can_use_are_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 5}\n{"text": null}\n{"text": ""}\n')
    config = settings(tmp_path / "a.jsonl", tmp_path / "corpus")
    with pytest.raises(DataError, match=r"left of 3: none can be used: 2 text is no string, 1 empty\. Name files"):
        curate(config, report=lambda line: None)
    (tmp_path / "a.jsonl").write_text("")
    config = settings(tmp_path / "a.jsonl", tmp_path / "none")
    with pytest.raises(DataError, match=r"no document is left of 0: the files of the sources hold none\. Name"):
        curate(config, report=lambda line: None)


@pytest.mark.parametrize(
    "name", ["data/a.txt", "data/00000.parquet", "index/notes.txt", "manifest.json", "work/plan.txt"]
)
def test_a_folder_of_other_files_is_not_curated_into(tmp_path: Path, name: str) -> None:
    source, own = tmp_path / "a.jsonl", tmp_path / "project" / name
    source.write_bytes(lines(12))
    own.parent.mkdir(parents=True)
    own.write_text("years")
    message = (
        rf"output=\S+project has {name.split('/')[0]}, which no curation has written.* Name a folder of its own: out"
    )
    with pytest.raises(ConfigError, match=message):
        curate(settings(source, tmp_path / "project"), report=lambda line: None)
    assert own.read_text() == "years"
    assert [path for path in (tmp_path / "project").rglob("*") if path.is_file()] == [own]


def test_what_was_put_into_a_corpus_is_not_deleted(curated: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(curated, corpus)
    (corpus / "data" / "notes.txt").write_text("years")
    with pytest.raises(ConfigError, match=r"output=\S+ has data/notes\.txt, which no curation has written"):
        curate(settings(curated.parent / "a.jsonl", corpus), report=lambda line: None)
    assert (corpus / "data" / "notes.txt").read_text() == "years"
