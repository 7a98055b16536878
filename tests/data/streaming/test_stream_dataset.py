"""Rows of a stream: a pure function of seed, sample index and ledger, on any number of processes."""

import random
import threading
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pretrain.data.collate import Rows
from pretrain.data.config import Mode, TextFilesConfig
from pretrain.data.shuffle import micro_batch_samples
from pretrain.data.streaming import dataset as streamed_rows
from pretrain.data.streaming.corpus import Stream
from pretrain.data.streaming.dataset import ALL, StreamingDataset
from pretrain.data.streaming.ledger import Ledger
from pretrain.data.streaming.producer import StreamJob, produce
from pretrain.data.tokenizers.train_bpe import byte_tokenizer
from pretrain.errors import DataError

LENGTH = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TextFilesConfig:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    draw = random.Random(0)
    texts = (" ".join(f"w{draw.randint(0, 999)}" for _ in range(draw.randint(5, 60))) for _ in range(80))
    path.write_text("|".join(texts))
    return TextFilesConfig(path=str(path), separator="|", mode=Mode.stream, era_tokens=1500)


def read_eras(folder: Path, data: TextFilesConfig, eras: int = 10**9) -> None:
    job = StreamJob(folder, data.open(), byte_tokenizer(), lambda line: None)
    produce(job, enough=lambda: len(Ledger(folder).eras) >= eras)


@pytest.fixture(scope="module")
def whole(data: TextFilesConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "stream"
    read_eras(folder, data)
    return folder


def open_rows(folder: Path, data: TextFilesConfig, seed: int = 3) -> StreamingDataset:
    rows = StreamingDataset(Stream(folder), data, LENGTH, pad_id=0, seed=seed)
    rows.available()
    return rows


def same(one: Rows, other: Rows) -> bool:
    return all(np.array_equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(Rows))


@pytest.mark.slow
def test_every_row_comes_once_an_epoch_and_the_eras_in_turn(whole: Path, data: TextFilesConfig):
    rows = open_rows(whole, data)
    ends = rows._ends
    assert len(ends) > 4
    assert rows.available() == ALL
    orders = [rows.order(np.arange(epoch * ends[-1], (epoch + 1) * ends[-1])) for epoch in range(3)]
    for order in orders:
        for first, end in zip([0, *ends], ends, strict=False):
            assert sorted(order[first:end]) == list(range(first, end))
    assert all((one != other).any() for one, other in pairwise(orders))
    assert (orders[0] != open_rows(whole, data, seed=4).order(np.arange(ends[-1]))).any()
    assert (orders[0] != np.arange(ends[-1])).any()


def test_every_token_of_the_stream_is_in_a_row_once(whole: Path, data: TextFilesConfig):
    rows = open_rows(whole, data)
    found = rows.read(np.arange(rows._ends[-1]))
    assert (found.documents >= 0).sum() == rows.stream.n_tokens
    stores = [rows.stream.era(number) for number in range(len(rows._ends))]
    tokens = np.concatenate([store.document(i) for store in stores for i in range(store.n_documents)])
    assert sorted(found.tokens[found.documents >= 0]) == sorted(tokens)


@pytest.mark.slow
def test_a_reader_that_saw_less_of_the_corpus_answers_the_same(whole: Path, data: TextFilesConfig, tmp_path: Path):
    folder = tmp_path / whole.name
    read_eras(folder, data, eras=2)
    early, late = open_rows(folder, data), open_rows(whole, data)
    available = early.available()
    assert available == late._ends[1]
    samples = np.arange(available)[::-1].copy()
    assert same(early.rows(samples), late.rows(samples))
    read_eras(folder, data)
    assert early.available() == ALL
    samples = np.random.default_rng(0).integers(0, 5 * late._ends[-1], 300)  # of many eras and epochs at once
    assert same(early.rows(samples), late.rows(samples))


@pytest.mark.slow
def test_any_number_of_ranks_and_micro_batches_reads_the_same_rows(whole: Path, data: TextFilesConfig):
    one = open_rows(whole, data)
    for ranks, size in ((1, 8), (2, 4), (2, 1), (8, 1)):
        others = [open_rows(whole, data) for _ in range(ranks)]
        for step in (0, 3, 17, 10**6):
            batch = one.rows(micro_batch_samples(step, 0, 8, batch_size=8))
            indices = range(8 // size)
            parts = [
                others[index % ranks].rows(micro_batch_samples(step, index, size, batch_size=8)) for index in indices
            ]
            assert same(Rows.joined(parts), batch)


def test_documents_may_see_each_other_where_the_settings_say_so(whole: Path, data: TextFilesConfig):
    from dataclasses import replace

    found = open_rows(whole, replace(data, document_mask=False)).rows(np.arange(20))
    assert found.documents.max() == 0
    assert (found.positions == np.arange(LENGTH)).all()


@pytest.mark.slow
def test_a_row_that_is_not_there_yet_is_waited_for(whole: Path, data: TextFilesConfig, tmp_path: Path):
    folder = tmp_path / whole.name
    read_eras(folder, data, eras=1)
    early, late = open_rows(folder, data), open_rows(whole, data)
    samples = np.arange(late._ends[2] - 3, late._ends[2] + 3)
    found: list[Rows] = []
    thread = threading.Thread(target=lambda: found.append(early.rows(samples)))
    thread.start()
    thread.join(0.5)
    assert not found
    read_eras(folder, data, eras=4)
    thread.join(20)
    assert same(found[0], late.rows(samples))


def test_a_row_that_will_never_come_is_not_waited_for(data: TextFilesConfig, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(streamed_rows, "UNREAD_S", 0.5)
    read_eras(tmp_path / "stream", data, eras=1)
    rows = open_rows(tmp_path / "stream", data)
    with pytest.raises(DataError, match=r"no process has read the corpus into .*stream for 0 s\. Continue"):
        rows.rows(np.array([10**6]))
