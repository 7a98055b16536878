"""Streams under faults: processes killed at any moment, several at once, a damaged corpus."""

import gzip
import json
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import forked_process
import psutil
import pytest

from pretrain.checkpoint.read import open_checkpoint
from pretrain.data.streaming.ledger import Ledger
from pretrain.launch.run_folder import read_rows

ROOT = Path(__file__).parents[2]
STREAM = [
    "data=text_files",
    "data.mode=stream",
    "data.era_tokens=4096",
    "data.validation_fraction=0.2",
    "tokenizer=bytes",
]
TINY = [
    "model=gpt_nano",
    "model.n_layers=2",
    "model.d_model=32",
    "model.context_length=64",
    "model.dropout=0.1",
    "batch_size=8",
    "trainer.precision=fp32",
    "trainer.max_steps=120",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=50",
    "checkpoint.every_n_steps=6",
    "sample.max_new_tokens=5",
]
HINTS = ("bookmark.json", "lock")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of a thousand documents, some of them twice: about 60 eras."""
    draw = random.Random(0)
    texts = [" ".join(f"w{draw.randint(0, 99)}" for _ in range(draw.randint(5, 120))) for _ in range(1000)]
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts + texts[::10]))
    return path


def command(script: str, *words: str) -> list[str]:
    return [sys.executable, str(ROOT / "src" / f"{script}.py"), *words]


def call(script: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return forked_process.run(
        command(script, *words), cwd=cwd, capture_output=True, text=True, timeout=280, check=False
    )


def stream_in(folder: Path) -> Path:
    (found,) = (folder / ".cache" / "stores").glob("*-stream-*")
    return found


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in HINTS)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "plans" not in path.parts}


def wait_until(condition, seconds: float = 60.0, every: float = 0.01) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(every)


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the stream was made by one process and a run trained on it without a pause."""
    folder = tmp_path_factory.mktemp("whole")
    words = [*STREAM, f"data.path={text}"]
    prepared = call("prepare", *words, cwd=folder)
    assert prepared.returncode == 0, prepared.stderr
    assert "the corpus has been read to its end: " in prepared.stdout
    assert prepared.stdout.count("every file verified") == 2
    before = {path: path.stat().st_mtime_ns for path in stream_in(folder).rglob("*.jsonl")}
    trained = call("train", *words, *TINY, "paths.run_dir=run", cwd=folder)
    assert trained.returncode == 0, trained.stderr
    assert "so far" not in trained.stdout
    assert {path: path.stat().st_mtime_ns for path in stream_in(folder).rglob("*.jsonl")} == before
    return folder


def make_and_kill(text: Path, folder: Path, cwd: Path, draw: random.Random) -> int:
    """Make the stream in `folder` by processes killed soon after the first era each adds; return how many were."""
    kills = 0
    while Ledger(folder).end is None:
        eras = len(Ledger(folder).eras)
        with forked_process.popen(
            command("prepare", *STREAM, f"data.path={text}"), cwd=cwd, stdout=subprocess.DEVNULL
        ) as process:
            wait_until(
                lambda process=process, eras=eras: process.poll() is not None or len(Ledger(folder).eras) > eras,
                every=1e-3,
            )
            time.sleep(draw.random() / 20)
            kills += process.poll() is None
            process.kill()
    return kills


@pytest.mark.long
def test_a_stream_of_killed_processes_is_the_same_to_the_byte(text: Path, whole: Path, tmp_path: Path):
    expected = stream_in(whole)
    assert len(Ledger(expected).eras) > 40
    draw, kills, attempts = random.Random(1), 0, 0
    while kills <= 5:  # a quick machine may end a stream before it is killed: then it makes another
        cwd = tmp_path / str(attempts)
        cwd.mkdir()
        folder = cwd / ".cache" / "stores" / expected.name
        kills += make_and_kill(text, folder, cwd, draw)
        assert contents(folder) == contents(expected)
        attempts += 1
        assert attempts < 12


