"""Streams: the files depend on corpus and settings alone, for any readers and any kills."""

import json
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretrain.data import progress
from pretrain.data.config import (
    BPETokenizerConfig,
    BytesTokenizerConfig,
    DataConfig,
    HuggingFaceConfig,
    Mode,
    TextFilesConfig,
)
from pretrain.data.prepare import Corpus, finish_stream, prepare
from pretrain.data.sources.source import Source
from pretrain.data.streaming import ledger as ledger_file
from pretrain.data.streaming import producer
from pretrain.data.streaming.corpus import Stream, era_folder, locked
from pretrain.data.streaming.ledger import Ledger
from pretrain.data.streaming.producer import StreamJob, produce
from pretrain.data.tokenizers.tokenizer import Tokenizer
from pretrain.data.tokenizers.train_bpe import byte_tokenizer, head
from pretrain.errors import DataError

HINTS = ("bookmark.json", "lock")  # what may differ between two streams of the same corpus


def write_corpus(folder: Path, seed: int = 0) -> Path:
    """Write 180 documents in three files, with duplicates within and across eras and lines that are no documents."""
    draw = random.Random(seed)
    texts = [" ".join(f"w{draw.randint(0, 99)}" for _ in range(draw.randint(5, 60))) for _ in range(160)]
    lines = [json.dumps({"text": text}) for text in texts + texts[:20:2] + texts[100:120:2]]
    draw.shuffle(lines)
    folder.mkdir()
    for number in range(3):
        part = lines[60 * number : 60 * number + 60]
        part.insert(draw.randint(0, 60), '{"text": 3}')
        (folder / f"{number}.jsonl").write_text("\n".join([*part, "not JSON"]))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus")


def settings(path: Path, validation_fraction: float = 0.2, **others: Any) -> TextFilesConfig:
    return TextFilesConfig(
        path=str(path), mode=Mode.stream, era_tokens=1024, validation_fraction=validation_fraction, **others
    )


