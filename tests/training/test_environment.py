"""What a run folder says about its start, and what must never be in it; figures of the machine change no result."""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from same_state import assert_same_state
from tiny_run import TinyRun

from pretrain.launch.run_folder import read_rows
from pretrain.launch.train_log import copied_output
from pretrain.reports.history import History, read_history, write_history
from pretrain.training.callbacks.system_metrics import SystemMetrics, cpu_source, gpu_sources
from pretrain.training.environment import command_line, git_state
from pretrain.training.train import train

SECRETS = {"HF_TOKEN": "hf_plantedTokenOfHub", "WANDB_API_KEY": "plantedKeyOfWandb", "MY_OWN": "plantedValueOfMine"}


def git(folder: Path, *words: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=trunk"]
    done = subprocess.run(["git", *author, *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def repository(folder: Path) -> str:
    """Make a repository with one commit of two files; return the commit."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("a.py", "b.py"):
        (folder / name).write_text("1\n")
    git(folder, "init")
    git(folder, "add", "a.py", "b.py")
    git(folder, "commit", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


def test_the_state_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert git_state(tmp_path) is None
    commit = repository(tmp_path / "mine")
    (tmp_path / "mine" / "untracked").touch()
    assert git_state(tmp_path / "mine") == f"{commit} (trunk), no file changed"
    (tmp_path / "mine" / "a.py").write_text("2\n")
    assert git_state(tmp_path / "mine") == f"{commit} (trunk), 1 file changed"
    (tmp_path / "mine" / "b.py").unlink()
    marker = tmp_path / "it ran"
    git(tmp_path / "mine", "config", "core.fsmonitor", f"touch '{marker}'; false")
    assert git_state(tmp_path / "mine") == f"{commit} (trunk), 2 files changed"
    assert not marker.exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path / "mine") is None


def test_secrets_of_a_command_line_are_masked(monkeypatch: pytest.MonkeyPatch):
    words = ["loggers.wandb.api_key=one", "a={password: two, b: 3}", "x=http://me:three@host/p", "max_new_tokens=4"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words, "notes=my token: five"])
    assert command_line() == (
        "train.py 'loggers.wandb.api_key=***' 'a={password: ***, b: 3}' 'x=http://***@host/p' max_new_tokens=4 "
        "'notes=my token: ***'"
    )


@pytest.mark.slow
def test_a_run_records_its_start_and_no_secret(tiny: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    commit = repository(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setattr(sys, "argv", ["train.py", "loggers.wandb.api_key=plantedInWords", "seed=1"])
    words = [
        "notes=Does it, at once: work?", "tags=[nano,first try]", "logging.report=true", "logging.system_every_s=0.01",
    ]  # fmt: skip
    plan = tiny.plan(*words)
    with copied_output() as train_log:
        train_log.open(plan.folder, rank=0)
        train(plan)
    history = read_history(plan.folder)
    assert history is not None
    (start,) = history.starts
    assert start.end is not None
    assert time.time() - 600 < start.time < start.end.time < time.time()
    found = start.environment
    assert found["command"] == "train.py 'loggers.wandb.api_key=***' seed=1"
    assert found["commit"] == f"{commit} (trunk), no file changed"
    assert len(found["commit of pretrain"].split(" ")[0]) == 40
    assert (found["notes"], found["tags"]) == ("Does it, at once: work?", "nano, first try")
    assert {"machine", "device", "Python", "torch", "Lightning", "pretrain"} <= found.keys()
    page, log = (plan.folder / "report.html").read_text(), (plan.folder / "train.log").read_text()
    for text in (commit, "Does it, at once: work?"):
        assert text in page
        assert text in log
    files = [path for path in plan.folder.rglob("*") if path.is_file()]
    events = b"".join(path.read_bytes() for path in files if path.name.startswith("events"))
    assert commit.encode() in events
    assert b"utilization/cpu_percent" in events
    for path in files:
        for secret in (*SECRETS.values(), "plantedInWords"):
            assert secret.encode() not in path.read_bytes(), path

    rows = [(row["name"], float(row["value"])) for row in read_rows(plan.folder / "metrics.csv")]
    measured = dict(row for row in rows if row[0].startswith("system/"))
    assert measured.keys() == {
        f"system/{name}" for name in ("cpu_percent", "process_cpu_percent", "memory_gib", "process_memory_gib")
    }
    assert 0 < measured["system/process_memory_gib"] < measured["system/memory_gib"] < 10_000
    assert "CPU of the machine, percent" in page
    without = tiny.plan("logging.system_every_s=0", f"paths.run_dir={tmp_path / 'without'}")
    train(without)
    assert_same_state(plan.folder, without.folder)
    assert not [row for row in read_rows(without.folder / "metrics.csv") if row["name"].startswith("system/")]


@pytest.mark.slow
def test_a_record_whose_end_cannot_be_written_is_a_warning(
    tiny: TinyRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def full_at_the_end(folder: Path, found: History) -> None:
        if found.starts[-1].end is not None:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_history(folder, found)

    monkeypatch.setattr("pretrain.training.history.write_history", full_at_the_end)
    plan = tiny.plan("trainer.max_steps=1")
    train(plan)
    assert "warning: history.json was not written: [Errno 28] No space left on device\n" in capsys.readouterr().out
    assert json.loads((plan.folder / "report.json").read_text())["steps"] == 1


def test_a_source_that_fails_is_left_out_and_nothing_waits():
    calls: list[str] = []
    metrics = SystemMetrics(every_n_seconds=0.01, devices=1)

    def fails() -> dict[str, float]:
        calls.append("fails")
        raise RuntimeError("driver gone")

    def works() -> dict[str, float]:
        calls.append("works")
        if calls.count("works") == 3:
            metrics._ended.set()
        return {"figure": float(len(calls))}

    sources: list[Callable[[], dict[str, float]]] = [fails, works]
    metrics._sample(sources, metrics._ended)
    assert calls == ["fails", "works", "works", "works"]
    assert metrics._samples == {"figure": [2.0, 3.0, 4.0]}
    assert metrics._is_due


def test_the_cpu_is_measured_and_a_gpu_only_where_there_is_one():
    measure = cpu_source()
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    found = measure()
    assert 0 < found["process_cpu_percent"] <= 110 * (os.cpu_count() or 1)
    assert gpu_sources(0) == []
    if not __import__("torch").cuda.is_available():
        assert gpu_sources(1) == []
