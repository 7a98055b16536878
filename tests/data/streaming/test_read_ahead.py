"""The read-ahead process: it works, passes on its errors, and ends with its parent."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from pretrain.data.config import BytesTokenizerConfig, Mode, TextFilesConfig
from pretrain.data.prepare import Corpus, prepare
from pretrain.data.streaming.corpus import Stream, locked
from pretrain.data.streaming.dataset import StreamingDataset
from pretrain.data.streaming.ledger import Ledger
from pretrain.data.streaming.read_ahead import ReadAhead, ReadAheadJob, _produce
from pretrain.errors import CheckpointError, DataError, RankLostError


def settings(path: Path) -> TextFilesConfig:
    return TextFilesConfig(path=str(path), mode=Mode.stream, era_tokens=2000, separator="|")


def begin(folder: Path, documents: int = 400) -> tuple[TextFilesConfig, Corpus]:
    """Return the settings and the first era of a corpus of about a hundred tokens a document."""
    path = folder / "text.txt"
    path.write_text("|".join(f"document {number} " + "abc " * (number % 40) for number in range(documents)))
    data = settings(path)
    return data, prepare(data, BytesTokenizerConfig(), folder / "cache", lambda line: None).corpora[""]


def wait_until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def test_a_disk_that_refuses_is_one_error_of_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data, prepared = begin(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pretrain.data.streaming.producer.produce", refuse)
    with pytest.raises(CheckpointError, match=r"prepared data cannot be written to .*: No space left on device"):
        _produce(ReadAheadJob(data, prepared.folder, 64, 1), threading.Event())
    reader = ReadAhead(ReadAheadJob(data, prepared.folder, 64, 1))
    reader._connection, theirs = multiprocessing.Pipe()  # type: ignore[assignment]
    reader._process = SimpleNamespace()
    theirs.send_bytes(b'{"kind": "CheckpointError", "message": "full"}')
    with pytest.raises(CheckpointError, match="full") as refusal:
        reader.check()
    assert refusal.value.exit_code == 4


def test_where_the_storage_is_read_only_nobody_holds_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: object, flags: int, mode: int = 0) -> int:
        raise OSError(number, os.strerror(number))

    for number in (errno.EROFS, errno.EIO):
        with monkeypatch.context() as patch:
            patch.setattr("pretrain.data.streaming.corpus.os.open", refuse)
            if number == errno.EROFS:
                with locked(tmp_path) as held:
                    assert held
            else:
                with pytest.raises(OSError, match="Input/output error"), locked(tmp_path):
                    pass


def test_lock_and_ledger_of_a_stream_are_not_opened_through_links(tmp_path: Path):
    data, prepared = begin(tmp_path)
    for name in ("lock", "ledger.jsonl"):
        path = prepared.folder / name
        path.rename(tmp_path / name)
        path.symlink_to(tmp_path / name)
        before = (tmp_path / name).read_bytes()
        with pytest.raises(DataError, match=rf"{name} cannot be (read|used): it is a link"):
            _produce(ReadAheadJob(data, prepared.folder, 64, 10**9), threading.Event())
        assert (tmp_path / name).read_bytes() == before
        path.unlink()
        (tmp_path / name).rename(path)


@pytest.mark.slow
def test_it_reads_until_there_are_enough_rows_and_a_longer_run_goes_on(tmp_path: Path, capfd):
    data, prepared = begin(tmp_path)
    rows = StreamingDataset(Stream(prepared.folder), data, 64, pad_id=0, seed=0)
    assert rows.available() < 100
    for needed, ended in ((100, False), (10**6, True)):
        reader = ReadAhead(ReadAheadJob(data, prepared.folder, 64, needed))
        reader.check()
        reader.start()
        while rows.is_waiting(needed):
            reader.check()
            time.sleep(0.05)
        reader.stop()
        reader.stop()
        assert rows.stream.ended() == ended
        assert rows.available() >= needed
    assert "the corpus has been read to its end" in capfd.readouterr().out


@pytest.mark.slow
def test_its_failure_arrives_with_its_words(tmp_path: Path, capfd):
    data, prepared = begin(tmp_path)
    Path(data.path).write_text("something else")
    reader = ReadAhead(ReadAheadJob(data, prepared.folder, 64, 10**6))
    reader.start()
    with pytest.raises(DataError, match="the corpus has changed since it was read"):
        wait_until(reader.check)
    reader.stop()
    (prepared.folder / "tokenizer" / "tokenizer.json").unlink()
    (prepared.folder / "tokenizer" / "tokenizer.json").mkdir()
    reader.start()
    with pytest.raises(DataError, match=r"tokenizer\.json is damaged or not a tokenizer file: it is a folder"):
        wait_until(reader.check)
    reader.stop()
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.slow
def test_what_nobody_foresaw_arrives_in_one_line(tmp_path: Path, capfd):
    data, prepared = begin(tmp_path)
    data.validation_fraction = "much"  # type: ignore[assignment]
    reader = ReadAhead(ReadAheadJob(data, prepared.folder, 64, 10**6))
    reader.start()
    with pytest.raises(DataError, match=r"reading the corpus into .* failed: TypeError: "):
        wait_until(reader.check)
    reader.stop()
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.slow
def test_a_kill_is_noticed_and_signals_to_the_run_are_ignored(tmp_path: Path):
    data, prepared = begin(tmp_path)
    reader = ReadAhead(ReadAheadJob(data, prepared.folder, 64, 10**6))
    with locked(prepared.folder):  # so that it has nothing to do but wait
        reader.start()
        time.sleep(3)
        pid = reader._process.pid
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        time.sleep(1)
        reader.check()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RankLostError, match=r"was lost \(SIGKILL\); go on from the last checkpoint"):
            wait_until(reader.check)
    reader.stop()
    assert len(Ledger(prepared.folder).eras) == 1


def test_an_end_without_a_word_is_noticed(tmp_path: Path):
    reader = ReadAhead(ReadAheadJob(settings(tmp_path), tmp_path, 64, 1))
    reader._connection, theirs = multiprocessing.Pipe()
    theirs.close()
    reader._process = SimpleNamespace(is_alive=lambda: False, exitcode=1)
    with pytest.raises(RankLostError, match=r"was lost \(exit code 1\)"):
        reader.check()
    reader._connection.close()


@pytest.mark.slow
def test_it_dies_with_the_process_that_started_it(tmp_path: Path):
    data, prepared = begin(tmp_path)
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from pretrain.data.config import Mode, TextFilesConfig\n"
        "from pretrain.data.streaming.read_ahead import ReadAhead, ReadAheadJob\n"
        "if __name__ == '__main__':\n"
        "    data = TextFilesConfig(path=sys.argv[1], mode=Mode.stream, era_tokens=2000, separator='|')\n"
        "    reader = ReadAhead(ReadAheadJob(data, Path(sys.argv[2]), 64, 10**6))\n"
        "    reader.start()\n"
        "    print(reader._process.pid, flush=True)\n"
        "    time.sleep(float(sys.argv[3]))\n"
    )
    for seconds in ("60", "0.5"):  # killed, and ended without a word to the other
        with locked(prepared.folder):
            words = [sys.executable, str(script), data.path, str(prepared.folder), seconds]
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
                assert parent.stdout is not None
                child = psutil.Process(int(parent.stdout.readline()))
                if seconds == "60":
                    time.sleep(2)
                    assert child.is_running()
                    parent.kill()
            wait_until(lambda child=child: not child.is_running(), seconds=20)
