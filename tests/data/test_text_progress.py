"""Progress of reading a corpus: rate, percentage and remaining time, at intervals."""

import gzip
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from pretrain.data import progress
from pretrain.data.config import BytesTokenizerConfig, DataConfig, HuggingFaceConfig, Mode, TextFilesConfig
from pretrain.data.fine_tuning_config import PairsConfig
from pretrain.data.prepare import prepare
from pretrain.data.progress import LINES_S, TERMINAL_S, Progress
from pretrain.data.streaming import producer
from pretrain.data.streaming.corpus import locked


def test_a_line_now_and_then_has_pace_share_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = 0.0, list[str]()
    watched = Progress(said.append, clock=lambda: now)
    assert watched.every_s == LINES_S == 30.0
    for now in range(0, 100, 10):
        watched(f"tokenized {now} documents", now * 2_500_000, now / 400)
    assert said == [
        "tokenized 30 documents, 75 MB at 2.5 MB/s, 8%, 6:10 left ...",
        "tokenized 60 documents, 150 MB at 2.5 MB/s, 15%, 5:40 left ...",
        "tokenized 90 documents, 225 MB at 2.5 MB/s, 22%, 5:10 left ...",
    ]
    now = 200.0
    watched("read 1 documents", 1_500_000_000)
    assert said[-1] == "read 1 documents, 1,500 MB at 7.5 MB/s ..."
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert Progress(said.append).every_s == TERMINAL_S == 5.0


def lines(count: int, **columns: str) -> bytes:
    return b"".join(
        json.dumps({name: f"{text} {n}" for name, text in columns.items()}).encode() + b"\n" for n in range(count)
    )


def test_the_share_of_files_is_that_of_their_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(2000, text="one"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines(2000, text="two"), 0))
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "c.jsonl").write_bytes(lines(4000, prompt="a", response="b"))
    configs: list[DataConfig] = [
        TextFilesConfig(path=str(tmp_path / "*.jsonl*")),
        PairsConfig(path=str(tmp_path / "pairs")),
    ]
    for config in configs:
        source = config.open()
        assert source.share_read() is None
        shares: list[Any] = [source.share_read() for _ in source.documents()]
        assert shares == sorted(shares)
        assert 0.25 < shares[1999] < 0.75
        assert shares[-1] == 1.0


def test_the_share_of_rows_is_known_where_their_number_is(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["one", "two", "three", "four"]}).save_to_disk(tmp_path / "saved")
    source = HuggingFaceConfig(path=str(tmp_path / "saved")).open()
    assert [source.share_read() for _ in source.documents()] == [0.25, 0.5, 0.75, 1.0]
    source = HuggingFaceConfig(path=str(tmp_path / "saved"), max_documents=2).open()
    assert [source.share_read() for _ in source.documents()] == [0.5, 1.0]


def test_what_is_tokenized_is_shown_and_what_was_found_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINES_S", 0.0)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("one\n\ntwo")
    (corpus / "b.png").write_bytes(b"")
    said: list[str] = []
    data = TextFilesConfig(path=str(corpus), separator="|", validation_fraction=0.0)
    prepare(data, BytesTokenizerConfig(), tmp_path / "cache", said.append)
    assert said[0].startswith("tokenized 1 documents, 0 MB at ")
    assert "100%, 0:00 left ..." in said[0]
    assert said[1].startswith("tokenized 1 documents")
    assert "to train on" not in said[1]  # nothing is held out: they may be there to be scored
    assert said[2] == f"data.path={corpus}: files passed over: 1 (1 .png)"
    assert said[3].startswith("data.separator='|' does not occur in data.path=")
    said.clear()
    data.mode, data.era_tokens = Mode.stream, 1024
    prepare(data, BytesTokenizerConfig(), tmp_path / "cache", said.append)
    assert any("passed over" in line for line in said)
    assert any("does not occur" in line for line in said)


def test_ends_of_text_within_a_file_read_as_one_document_are_told(tmp_path: Path) -> None:
    (tmp_path / "stories.txt").write_text("One day.\n<|endoftext|>\nOnce upon a time.\n<|endoftext|>\n")
    told = []
    for separator in (None, "<|endoftext|>"):
        source = TextFilesConfig(path=str(tmp_path / "stories.txt"), separator=separator).open()
        documents = list(source.documents())
        told.append((len(documents), source.remarks()))
    (whole, remarks), (parts, none) = told
    assert (whole, parts, none) == (1, 2, [])
    assert "'<|endoftext|>' occurs 2 times in data.path=" in remarks[0]
    assert "set data.separator='<|endoftext|>'" in remarks[0]


def test_who_waits_for_another_reader_says_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producer, "LINES_S", 0.0)
    monkeypatch.setattr(producer, "POLL_S", 0.01)
    said, stopped = list[str](), threading.Event()

    def report(line: str) -> None:
        said.append(line)
        if "has waited" in line:
            stopped.set()

    with locked(tmp_path):
        job = producer.StreamJob(tmp_path, None, None, report)  # type: ignore[arg-type]
        producer.produce(job, enough=lambda: False, stopped=stopped.is_set)
    assert said[-1] == "has waited 0:00 for the run that reads this corpus ..."
