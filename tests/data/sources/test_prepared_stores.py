"""Token stores that were written to a folder of their own are read there as those of the cache, or refused."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from faulty_storage import FaultyStorage, Killed
from fsspec.implementations.memory import MemoryFileSystem

from pretrain.commands import tasks
from pretrain.config.compose import compose, register_schemas
from pretrain.config.scripts import PrepareConfig
from pretrain.data.config import (
    BPETokenizerConfig,
    BytesTokenizerConfig,
    MixtureConfig,
    MixtureSource,
    Mode,
    PretrainedTokenizerConfig,
    TextFilesConfig,
)
from pretrain.data.fine_tuning_config import PairsConfig
from pretrain.data.prepare import find_prepared, prepare
from pretrain.data.prepared_config import PreparedConfig, PreparedTokenizerConfig
from pretrain.data.sources.remote_corpus import local_stores
from pretrain.data.token_store import prepared_folder
from pretrain.data.token_store.prepared_folder import read_prepared, write_prepared
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.evaluation.readers import stores_that_hold
from pretrain.files.locks import try_lock
from pretrain.files.records import sealed

URL = "memory://bucket/stores"
OWN = PreparedTokenizerConfig()


def silent(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def written(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that prepare.py wrote, in which nothing may be changed; its cache is beside it."""
    folder = tmp_path_factory.mktemp("written")
    register_schemas("prepare", PrepareConfig)
    words = ["data=text_files", f"data.path={corpus}", "tokenizer.vocab_size=300", "data.shard_tokens=1024"]
    config = compose("prepare", [*words, f"paths.cache_dir={folder}/cache", f"output={folder}/stores"])
    tasks.prepare(config, [])
    tasks.prepare(config, [])  # finds it there
    return folder / "stores"


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    """Return a copy that may be damaged."""
    return Path(shutil.copytree(written, tmp_path / "copy"))


def send(folder: Path) -> list[str]:
    """Copy a folder to the object storage, its manifest last; return the names of the other files."""
    names = [entry.file for entry in read_prepared(folder).files]
    for name in [*names, "manifest.json"]:
        MemoryFileSystem().pipe_file(f"{URL}/{name}", (folder / name).read_bytes())
    return names


def edit(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(sealed(json.loads(path.read_text()) | changes)))


@pytest.mark.slow
def test_tokens_are_those_of_the_run_that_read_the_text(corpus: Path, written: Path, tmp_path: Path) -> None:
    here = prepare(
        TextFilesConfig(path=str(corpus), shard_tokens=1024), BPETokenizerConfig(vocab_size=300), tmp_path, silent
    )
    there = prepare(PreparedConfig(path=str(written)), OWN, tmp_path / "none", silent)
    assert there.fingerprint == here.fingerprint
    assert there.validation[""].fingerprint == here.validation[""].fingerprint
    assert there.tokenizer.fingerprint == here.tokenizer.fingerprint
    assert not (tmp_path / "none").exists()  # nothing is made
    found = find_prepared(PreparedConfig(path=str(written)), OWN, tmp_path / "none")
    assert found is not None
    assert found.train[""].n_tokens == read_prepared(written).n_tokens
    cached = next((written.parent / "cache" / "stores").iterdir())
    assert (cached / "done.json").samefile(written / "done.json")  # a link takes no space


def test_a_tokenizer_that_differs_is_refused(written: Path, tmp_path: Path) -> None:
    data = PreparedConfig(path=str(written))
    same = PretrainedTokenizerConfig(path=str(written / "tokenizer"))
    assert prepare(data, same, tmp_path, silent).tokenizer.vocab_size == 300
    with pytest.raises(ConfigError, match=r"tokenizer\.kind=bytes is another .* of 300 tokens\. Try tokenizer=prep"):
        prepare(data, BytesTokenizerConfig(), tmp_path, silent)
    with pytest.raises(ConfigError, match=r"tokenizer\.kind=bpe is learned from text, and data\.path=\S+ has tokens"):
        prepare(data, BPETokenizerConfig(), tmp_path, silent)
    text = TextFilesConfig(path=str(written / "done.json"))
    with pytest.raises(ConfigError, match=r"tokenizer\.kind=prepared is the tokenizer of .* no source .*tokenizer=bpe"):
        prepare(text, OWN, tmp_path, silent)
    assert find_prepared(text, OWN, tmp_path) is None
    with pytest.raises(ConfigError, match=r"tokenizer\.kind=prepared is read from data\.path, .*vocab_size=50257"):
        OWN.largest_vocabulary()
    with pytest.raises(DataError, match=r"has tokens and no text to read\. Name the text"):
        list(data.open().documents())


