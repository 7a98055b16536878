"""A run that trains while its corpus is being read equals one on the complete corpus."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
from same_state import assert_same_state

from pretrain.data.prepare import Prepared, finish_stream, prepare
from pretrain.data.streaming.ledger import Ledger
from pretrain.data.streaming.read_ahead import ReadAhead
from pretrain.errors import Interrupted
from pretrain.evaluation.config import EvalConfig
from pretrain.evaluation.run import score_documents
from pretrain.launch.run_folder import read_rows
from pretrain.training.callbacks import text_ahead
from pretrain.training.config import PathsConfig
from pretrain.training.train import run, train

STREAM = ["model=gpt_nano", "data.mode=stream", "data.era_tokens=1024", "data.validation_fraction=0.2"]


def rows_of(folder: Path, name: str) -> dict[int, str]:
    path = folder / "metrics.csv"
    found = read_rows(path) if path.exists() else []
    return {int(row["step"]): row["value"] for row in found if row["name"] == name}


def begin(tiny, *words: str) -> tuple[Prepared, list[str]]:
    """Read the first era and nothing more; return it with the words of a run on it."""
    words = (*STREAM, *words)
    config = tiny.config(*words)
    return prepare(config.data, config.tokenizer, Path(config.paths.cache_dir), lambda line: None), list(words)


@dataclass
class Held:
    """Holds a stream's lock, so that nothing is read, until a run waits for text; then lets it go, or ends the run."""

    hold_lock: Callable[[Path], AbstractContextManager[subprocess.Popen[bytes]]]
    stream: Path
    waits: threading.Event
    terminates: bool = False
    eras: int = 0  # that were there when the lock was let go

    def __enter__(self) -> "Held":
        self.context = self.hold_lock(self.stream)
        self.holder = self.context.__enter__()
        self.thread = threading.Thread(target=self._let_go)
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.thread.join(90)
        self.context.__exit__(None, None, None)

    def _let_go(self) -> None:
        assert self.waits.wait(60)
        time.sleep(1.0)  # long enough for the wait to show in the metrics
        self.eras = len(Ledger(self.stream).eras)
        if self.terminates:  # the lock stays held: whatever was read now would let the run go on for a step
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self.holder.kill()


@pytest.fixture
def waits(monkeypatch) -> threading.Event:
    """Return what is set as soon as a run waits for text."""
    found, check = threading.Event(), ReadAhead.check

    def checked(reader: ReadAhead) -> None:
        found.set()
        check(reader)

    monkeypatch.setattr(ReadAhead, "check", checked)
    return found


@pytest.mark.long
@pytest.mark.parametrize("prefetch", [0, 2])
def test_training_on_a_stream_equals_training_on_the_read_corpus(
    tiny, monkeypatch, capfd, hold_lock, waits, prefetch: int
):
    prepared, words = begin(tiny, "trainer.max_steps=40", f"data.prefetch={prefetch}")
    folder = tiny.folder / "ahead"
    monkeypatch.setattr(text_ahead, "LOG_S", 0.3)
    with Held(hold_lock, prepared.corpora[""].folder, waits) as held:
        ahead = run(tiny.plan(*words, f"paths.run_dir={folder}"))
    assert held.eras == 1
    assert Ledger(prepared.corpora[""].folder).end is None
    eras = len(Ledger(prepared.corpora[""].folder).eras)
    assert eras > 2
    said = capfd.readouterr().out
    assert "tokens of data so far" in said
    assert "using what it reads" in said
    assert f"waiting for text, {prepared.corpora[''].train.n_tokens:,} tokens so far, for 0:0" in said
    waited = [float(value) for value in rows_of(folder, "speed/data_wait_s").values()]
    assert waited[0] < 0.5
    assert waited[-1] > 0.9
    assert waited == sorted(waited)

    config = tiny.config(*words)
    finish_stream(prepared, config.data, lambda line: None)
    monkeypatch.setattr(ReadAhead, "start", lambda self: pytest.fail("nothing was left to read"))
    after = run(tiny.plan(*words, f"paths.run_dir={tiny.folder / 'after'}"))
    assert "tokens of data\n" in capfd.readouterr().out
    assert_same_state(Path(ahead.folder), Path(after.folder))
    assert rows_of(folder, "train/loss") == rows_of(Path(after.folder), "train/loss")
    assert ahead.validation == after.validation
    if prefetch == 0:
        scores = score_documents(EvalConfig(paths=PathsConfig(cache_dir=config.paths.cache_dir)), folder)
        assert scores["documents"] == prepared.corpora[""].validation.n_documents
        assert scores["loss"] == pytest.approx(ahead.validation["val/loss"], abs=1e-4)
        assert scores["bits_per_byte"] == pytest.approx(ahead.validation["val/bits_per_byte"], abs=1e-4)


@pytest.mark.long
def test_a_signal_while_waiting_for_text_saves_and_resumes_exactly(tiny, hold_lock, waits):
    prepared, words = begin(tiny, "trainer.max_steps=24", "checkpoint.every_n_steps=100")
    folder = tiny.folder / "cut"
    with (
        Held(hold_lock, prepared.corpora[""].folder, waits, terminates=True) as held,
        pytest.raises(Interrupted, match=r"SIGTERM at step [0-9]+: saved; go on with resume=auto"),
    ):
        run(tiny.plan(*words, f"paths.run_dir={folder}"))
    assert held.eras == 1
    cut = run(tiny.plan(*words, f"paths.run_dir={folder}", "resume=auto"))
    whole = run(tiny.plan(*words, f"paths.run_dir={tiny.folder / 'whole'}"))
    assert_same_state(Path(cut.folder), Path(whole.folder))


@pytest.mark.slow
def test_a_signal_before_the_first_rows_ends_the_run_unsaved(tiny, hold_lock, waits):
    prepared, words = begin(tiny, "batch_size=400", "trainer.max_steps=2")
    with (
        Held(hold_lock, prepared.corpora[""].folder, waits, terminates=True),
        pytest.raises(Interrupted, match="SIGTERM at step 0: nothing was trained yet"),
    ):
        train(tiny.plan(*words))