def streamed(data: DataConfig, cache: Path, to_end: bool = True) -> Corpus:
    prepared = prepare(data, BytesTokenizerConfig(), cache, lambda line: None)
    if to_end:
        finish_stream(prepared, data, lambda line: None)
    return prepared.corpora[""]


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the stream that was made in one go."""
    return streamed(settings(text), tmp_path_factory.mktemp("whole")).folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in HINTS)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "plans" not in path.parts}


def texts_of(stream: Stream) -> list[str]:
    tokenizer = byte_tokenizer()
    stores = [stream.era(number) for number in range(len(stream.ledger.eras))]
    return [tokenizer.decode(store.document(i)) for store in stores for i in range(store.n_documents)]


def after(count: int) -> Callable[[], bool]:
    """Return what says to stop when it has been asked so often."""
    left = iter(range(count))
    return lambda: next(left, None) is None


def read(folder: Path, data: DataConfig, stopped: Callable[[], bool] = lambda: False, source: Source | None = None):
    job = StreamJob(folder, source or data.open(), byte_tokenizer(), lambda line: None)
    produce(job, enough=lambda: False, stopped=stopped)


# What a stream holds


@pytest.mark.slow
def test_a_stream_equals_a_prepared_store_but_for_late_held_out_documents(text: Path, whole: Path, tmp_path: Path):
    data = TextFilesConfig(path=str(text), validation_fraction=0.2)
    prepared = prepare(data, BytesTokenizerConfig(), tmp_path, lambda line: None).corpora[""]
    assert not isinstance(prepared.train, Stream)
    assert prepared.validation is not None
    wanted = {byte_tokenizer().decode(prepared.train.document(i)) for i in range(prepared.train.n_documents)}
    stream = Stream(whole)
    assert len(stream.ledger.eras) > 10
    assert Counter(texts_of(stream)) == Counter(wanted)
    assert stream.ended()
    assert all(era.tokens >= 1024 for era in stream.ledger.eras[:-1])
    end = stream.ledger.end
    assert end is not None
    assert end.skipped == {"not JSON": 3, "text is no string": 3}
    assert (end.documents, end.duplicates) == (180, 20)
    assert stream.validation is not None
    assert stream.validation.n_documents + end.held_out == prepared.validation.n_documents
    assert stream.n_documents == prepared.train.n_documents
    assert (stream.n_tokens, stream.text_bytes) == (prepared.train.n_tokens, prepared.train.text_bytes)
    stream.verify()


def test_a_stream_found_again_is_not_written_to_and_keeps_its_tokenizer(text: Path, whole: Path):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    said: list[str] = []
    prepared = prepare(settings(text), BytesTokenizerConfig(), whole.parents[1], said.append)
    finish_stream(prepared, settings(text), said.append)
    assert prepared.corpora[""].folder == whole
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()} == before
    assert Tokenizer.load(whole / "tokenizer").fingerprint == byte_tokenizer().fingerprint
    with pytest.raises(DataError, match="was written with tokenizer"):
        Stream(whole).check_tokenizer("other", 259)


def test_how_far_it_is_is_said_now_and_then(text: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(progress, "LINES_S", 0.0)
    said: list[str] = []
    prepare(settings(text), BytesTokenizerConfig(), tmp_path, said.append)
    assert said[0] == "reading the first 1,024 tokens of the corpus, then training can start ..."
    line = r"read 1 documents of the corpus, [0-9]+ tokens so far, 0 MB at .* MB/s, [0-9]+%, 0:00 left \.\.\."
    assert re.fullmatch(line, said[1])


def test_other_settings_are_another_stream(text: Path, whole: Path):
    cache = whole.parents[1]
    others = [settings(text, validation_fraction=0.1), settings(text, shard_tokens=4096)]
    assert len({whole, *(streamed(data, cache, to_end=False).folder for data in others)}) == 3


@pytest.mark.slow
def test_a_validation_set_of_its_own_comes_with_the_first_era(text: Path, tmp_path: Path):
    own = tmp_path / "own.txt"
    own.write_text("a text to validate on")
    stream = streamed(settings(text, validation_path=str(own)), tmp_path).train
    assert isinstance(stream, Stream)
    assert stream.validation is not None
    assert stream.validation.n_documents == 1
    assert stream.ledger.end is not None
    assert stream.ledger.end.held_out == 0
    assert (stream.ledger.end.documents, stream.n_documents) == (180, 160)


def test_the_end_of_a_single_document_is_held_out(tmp_path: Path):
    (tmp_path / "one.txt").write_text("".join(f"line {number}\n" for number in range(500)))
    prepared = streamed(settings(tmp_path / "one.txt"), tmp_path)
    assert isinstance(prepared.train, Stream)
    assert prepared.validation is not None
    assert texts_of(prepared.train)[0].startswith("line 0\n")
    assert byte_tokenizer().decode(prepared.validation.document(0)).endswith("line 499\n")
    assert prepared.train.text_bytes + prepared.validation.text_bytes == (tmp_path / "one.txt").stat().st_size


def test_no_validation_is_said_and_no_text_to_train_on_refused(tmp_path: Path):
    (tmp_path / "two.txt").write_text("seven eight|nine ten")
    said: list[str] = []
    data = settings(tmp_path / "two.txt", separator="|", validation_fraction=0.01)
    assert prepare(data, BytesTokenizerConfig(), tmp_path, said.append).corpora[""].validation is None
    assert any("no document of the first 2 is held out" in line for line in said)
    with pytest.raises(DataError, match="no document is left to train on: all 2"):
        streamed(settings(tmp_path / "two.txt", separator="|", validation_fraction=0.9999), tmp_path)


def test_a_tokenizer_learns_from_the_beginning_of_a_stream(text: Path, tmp_path: Path):
    config = BPETokenizerConfig(vocab_size=300, max_training_bytes=2000)
    said: list[str] = []
    first = prepare(settings(text), config, tmp_path, said.append).tokenizer
    assert sum("training a tokenizer" in line for line in said) == 1
    later = tmp_path / "later"
    later.mkdir()
    for path in text.iterdir():
        lines = path.read_text().splitlines()
        (later / path.name).write_text("\n".join(lines if path.name == "0.jsonl" else lines[::-1]))
    assert prepare(settings(later), config, tmp_path, lambda line: None).tokenizer.fingerprint == first.fingerprint
    assert list(head(["aé", "bcd", "e"], 5)) == ["aé", "bc"]
    assert list(head(["aé", "b"], 2)) == ["a"]


# Killed and taken up again


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 7, 31])
def test_a_stream_made_in_pieces_is_the_one_made_in_one_go(text: Path, whole: Path, tmp_path: Path, stride: int):
    """A piece ends after 20 to 79 documents, mostly in the middle of an era."""
    folder = tmp_path / whole.name
    data, pieces = settings(text), 0
    while not Ledger(folder).end:
        read(folder, data, stopped=after(20 + stride * pieces % 60))
        pieces += 1
        assert not list(folder.rglob("*.tmp*"))
    assert pieces > 3
    assert contents(folder) == contents(whole)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["parquet", "jsonl", "arrow"])
def test_a_hugging_face_stream_is_read_on_without_reading_what_was_read(tmp_path: Path, form: str, monkeypatch):
    """The library's own place in the data is exact, across files and within them."""
    import datasets

    rows = [{"text": f"document {number} " + "abc " * (number % 41)} for number in range(1500)]
    raw = tmp_path / "raw"
    raw.mkdir()
    if form == "arrow":
        datasets.Dataset.from_list(rows).save_to_disk(raw)
    else:
        for part in range(3):
            table = datasets.Dataset.from_list(rows[500 * part : 500 * part + 500])
            table.to_parquet(raw / f"{part}.parquet") if form == "parquet" else table.to_json(raw / f"{part}.jsonl")
    data = HuggingFaceConfig(path=str(raw), mode=Mode.stream, era_tokens=10_000)
    expected = streamed(data, tmp_path / "whole").folder
    folder = tmp_path / expected.name
    counts = []
    while not Ledger(folder).end:
        source = data.open()
        eras = len(Ledger(folder).eras)
        said: list[str] = []
        given = 0
        original = source._screened  # type: ignore[attr-defined]

        def counted(found, *words, _original=original, **named):
            nonlocal given
            for document in _original(found, *words, **named):
                given += 1
                yield document

        monkeypatch.setattr(source, "_screened", counted)
        job = StreamJob(folder, source, byte_tokenizer(), said.append)
        produce(job, enough=lambda eras=eras: len(Ledger(folder).eras) > eras)
        assert not any("cannot be used" in line for line in said)
        counts.append(given)
    assert len(counts) > 5
    assert max(counts) < 500  # an era, the batch that it ends in, and a few documents to find the place
    assert contents(folder) == contents(expected)