def test_a_mixture_takes_stores_beside_text(corpus: Path, written: Path, tmp_path: Path) -> None:
    def mixture(**sources: PreparedConfig | TextFilesConfig) -> MixtureConfig:
        return MixtureConfig(sources={name: MixtureSource(text, weight=1.0) for name, text in sources.items()})

    stores = PreparedConfig(path=str(written))
    found = prepare(mixture(a=stores, b=TextFilesConfig(path=str(corpus))), OWN, tmp_path, silent)
    assert found.train["a"].tokenizer_fingerprint == found.train["b"].tokenizer_fingerprint
    assert found.train["a"].n_tokens == found.train["b"].n_tokens
    other = prepare(TextFilesConfig(path=str(corpus)), BytesTokenizerConfig(), tmp_path / "cache", silent)
    write_prepared(tmp_path / "other", other.corpora[""].folder, 0.05)
    with pytest.raises(
        ConfigError, match=r"different tokenizers, .*tokenizer=pretrained tokenizer\.path=\S+/tokenizer"
    ):
        prepare(mixture(a=stores, b=PreparedConfig(path=str(tmp_path / "other"))), OWN, tmp_path, silent)
    shared = replace(mixture(a=stores), validation_fraction=0.3)
    with pytest.raises(ConfigError, match=r"data\.sources\.a\.validation_fraction=0\.3 is not .*_fraction=0\.05"):
        prepare(shared, OWN, tmp_path, silent)


def test_another_split_is_refused(corpus: Path, written: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"validation_fraction=0\.2 is not the share .*Try data\.validation_fraction=0\.05"
    ):
        PreparedConfig(path=str(written), validation_fraction=0.2).check_files()
    none = prepare(TextFilesConfig(path=str(corpus), validation_fraction=0.0), BytesTokenizerConfig(), tmp_path, silent)
    write_prepared(tmp_path / "none", none.corpora[""].folder, 0.0)
    with pytest.raises(ConfigError, match=r"validation_fraction=0\.05 is not .*Try data\.validation_fraction=0, or"):
        PreparedConfig(path=str(tmp_path / "none")).check_files()
    PreparedConfig(path=str(tmp_path / "none"), validation_fraction=0.0).check_files()
    with pytest.raises(ConfigError, match=r"data\.mode=stream tokenizes text .*Try data\.mode=prepare"):
        PreparedConfig(path="x", mode=Mode.stream)


