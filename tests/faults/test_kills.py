"""A killed run, resumed until it is done, equals an uninterrupted one."""

import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoint.read import newest, open_checkpoint, step_folders
from pretrain.launch.run_folder import read_rows

KILLS = 20
PHASES = ["before_data", "amid_data", "before_manifest", "before_rename", "after_rename", "amid_prune"]
pytestmark = [pytest.mark.slow]


class Warm:
    """Runs of a process that need not import anything any more."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("warm_process.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def run(self, words: list[str], kill_after_s: float | None = None, fault: str | None = None) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"words": words, "kill_after_s": kill_after_s, "fault": fault}
        self.process.stdin.write(json.dumps(request) + "\n")
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    process = Warm()
    yield process
    process.close()


class Endured:
    """One run folder, through whatever happens to it."""

    def __init__(self, warm: Warm, folder: Path, corpus: Path, *more: str) -> None:
        self.warm = warm
        self.folder = folder
        self.words = [
            "model=bert_nano", "data=text_files", f"data.path={corpus}", "tokenizer=bytes", "model.n_layers=2",
            "model.d_model=16", "model.n_heads=2", "model.context_length=32", "model.dropout=0.1", "batch_size=4",
            "trainer.max_steps=60", "trainer.val_check_interval=25", "trainer.log_every_n_steps=1",
            "trainer.enable_progress_bar=false", "trainer.precision=fp32", "checkpoint.every_n_steps=10",
            "sample.every_n_steps=0", "logger=csv", "logging.ledger=true", f"paths.cache_dir={folder / 'cache'}",
            f"paths.run_dir={folder / 'run'}", "resume=auto", *more,
        ]  # fmt: skip

    def run(self, kill_after_s: float | None = None, fault: str | None = None) -> dict[str, Any]:
        return self.warm.run(self.words, kill_after_s, fault)

    @property
    def checkpoints(self) -> Path:
        return self.folder / "run" / "checkpoints"

    def state(self) -> dict[str, Any]:
        """Return the final weights, optimizer, generators, losses and the ledger, to the bit."""
        found = open_checkpoint(self.folder / "run")
        assert found.step == 60
        parts = {name: (found.folder / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer", "random")}
        rows = read_rows(self.folder / "run" / "metrics.csv")
        parts["ledger"] = (self.folder / "run" / "ledger.jsonl").read_bytes()
        return parts | {"losses": {int(row["step"]): row["value"] for row in rows if row["name"] == "train/loss"}}


@pytest.fixture(scope="module")
def undisturbed(warm: Warm, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return how the run ends when it is left alone."""
    run = Endured(warm, tmp_path_factory.mktemp("undisturbed"), corpus)
    found = run.run()
    assert found["code"] == 0, found["output"]
    return run.state()


def endure(run: Endured, draw: random.Random, kills: int) -> int:
    """Kill a run up to so many times at random moments, let it end, and return how often it was hit."""
    hits = 0
    while True:
        found = run.run(kill_after_s=draw.uniform(0.05, 1.5) if hits < kills else None)
        if found["signal"]:
            hits += 1
            valid, _ = newest(run.folder / "run")
            assert valid is not None or not step_folders(run.checkpoints)
            continue
        assert found["code"] == 0, found["output"]
        return hits


@pytest.mark.fault("F01")
@pytest.mark.parametrize("mode", [pytest.param("sync", marks=pytest.mark.long), "async"])
def test_killed_twenty_times_it_ends_as_if_nothing_had_happened(
    warm: Warm, undisturbed: dict[str, Any], corpus: Path, tmp_path: Path, mode: str
) -> None:
    draw, hits, number = random.Random(mode), 0, 0
    while hits < KILLS // 2:
        run = Endured(warm, tmp_path / str(number), corpus, f"checkpoint.asynchronous={mode == 'async'}")
        hits += endure(run, draw, KILLS // 2 - hits)
        assert run.state() == undisturbed
        assert not list(run.checkpoints.glob("*.tmp"))
        number += 1


@pytest.mark.long
@pytest.mark.fault("F02")
@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("phase", PHASES)
def test_killed_inside_a_save_it_ends_as_if_nothing_had_happened(
    warm: Warm, undisturbed: dict[str, Any], corpus: Path, tmp_path: Path, phase: str, mode: str
) -> None:
    run = Endured(warm, tmp_path, corpus, f"checkpoint.asynchronous={mode == 'async'}")
    assert run.run(fault=phase)["signal"] == 9
    valid, _ = newest(tmp_path / "run")
    assert valid is not None
    assert valid.step == {"after_rename": 20, "amid_prune": 30}.get(phase, 10)
    found = run.run()
    assert found["code"] == 0, found["output"]
    assert f"at step {valid.step}" in found["output"]
    assert run.state() == undisturbed
    assert not list(run.checkpoints.glob("*.tmp"))


@pytest.mark.fault("F04")
@pytest.mark.parametrize("fault", ["full_disk", "no_room"])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_disk_that_fills_up_ends_the_run_and_loses_nothing_saved(
    warm: Warm, undisturbed: dict[str, Any], corpus: Path, tmp_path: Path, fault: str, mode: str
) -> None:
    run = Endured(warm, tmp_path, corpus, f"checkpoint.asynchronous={mode == 'async'}")
    found = run.run(fault=fault)
    assert found["code"] == 4, found["output"]
    assert "No space left on device. It needs" in found["output"]
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000010"]
    found = run.run()
    assert found["code"] == 0, found["output"]
    assert run.state() == undisturbed


@pytest.mark.long
@pytest.mark.fault("F05")
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_file_system_that_turns_read_only_ends_the_run(
    warm: Warm, undisturbed: dict[str, Any], corpus: Path, tmp_path: Path, mode: str
) -> None:
    run = Endured(warm, tmp_path, corpus, f"checkpoint.asynchronous={mode == 'async'}")
    found = run.run(fault="read_only")
    assert found["code"] == 4, found["output"]
    assert "Read-only file system" in found["output"]
    assert "Report" not in found["output"]
    assert run.run()["code"] == 0
    assert run.state() == undisturbed


@pytest.mark.fault("F18")
def test_a_wall_clock_that_jumps_changes_nothing(
    warm: Warm, undisturbed: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    run = Endured(warm, tmp_path, corpus)
    found = run.run(fault="clock_jumps")
    assert found["code"] == 0, found["output"]
    assert run.state() == undisturbed
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert 0 < report["training_s"] < report["wall_s"] < 60


@pytest.mark.long
@pytest.mark.fault("F13")
def test_an_error_in_the_prefetch_thread_ends_the_run(
    warm: Warm, undisturbed: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    run = Endured(warm, tmp_path, corpus, "data.prefetch=2")
    found = run.run(fault="shard_damaged")
    assert found["code"] == 3, found["output"]
    damage = r"DataError: shards/00000\.tok holds token 999 at offset 5$"
    assert re.search(damage, found["output"].strip(), re.MULTILINE)
    assert "Traceback" not in found["output"]
    assert run.run()["code"] == 0
    assert run.state() == undisturbed