def test_two_processes_at_once_make_one_stream(text: Path, whole: Path, tmp_path: Path):
    words = command("prepare", *STREAM, f"data.path={text}")
    processes = [forked_process.popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all("every file verified" in text for text in said)
    assert contents(stream_in(tmp_path)) == contents(stream_in(whole))


def run_until(step: int, words: list[str], cwd: Path) -> str:
    """Run a command until it has logged a step, kill it, and return what it said once all its processes are gone."""
    said = []
    with forked_process.popen(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.startswith(f"step {step}/"):
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert process.returncode == -signal.SIGKILL, "".join(said)
    wait_until(lambda: not any(child.is_running() for child in children))
    return "".join(said)


@pytest.mark.long
def test_a_run_killed_twice_while_reading_equals_the_uninterrupted_one(
    text: Path, whole: Path, tmp_path: Path, hold_lock
):
    """The corpus is read on only after the first kill."""
    words = command("train", *STREAM, f"data.path={text}", *TINY, "paths.run_dir=run", "resume=auto")
    stream = tmp_path / ".cache" / "stores" / stream_in(whole).name
    with ThreadPoolExecutor() as pool:
        first = pool.submit(run_until, 7, words, tmp_path)
        wait_until(lambda: Ledger(stream).eras)
        with hold_lock(stream):
            assert "so far" in first.result()
            assert len(Ledger(stream).eras) == 1
    said = run_until(50, words, tmp_path)
    assert "resuming run at step 6" in said
    last = call("train", *words[2:], cwd=tmp_path)
    assert last.returncode == 0, last.stderr
    assert "resuming run at step 48" in last.stdout
    found, expected = Ledger(stream), Ledger(stream_in(whole))
    assert 10 < len(found.eras) < len(expected.eras)  # as much as the run needs
    assert found.eras == expected.eras[: len(found.eras)]
    one, other = open_checkpoint(tmp_path / "run"), open_checkpoint(whole / "run")
    assert one.step == other.step == 120
    for part in ("model", "optimizer", "random"):
        assert (one.folder / f"{part}.safetensors").read_bytes() == (other.folder / f"{part}.safetensors").read_bytes()


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.long), "fsdp"])
def test_two_processes_see_the_rows_of_one(text: Path, whole: Path, tmp_path: Path, strategy: str):
    words = [*STREAM, f"data.path={text}", *TINY, "model.dropout=0", "trainer.max_steps=30", "paths.run_dir=run"]
    two = call("train", *words, f"trainer={strategy}", "trainer.accelerator=cpu", "trainer.devices=2", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    one = call("train", *words, "paths.run_dir=one", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    losses = [
        {row["step"]: float(row["value"]) for row in read_rows(tmp_path / run / "metrics.csv") if row["name"] == name}
        for run in ("run", "one")
        for name in ("train/loss",)
    ]
    assert len(losses[0]) == 30
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.long
def test_a_signal_to_two_processes_that_wait_for_text_saves_on_both(text: Path, tmp_path: Path, hold_lock):
    words = [*STREAM, f"data.path={text}", *TINY, "trainer.max_steps=30", "checkpoint.every_n_steps=100"]
    two = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
    with forked_process.popen(
        command("train", *words, *two, "paths.run_dir=cut"),
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        stores = tmp_path / ".cache" / "stores"
        wait_until(lambda: any(Ledger(path).eras for path in stores.glob("*-stream-*")))
        with hold_lock(stream_in(tmp_path)):
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("step 8/"):
                    break
            time.sleep(2)
            process.send_signal(signal.SIGTERM)
            sent_s = time.monotonic()
            _, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent_s < 30
    assert process.returncode == 143, errors
    assert "SIGTERM at step 8: saved; go on with resume=auto" in errors
    for folder, more in (("cut", "resume=auto"), ("uncut", "seed=0")):
        found = call("train", *words, *two, f"paths.run_dir={folder}", more, cwd=tmp_path)
        assert found.returncode == 0, found.stderr
    one, other = open_checkpoint(tmp_path / "cut"), open_checkpoint(tmp_path / "uncut")
    for part in ("model", "optimizer", "random"):
        assert (one.folder / f"{part}.safetensors").read_bytes() == (other.folder / f"{part}.safetensors").read_bytes()


@pytest.mark.long
def test_a_corpus_that_is_broken_further_on_ends_the_run_with_its_message(text: Path, tmp_path: Path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    lines = text.read_text().splitlines()
    (corpus / "0.jsonl").write_text("\n".join(lines[:300]))
    packed = gzip.compress("\n".join(lines[300:]).encode())
    (corpus / "1.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    found = call("train", *STREAM, f"data.path={corpus}", *TINY, "trainer.max_steps=2000", cwd=tmp_path)
    assert found.returncode == 3, found.stderr
    assert "1.jsonl.gz' cannot be read to its end, so it is truncated" in found.stderr
    assert "Traceback" not in found.stderr
    assert "step 20/" in found.stdout
    assert found.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("*.tmp*"))


@pytest.mark.long
def test_a_run_whose_reader_is_killed_ends_at_once_and_goes_on_when_asked(text: Path, tmp_path: Path, hold_lock):
    words = command("train", *STREAM, f"data.path={text}", *TINY, "trainer.max_steps=30", "paths.run_dir=run")
    with forked_process.popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        stores = tmp_path / ".cache" / "stores"
        wait_until(lambda: any(Ledger(path).eras for path in stores.glob("*-stream-*")))
        with hold_lock(stream_in(tmp_path)):
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("step 6/"):
                    break
            children = psutil.Process(process.pid).children()
            (reader,) = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
            reader.kill()
            killed_s = time.monotonic()
            _, errors = process.communicate(timeout=60)
    assert time.monotonic() - killed_s < 30
    assert process.returncode == 6
    assert "the process that reads the corpus was lost (SIGKILL)" in errors
    assert errors.count("\n") == 1
    again = call("train", *words[2:], "resume=auto", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resuming run at step 6" in again.stdout


@pytest.mark.long
def test_a_script_of_ones_own_needs_no_guard_against_being_imported_anew(text: Path, tmp_path: Path):
    script = tmp_path / "mine.py"
    script.write_text(
        "from pretrain.config.cli import main\n"
        "from pretrain.config.run import RunConfig\n"
        "from pretrain.training.launch import launch\n"
        "main('train', RunConfig, launch)\n"
    )
    words = [*STREAM, f"data.path={text}", *TINY, "trainer.max_steps=20"]
    found = forked_process.run(
        [sys.executable, str(script), *words], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert found.returncode == 0, found.stderr
    assert len(Ledger(stream_in(tmp_path)).eras) > 1
    assert len(list((tmp_path / "logs" / "gpt_nano").iterdir())) == 1


@pytest.mark.long
def test_a_streamed_run_is_scored_on_its_validation_documents(whole: Path):
    scored = call("eval", "checkpoint=run", "output=scores.json", cwd=whole)
    assert scored.returncode == 0, scored.stderr
    figures = json.loads((whole / "scores.json").read_text())
    report = json.loads((whole / "run" / "report.json").read_text())
    assert figures["loss"] == pytest.approx(report["validation"]["val/loss"], abs=1e-4)