def test_what_is_damaged_or_half_is_refused(copy: Path, tmp_path: Path) -> None:
    data, manifest = PreparedConfig(path=str(copy)), (copy / "manifest.json").read_bytes()
    end = r".*Copy or prepare it again\."
    for name in ("done.json", "train/shards/00000.tok", "tokenizer/tokenizer.json"):
        before = (copy / name).read_bytes()
        (copy / name).unlink()
        with pytest.raises(DataError, match=rf"data\.path=\S+ cannot be read: \S+/{name} does not exist{end}"):
            data.open()
        (copy / name).write_bytes(before[:-1])
        with pytest.raises(DataError, match=rf"data\.path=\S+ cannot be read: \S+/{name} (is damaged|has){end}"):
            data.open()
        (copy / name).write_bytes(before)
    tokens = bytearray((copy / "train/shards/00000.tok").read_bytes())
    tokens[-3] ^= 1
    (copy / "train/shards/00000.tok").write_bytes(bytes(tokens))
    with pytest.raises(DataError, match=r"00000\.tok is damaged"):
        prepare(data, OWN, tmp_path, silent).train[""].verify()
    edit(copy, fingerprint="0" * 64)
    with pytest.raises(DataError, match=r"its training store is another than its manifest lists"):
        data.open()
    for changes, message in (
        ({"version": 2}, r"version=2, and this release reads version 1\. Prepare the text again"),
        ({"format": "other"}, r"it has no format='pretrain prepared corpus'"),
        ({"files": [{"file": "../a", "bytes": 1, "sha256": ""}]}, r"lists '\.\./a', which is no file of such"),
        ({"files": []}, r"does not list train/manifest\.json"),
        ({"vocab_size": 0}, r"vocab_size=0, which is below 1"),
    ):
        edit(copy, **changes)
        with pytest.raises(DataError, match=message):
            data.open()
        (copy / "manifest.json").write_bytes(manifest)
    (copy / "manifest.json").write_bytes(manifest.replace(b'"n_tokens": ', b'"n_tokens": 1'))
    with pytest.raises(DataError, match="is not as it was written"):
        data.open()
    (copy / "manifest.json").write_text('{"format": "pretrain prepared corpus", "version": 1}')
    with pytest.raises(DataError, match="it has no record_sha256"):
        data.open()
    (copy / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"no finished token stores: it has no manifest\.json\. Name the folder that"):
        data.open()


def test_stores_with_annotations_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": "a b", "response": "c d"}\n' * 3 + '{"prompt": "e", "response": "f"}\n'
    )
    pairs = PairsConfig(path=str(tmp_path / "a.jsonl"), validation_fraction=0.0)
    folder = prepare(pairs, BytesTokenizerConfig(), tmp_path / "cache", silent).corpora[""].folder
    write_prepared(tmp_path / "out", folder, 0.0)
    with pytest.raises(DataError, match=r"has annotations for fine-tuning, .*data=pairs"):
        PreparedConfig(path=str(tmp_path / "out"), validation_fraction=0.0).open()


