"""Shared fixtures: a small corpus, settings of a run that takes a second, real assets if present."""

import os
import random
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import fault_matrix
import pytest
import torch
from faulty_storage import FaultyStorage
from job import Job
from tiny_run import TinyRun

from pretrain.config import cli
from pretrain.config.compose import register_schemas
from pretrain.config.run import RunConfig

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    fault_matrix.note(item)
    random.seed(0)  # what a test draws does not depend on the tests before it, nor on the worker
    torch.manual_seed(0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "long" in config.option.markexpr or config.option.markexpr == "fault":  # the whole fault matrix
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.option.markexpr != "fault":
        return
    passed, failed = (terminalreporter.stats.get(kind, []) for kind in ("passed", "failed"))
    terminalreporter.section("fault matrix")
    for line in fault_matrix.table([report for report in passed if report.when == "call"], failed):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def assets() -> Path:
    """Return the folder of real corpora, tokenizers and models; skips the test where there is none."""
    folder = os.environ.get("PRETRAIN_ASSETS")
    if not folder:
        pytest.skip("PRETRAIN_ASSETS does not name the folder of test data")
    return Path(folder)


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print(flush=True)
sys.stdin.read()
"""


@contextmanager
def held_lock(stream: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Keep everybody from reading a corpus on, in a process whose lock no run can inherit; killing it lets go."""
    words = [sys.executable, "-c", HOLD, str(stream / "lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        yield holder
        holder.kill()


@pytest.fixture
def hold_lock() -> Callable[[Path], AbstractContextManager[subprocess.Popen[bytes]]]:
    """Return what holds a stream's lock inside a `with`."""
    return held_lock


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of sixty short text files of unequal length."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = [
        "the",
        "quick",
        "brown",
        "fox",
        "jumps",
        "over",
        "a",
        "lazy",
        "dog",
        "while",
        "seven",
        "small",
        "birds",
        "sing",
        "in",
        "old",
        "trees",
    ]
    for number in range(60):
        text = " ".join(draw.choice(words) for _ in range(draw.randint(3, 80)))
        (folder / f"{number:02d}.txt").write_text(f"{text}.\n")
    return folder


@pytest.fixture(autouse=True)
def settings_of_a_training() -> None:
    """Make the settings of train.py known to Hydra, whatever scripts the tests before were about."""
    register_schemas("train", RunConfig)


@pytest.fixture(autouse=True)
def own_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the signals of the tests' process alone: what `main` does with them is tested in processes of its own."""
    monkeypatch.setattr(cli, "listen", lambda: None)
    monkeypatch.setattr(cli, "stop_listening", lambda: None)


@pytest.fixture
def forked_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the processes that torch starts for several ranks fork from this one instead of importing all anew."""
    from forked_ranks import start_ranks_by_fork  # here: it loads torch

    start_ranks_by_fork(monkeypatch)


@pytest.fixture
def tiny(corpus: Path, tmp_path: Path) -> TinyRun:
    """Return a maker of tiny runs."""
    return TinyRun(corpus, tmp_path)


@pytest.fixture
def job(tmp_path: Path, corpus: Path) -> Job:
    """Return a maker of runs on several processes."""
    return Job(tmp_path, corpus)


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> FaultyStorage:
    """Return an empty object storage in memory."""
    return FaultyStorage(monkeypatch)


@pytest.fixture
def alive_before(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets, as each training module is built, the number of those that are still in memory."""
    from pretrain.training.lightning_module import TrainingModule

    counts: list[int] = []
    alive = weakref.WeakSet[TrainingModule]()
    build = TrainingModule.__init__

    def counted(module: TrainingModule, *arguments: Any, **named: Any) -> None:
        counts.append(len(alive))
        build(module, *arguments, **named)
        alive.add(module)

    monkeypatch.setattr(TrainingModule, "__init__", counted)
    return counts