@pytest.mark.slow
def test_a_bookmark_that_is_no_use_costs_only_time(text: Path, whole: Path, tmp_path: Path):
    for number, damage in enumerate(("", "[]", '{"documents": 1, "skipped": {}, "place": "x"}')):
        folder = tmp_path / str(number) / whole.name
        read(folder, settings(text), stopped=after(150))
        last = era_folder(folder, len(Ledger(folder).eras) - 1) / "bookmark.json"
        assert last.exists()
        last.write_text(damage)
        said: list[str] = []
        produce(StreamJob(folder, settings(text).open(), byte_tokenizer(), said.append), enough=after(2))
        assert any("cannot be used" in line for line in said)
        read(folder, settings(text))
        assert contents(folder) == contents(whole)
    assert json.loads((era_folder(whole, 9) / "bookmark.json").read_text())["place"] > 0


def test_a_corpus_that_has_changed_is_not_read_on(text: Path, tmp_path: Path):
    folder = tmp_path / "stream"
    read(folder, settings(text), stopped=after(50))
    other = write_corpus(tmp_path / "other", seed=1)
    with pytest.raises(DataError, match=r"has changed since it was read: its document [0-9]+ is another one"):
        read(folder, settings(other))


# Damage


@pytest.mark.slow
def test_a_torn_last_line_is_as_if_it_had_never_been_begun(text: Path, whole: Path, tmp_path: Path):
    folder = tmp_path / whole.name
    read(folder, settings(text), stopped=after(120))
    ledger = folder / "ledger.jsonl"
    sound = ledger.read_bytes()
    eras = len(Ledger(folder).eras)
    start = sound.rstrip().rfind(b"\n") + 1
    for cut in (start + 1, (start + len(sound)) // 2, len(sound) - 1):
        ledger.write_bytes(sound[:cut])
        assert len(Ledger(folder).eras) == eras - 1
    ledger.write_bytes(sound[:-20] + bytes(19) + b"\n")  # the file grew, its contents never arrived
    assert len(Ledger(folder).eras) == eras - 1
    read(folder, settings(text))
    assert contents(folder) == contents(whole)


def copy_of(whole: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(whole, tmp_path / whole.name))


def test_a_damaged_ledger_is_refused(whole: Path, tmp_path: Path, monkeypatch):
    folder = copy_of(whole, tmp_path)
    path = folder / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    ledger = Ledger(folder)
    for damaged in (
        [lines[0].replace(b'"number": 0', b'"number": 1'), *lines[1:]],
        [lines[0], lines[2], *lines[2:]],
        [*lines, lines[-1], b""],
        [b"[1]\n", *lines],
        [b'{"chain": 3, "era": "x"}\n', *lines],
    ):
        path.write_bytes(b"".join(damaged) + b"more")
        with pytest.raises(DataError, match=r"ledger\.jsonl is damaged in line [0-9]+. Delete .*read again"):
            Ledger(folder)
    path.write_bytes(lines[0])
    with pytest.raises(DataError, match="has become shorter: eras that this run has read were deleted"):
        ledger.refresh()
    monkeypatch.setattr(ledger_file, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="is larger than the 10 bytes allowed for a ledger"):
        Ledger(folder)
    path.unlink()
    with pytest.raises(DataError, match="holds no stream: its ledger lists no finished era"):
        Stream(folder)


def test_a_renamed_stream_is_not_taken_for_another(whole: Path, tmp_path: Path):
    """A ledger belongs to its corpus and settings, which name the folder."""
    import shutil

    shutil.copytree(whole, tmp_path / "other")
    with pytest.raises(DataError, match="is damaged in line 1"):
        Ledger(tmp_path / "other")


def test_a_damaged_era_is_refused(whole: Path, tmp_path: Path):
    folder = copy_of(whole, tmp_path)
    stream = Stream(folder)
    tokens = era_folder(folder, 1) / "train" / "shards" / "00000.tok"
    data = tokens.read_bytes()
    tokens.write_bytes(data[:-2])
    with pytest.raises(DataError, match=r"00000\.tok has .* bytes, but .*Delete .*the corpus is read again"):
        stream.era(1)
    tokens.write_bytes(data)
    (era_folder(folder, 1) / "train").rename(tmp_path / "aside")
    with pytest.raises(DataError, match=r"is not a finished token store.*Delete"):
        stream.era(1)
    (era_folder(folder, 2) / "train").rename(era_folder(folder, 1) / "train")
    with pytest.raises(DataError, match="is not the store that the ledger lists"):
        stream.era(1)


def test_damaged_hashes_of_documents_are_refused(text: Path, tmp_path: Path):
    folder = tmp_path / "stream"
    read(folder, settings(text), stopped=after(100))
    hashes = era_folder(folder, 0) / producer.HASHES
    hashes.write_bytes(hashes.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"documents\.u64 is missing or not as it was written"):
        read(folder, settings(text))


@pytest.mark.slow
def test_what_a_dead_process_left_is_swept(text: Path, whole: Path, tmp_path: Path):
    folder = tmp_path / whole.name
    read(folder, settings(text), stopped=after(100))
    eras = len(Ledger(folder).eras)
    (era_folder(folder, eras) / "train").mkdir(parents=True)  # killed between the rename and the line
    (folder / "eras" / f"{eras + 1:05d}.tmp-1").mkdir()
    (folder / "tokenizer.tmp-1").mkdir()
    read(folder, settings(text))
    assert contents(folder) == contents(whole)
    assert not list(folder.rglob("*.tmp*"))


# Several at once


@pytest.mark.slow
def test_what_is_swept_is_known_to_be_of_ours(text: Path, whole: Path, tmp_path: Path):
    folder = copy_of(whole, tmp_path)
    for name in ("mine", "00099.tmp-1", "00099"):
        (folder / "eras" / name).mkdir()
    (folder / "eras" / "00098").symlink_to(tmp_path)
    ledger = (folder / "ledger.jsonl").read_bytes()
    (folder / "ledger.jsonl").write_bytes(ledger[: ledger.index(b"\n") + 1])
    read(folder, settings(text))
    left = {path.name for path in (folder / "eras").iterdir()}
    assert left >= {"mine", "00098"}
    assert not left & {"00099", "00099.tmp-1"}


def test_eras_that_lie_elsewhere_are_not_written_to_or_deleted(text: Path, whole: Path, tmp_path: Path):
    for name in ("eras", "tokenizer"):
        folder = copy_of(whole, tmp_path / name)
        ledger = (folder / "ledger.jsonl").read_bytes()
        (folder / "ledger.jsonl").write_bytes(ledger[: ledger.index(b"\n") + 1])
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (folder / name).rename(tmp_path / "elsewhere" / name)
        before = contents(tmp_path / "elsewhere")
        (folder / name).symlink_to(tmp_path / "elsewhere" / name)
        with pytest.raises(DataError, match=rf"{name} is a link, but prepared data must lie in its own folder"):
            read(folder, settings(text))
        assert contents(tmp_path / "elsewhere") == before


@pytest.mark.parametrize("name", ["ledger.jsonl", "lock"])
@pytest.mark.parametrize("kind", ["a FIFO", "a folder", "a link"])
def test_a_file_to_write_that_is_none_is_refused(text: Path, whole: Path, tmp_path: Path, name: str, kind: str):
    folder = copy_of(whole, tmp_path)
    path, ledger = folder / name, folder / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().split(b"\n")[0] + b"\n")
    path.unlink(missing_ok=True)
    make = {"a FIFO": os.mkfifo, "a folder": Path.mkdir, "a link": lambda path: path.symlink_to(tmp_path / "other")}
    make[kind](path)
    with pytest.raises(DataError, match=rf"{name} cannot be (read|used): .*{kind}"):
        read(folder, settings(text))
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_one_process_writes_and_another_goes_on_in_its_place(text: Path, whole: Path, tmp_path: Path):
    folder = tmp_path / whole.name
    folder.mkdir()
    said: list[str] = []
    done = threading.Event()

    def second() -> None:
        produce(StreamJob(folder, settings(text).open(), byte_tokenizer(), said.append), enough=lambda: False)
        done.set()

    with locked(folder) as first:
        assert first
        with locked(folder) as other:
            assert not other
        thread = threading.Thread(target=second)
        thread.start()
        assert not done.wait(1.0)
        assert said == ["another run reads this corpus: using what it reads"]
        assert not (folder / "ledger.jsonl").exists()
    thread.join(60)
    assert done.is_set()
    assert contents(folder) == contents(whole)