def test_output_is_whole_or_unfinished(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, output = next((written.parent / "cache" / "stores").iterdir()), tmp_path / "out"
    link = os.link

    def killed(source: Path, target: Path) -> None:
        if target.name == "00000.names":
            raise Killed
        link(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", killed)
        with pytest.raises(Killed):
            write_prepared(output, cached, 0.05)
    with pytest.raises(DataError, match="no finished token stores"):
        read_prepared(output)
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", lambda source, target: (_ for _ in ()).throw(OSError("another disk")))
        found = write_prepared(output, cached, 0.05)  # by copies
    assert found == read_prepared(written)
    assert write_prepared(output, cached, 0.05) == found
    with pytest.raises(ConfigError, match=r"output=\S+ holds other token stores already, .*Delete it, or try output="):
        write_prepared(output, cached, 0.1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match=r"holds other files already"):
        write_prepared(tmp_path / "mine", cached, 0.05)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    for name in ("train/t.txt", "tokenizer/tokenizer.json", "done.json"):  # named like parts of such a folder
        own = tmp_path / name.replace("/", "_") / name
        own.parent.mkdir(parents=True)
        own.write_text("years")
        with pytest.raises(ConfigError, match=r"holds other files already"):
            write_prepared(tmp_path / name.replace("/", "_"), cached, 0.05)
        assert own.read_text() == "years"
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    with pytest.raises(CheckpointError, match=r"output=\S+ cannot be written: .*name a folder of another disk"):
        write_prepared(tmp_path / "mine" / "thesis.txt", cached, 0.05)
    (tmp_path / "busy").mkdir()
    held = os.open(tmp_path / "busy", os.O_RDONLY)
    assert try_lock(held)
    with pytest.raises(CheckpointError, match="is being written by another process"):
        write_prepared(tmp_path / "busy", cached, 0.05)
    os.close(held)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["output=s3://bucket/a"], r"output=s3://bucket/a is in an object storage, .*Try output=my_store, and copy it"),
        (["output=a", "data.mode=stream"], r"output=a takes finished token stores, and data\.mode=stream .*=prepare"),
        (["output=a", "data=pairs", "data.path=x"], r"output=a takes text .*data\.kind=pairs is for fine-tuning"),
        (["output=a", "data=prepared", "data.path=x"], r"output=a takes what is tokenized now, and data\.path=x holds"),
        (["output=a", "data=mixture", "data.sources={a: {kind: python_docs, weight: 1}, b: {kind: text_files, path: x, "
          "weight: 1}}"], r"output=a takes the stores of one source, .*data\.sources\.<name>\.kind=prepared"),
        (["data=prepared", "data.path=ftp://a/b"], r"data\.path=ftp://a/b is no address"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(words: list[str], message: str) -> None:
    register_schemas("prepare", PrepareConfig)
    with pytest.raises(ConfigError, match=message):
        compose("prepare", words)


def test_a_killed_copy_goes_on_and_two_at_once_copy_once(written: Path, storage: FaultyStorage, tmp_path: Path) -> None:
    names = send(written)
    for number in range(2 + len(names)):
        cache = tmp_path / str(number)
        storage.kill_at(number)
        with pytest.raises(Killed):
            local_stores(URL, cache)
        storage.heal()
        assert not [path for path in cache.glob("remote/stores/*") if path.is_dir() and path.suffix != ".tmp"]
        left = sum(1 for path in cache.glob("remote/stores/*.tmp/**/*") if path.is_file() and path.name != "done.json")
        before = len(storage.requests)
        lines: list[str] = []
        found = prepare(PreparedConfig(path=URL), OWN, cache, lines.append)
        assert found.fingerprint == read_prepared(written).fingerprint
        assert len(storage.requests) - before <= 2 * len(names) + 2 - left
        assert sum("copying" in line for line in lines) == 1
        if number:  # the rest of the loop is long enough without each
            break
    storage.requests.clear()
    with ThreadPoolExecutor(4) as threads:  # each has a descriptor of its own, as processes have
        folders = set(threads.map(lambda _: local_stores(URL, tmp_path / "new"), range(4)))
    assert len(folders) == 1
    assert sum(request == "get_file" for request, _ in storage.requests) == len(names)
    assert find_prepared(PreparedConfig(path=URL), OWN, tmp_path / "new") is None  # a plan asks no storage
    PreparedConfig(path=URL).check_files()


def test_what_is_damaged_in_a_storage_is_refused(
    written: Path, storage: FaultyStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        DataError, match=r"no finished folder of token stores: .*Copy the output of prepare\.py output="
    ):
        local_stores(URL, tmp_path)
    send(written)
    system, name = MemoryFileSystem(), "train/shards/00000.tok"
    tokens = bytearray(system.cat_file(f"{URL}/{name}"))
    tokens[100] ^= 1
    system.pipe_file(f"{URL}/{name}", bytes(tokens))
    with pytest.raises(DataError, match=rf"damaged: size or sha256 of {name} is not that of the manifest"):
        local_stores(URL, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prepared_folder, "MAX_MANIFEST_BYTES", 5)
        with pytest.raises(DataError, match=r"is no folder of token stores: of manifest\.json, it is larger"):
            local_stores(URL, tmp_path)
    system.pipe_file(f"{URL}/manifest.json", b"{}")
    with pytest.raises(DataError, match=r"data\.path=\S+ cannot be read: .*it has no format"):
        local_stores(URL, tmp_path)


def test_who_is_to_forget_a_document_finds_the_folder(written: Path, copy: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(copy, cache / "remote" / "stores" / "a")
    name = prepare(PreparedConfig(path=str(copy)), OWN, cache, silent).train[""].document_name(0)
    held = stores_that_hold(frozenset([name]), cache, [tmp_path / "copy"])
    assert {store.corpus for store in held} == {cache / "remote" / "stores" / "a", copy}


def test_the_command_that_trains_on_a_folder_can_be_typed(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    register_schemas("prepare", PrepareConfig)
    output = tmp_path / "my stores"
    words = ["data=text_files", f"data.path={corpus}", "tokenizer=bytes", f"paths.cache_dir={tmp_path}/cache"]
    tasks.prepare(compose("prepare", [*words, f"output={output}"]), [])
    assert f"data=prepared 'data.path={output}'\n" in capsys.readouterr().out
