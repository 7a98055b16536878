"""A curated corpus in an object storage is copied to the cache once, and read as the folder that it was."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_storage import FaultyStorage, Killed
from fsspec.implementations.memory import MemoryFileSystem

from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig, ExplainConfig, ForgetConfig, VerifyConfig
from pretrain.data.config import BytesTokenizerConfig, CuratedConfig, HuggingFaceConfig, Mode, TextFilesConfig
from pretrain.data.curation.curate import curate
from pretrain.data.curation.manifest import read_manifest
from pretrain.data.prepare import find_prepared, finish_stream, prepare
from pretrain.data.sources.remote_corpus import local_corpus
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.planning.config import PlanConfig
from pretrain.training.config import PathsConfig

URL = "memory://bucket/corpus"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Curate 60 documents into a corpus of several shards."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(60):
        (folder / f"{number:02}.txt").write_text(f"Document {number} squares to {number**2}. " * 9)
    register_schemas("curate", CurateConfig)
    words = ["rules=none", "workers=1", "unit_bytes=4000", f"output={folder / 'out'}"]
    source = f"sources.web={{kind: text_files, path: '{folder}/*.txt', license: CC-BY-4.0}}"
    curate(compose("curate", [source, *words]))
    return folder / "out"


@pytest.fixture
def bucket(corpus: Path, storage: FaultyStorage) -> FaultyStorage:
    """Return a storage with the corpus in it."""
    send(corpus)
    return storage


def send(corpus: Path) -> None:
    for path in [*sorted((corpus / "data").iterdir()), corpus / "manifest.json"]:
        MemoryFileSystem().pipe_file(f"{URL}/{path.relative_to(corpus).as_posix()}", path.read_bytes())


def downloads(storage: FaultyStorage) -> int:
    return sum(request == "get_file" for request, _ in storage.requests)


@pytest.mark.slow
def test_tokens_are_those_of_the_folder(corpus: Path, bucket: FaultyStorage, tmp_path: Path) -> None:
    tokenizer = BytesTokenizerConfig()
    lines: list[str] = []
    here = prepare(CuratedConfig(path=str(corpus)), tokenizer, tmp_path / "here", lines.append)
    data = CuratedConfig(path=URL)
    there = prepare(data, tokenizer, tmp_path / "there", lines.append)
    assert there.fingerprint == here.fingerprint
    assert there.provenance == here.provenance
    assert sum("copying" in line for line in lines) == 1
    count = downloads(bucket)
    assert count == len(read_manifest(corpus)["shards"]) > 1
    assert prepare(data, tokenizer, tmp_path / "there", lines.append).fingerprint == here.fingerprint
    assert downloads(bucket) == count  # the copy is used again
    assert find_prepared(data, tokenizer, tmp_path / "there") is None  # a plan asks no storage
    assert data.known_characters() is None
    data.check_files()


def test_a_stream_reads_the_copy_to_its_end(corpus: Path, bucket: FaultyStorage, tmp_path: Path) -> None:
    data = CuratedConfig(path=URL, mode=Mode.stream, era_tokens=4096, validation_fraction=0.0)
    prepared = prepare(data, BytesTokenizerConfig(), tmp_path, lambda line: None)
    finish_stream(prepared, data, lambda line: None)
    assert prepared.stream is not None
    assert sum(era.documents for era in prepared.stream.ledger.eras) == 60


def test_a_killed_copy_is_not_seen_and_goes_on(corpus: Path, bucket: FaultyStorage, tmp_path: Path) -> None:
    shards, number = len(read_manifest(corpus)["shards"]), 0
    while True:
        cache = tmp_path / str(number)
        bucket.kill_at(number)
        try:
            folder = local_corpus(URL, cache)
            break
        except Killed:
            assert not [path for path in cache.glob("remote/corpora/*") if path.is_dir() and path.suffix != ".tmp"]
            bucket.heal()
            before = downloads(bucket)
            left = len(list(cache.glob("remote/corpora/*.tmp/data/*.parquet")))
            assert sum(1 for _ in local_corpus(URL, cache).glob("data/*.parquet")) == shards
            assert downloads(bucket) - before == shards - left
        number += 1
    assert number > shards
    assert {path.name: path.read_bytes() for path in folder.glob("data/*")} == {
        path.name: path.read_bytes() for path in corpus.glob("data/*")
    }


def test_a_shard_that_a_kill_cut_is_copied_again(corpus: Path, bucket: FaultyStorage, tmp_path: Path) -> None:
    folder = local_corpus(URL, tmp_path)
    draft = folder.rename(folder.with_name(f"{folder.name}.tmp"))
    first, second, *_ = sorted(draft.glob("data/*"))
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    before = downloads(bucket)
    assert local_corpus(URL, tmp_path) == folder
    assert downloads(bucket) - before == 2


def test_two_at_once_copy_once(corpus: Path, bucket: FaultyStorage, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:  # each has a descriptor of its own, as processes have
        folders = set(threads.map(lambda _: local_corpus(URL, tmp_path), range(4)))
    assert len(folders) == 1
    assert downloads(bucket) == len(read_manifest(corpus)["shards"])


def test_a_corpus_that_was_written_anew_is_another_copy(corpus: Path, bucket: FaultyStorage, tmp_path: Path) -> None:
    folder = local_corpus(URL, tmp_path)
    data = (corpus / "manifest.json").read_bytes()
    MemoryFileSystem().pipe_file(f"{URL}/manifest.json", data + b"\n")
    assert local_corpus(URL, tmp_path) not in (folder, None)
    assert folder.is_dir()  # a run may read it


def test_what_is_damaged_or_missing_is_refused(
    corpus: Path, bucket: FaultyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, name = MemoryFileSystem(), read_manifest(corpus)["shards"][1]["file"]
    damaged = bytearray(system.cat_file(f"{URL}/{name}"))
    damaged[100] ^= 1
    system.pipe_file(f"{URL}/{name}", bytes(damaged))
    with pytest.raises(DataError, match=rf"damaged: size or sha256 of {name} is not that of the manifest"):
        local_corpus(URL, tmp_path)
    system.rm_file(f"{URL}/{name}")
    with pytest.raises(DataError, match=rf"{name} does not exist, and the manifest lists it"):
        local_corpus(URL, tmp_path)
    system.pipe_file(f"{URL}/manifest.json", b'{"format": "other"}')
    with pytest.raises(DataError, match=r"corpus cannot be read: .*it has no format"):
        local_corpus(URL, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("pretrain.data.curation.manifest.MAX_MANIFEST_BYTES", 5)
        with pytest.raises(DataError, match=r"is no corpus: of manifest\.json, it is larger"):
            local_corpus(URL, tmp_path)
    with pytest.raises(DataError, match=r"no finished corpus: it has no manifest\.json\. Copy .* the manifest last"):
        local_corpus("memory://bucket/none", tmp_path)
    assert not [path for path in tmp_path.glob("remote/corpora/*") if path.is_dir() and path.suffix != ".tmp"]


def test_a_full_disk_and_a_storage_that_fails(
    corpus: Path, bucket: FaultyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1))
        with pytest.raises(CheckpointError, match=r"MiB are free below \S+\. Free some"):
            local_corpus(URL, tmp_path)
    blocked = tmp_path / "blocked"
    blocked.write_text("no folder")
    with pytest.raises(CheckpointError, match=r"cannot be written: .*Try another paths\.cache_dir"):
        local_corpus(URL, blocked)
    bucket.refuse(PermissionError("access denied"), only=("get_file",))
    with pytest.raises(CheckpointError, match=r"cannot read memory://bucket/corpus/data/\S+: access denied"):
        local_corpus(URL, tmp_path)
    bucket.heal()
    assert local_corpus(URL, tmp_path).is_dir()


@pytest.mark.slow
def test_what_takes_no_address_says_what_to_type() -> None:
    there = "s3://bucket/a"
    register_schemas("plan", PlanConfig)
    register_schemas("curate", CurateConfig)
    for source in (TextFilesConfig(path=there), HuggingFaceConfig(path=there)):
        with pytest.raises(
            DataError, match=r"data\.path=s3://bucket/a is in an .* only a curated corpus .*aws s3 sync"
        ):
            source.open()
    with pytest.raises(ConfigError, match=r"data\.growth_timeout_s=5 waits .*Try data\.growth_timeout_s=null"):
        CuratedConfig(path=there, mode=Mode.stream, growth_timeout_s=5.0)
    with pytest.raises(ConfigError, match=r"data\.path=ftp://a/b is no address"):
        CuratedConfig(path="ftp://a/b")
    copied = r"path=s3://bucket/a is in an object storage, .*aws s3 sync s3://bucket/a <folder>, and try path=<folder>"
    for config, more in ((VerifyConfig, {}), (ForgetConfig, {"id": "12345678"}), (ExplainConfig, {"rule": "near"})):
        with pytest.raises(ConfigError, match=copied):
            config(path=there, **more)
    with pytest.raises(ConfigError, match="base=s3://bucket/a is in an object storage"):
        VerifyConfig(path="corpus", base=there)
    with pytest.raises(ConfigError, match="run=s3://bucket/a is in an object storage"):
        compose("plan", [f"run={there}"])
    for name in ("logs_dir", "run_dir"):
        with pytest.raises(ConfigError, match=rf"paths\.{name}=s3://bucket/a is .*Try storage\.url=s3://bucket/logs"):
            replace(PathsConfig(), **{name: there})
    with pytest.raises(ConfigError, match=r"paths\.cache_dir=s3://bucket/a is .*Try paths\.cache_dir=\.cache"):
        PathsConfig(cache_dir=there)
    with pytest.raises(ConfigError, match=r"output=s3://bucket/a is .*Try output=corpus, and copy it"):
        compose("curate", ["sources.web={kind: text_files, path: a.txt, license: CC-BY-4.0}", f"output={there}"])
