"""A curation killed at any point of any stage, and given again, makes the corpus that it would have made."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from curation_documents import lines, settings

from pretrain.config.curate import CurateConfig
from pretrain.data.curation import curate as curation
from pretrain.data.curation.engine import Stage, Workers
from pretrain.data.curation.verify import verify

KILLS = 20
FINISH = "finish"  # no stage: the files get their names in the output folder, the manifest last
STAGES = (
    "files", "read", "measure", "signatures", "decide", "exact", "bands", "buckets", "components", "members", "routed",
    "near", "paragraphs", "repeats", "write", FINISH,
)  # fmt: skip
_CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.link", "os.rmdir", "shutil.rmtree"}


class Kill(NamedTuple):
    """When a process is killed: at a change of its files or after some time, counted from the start of a stage."""

    stage: str
    change: int = 0  # 0: by time
    seconds: float = 0.0


class _Watch:
    """Counts changes of files and time by stage, and kills the process it is in."""

    def __init__(self, kill: Kill | None) -> None:
        self.kill, self.stage, self.started = kill, "", 0.0
        self.changes: dict[str, int] = {}
        self.seconds: dict[str, float] = {}
        sys.addaudithook(self._audit)

    def begin(self, stage: str) -> None:
        """Note that a stage begins."""
        if self.stage:
            self.seconds[self.stage] = time.monotonic() - self.started
        self.stage, self.started = stage, time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self.kill is not None and self.kill.stage == stage and not self.kill.change:
            signal.setitimer(signal.ITIMER_REAL, self.kill.seconds)  # the system ends the process: nothing handles it

    def _audit(self, event: str, arguments: Any) -> None:
        if event not in _CHANGES or not self.stage:
            return
        self.changes[self.stage] = self.changes.get(self.stage, 0) + 1
        if self.kill is not None and (self.kill.stage, self.kill.change) == (self.stage, self.changes[self.stage]):
            os.kill(os.getpid(), signal.SIGKILL)


def curate_in_child(config: CurateConfig, kill: Kill | None, found: Path) -> None:
    """Curate, and write how long each stage took and how many changes of files it made."""
    watch, run_stage, finish = _Watch(kill), Workers.run_stage, curation._Curation._finish

    def watched_stage(self: Workers, work: Path, stage: Stage, report: Any) -> Path:
        watch.begin(stage.name)
        return run_stage(self, work, stage, report)

    def watched_finish(self: Any, *contents: Any) -> Any:
        watch.begin(FINISH)
        return finish(self, *contents)

    Workers.run_stage, curation._Curation._finish = watched_stage, watched_finish  # type: ignore[method-assign]
    curation.curate(config, report=lambda line: None)
    watch.begin("")
    found.write_text(json.dumps({"changes": watch.changes, "seconds": watch.seconds}))


class _Curations:
    """Curations of the same input, each in a process forked from one that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.whole, self.found = folder, folder / "whole", folder / "found.json"
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["pytest", "pretrain.config.curate", curation.__name__, __name__])
        (folder / "a.jsonl").write_bytes(lines(150))
        self.config = settings(folder / "a.jsonl", self.whole, "unit_bytes=20000")
        assert self.run(self.whole) == 0
        self.usual = json.loads(self.found.read_text())

    def run(self, output: Path, kill: Kill | None = None) -> int:
        """Return the exit code of a curation, negative if it was killed."""
        config = replace(self.config, output=str(output))
        process = self._context.Process(target=curate_in_child, args=(config, kill, self.found))
        process.start()
        process.join(120)
        assert process.exitcode is not None
        return process.exitcode

    def kill(self, stage: str, number: int, draw: random.Random) -> Kill:
        """Return when to kill: every second time by a change of files, else by time."""
        if number % 2:
            return Kill(stage, change=draw.randint(1, self.usual["changes"][stage]))
        return Kill(stage, seconds=draw.uniform(1e-4, self.usual["seconds"][stage]))


@pytest.fixture(scope="module")
def curations(tmp_path_factory: pytest.TempPathFactory) -> _Curations:
    return _Curations(tmp_path_factory.mktemp("killed"))


def files(output: Path) -> dict[str, bytes]:
    """Return all files of a corpus by name, but the times."""
    found = (path for path in output.rglob("*") if path.is_file() and path.relative_to(output).parts[0] != "work")
    return {str(path.relative_to(output)): path.read_bytes() for path in found if path.name != "timings.json"}


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_killed_twenty_times_in_a_stage(stage: str, curations: _Curations, tmp_path: Path) -> None:
    draw, output, kills, runs = random.Random(stage), tmp_path / "out", 0, 0
    while kills < KILLS:
        runs += 1
        assert runs <= 3 * KILLS
        code = curations.run(output, curations.kill(stage, kills, draw))
        assert code in (0, -signal.SIGKILL, -signal.SIGALRM)
        if code:
            kills += 1
        else:  # it was over before its time came
            assert files(output) == files(curations.whole)
        for path in (output / "work").glob(f"{stage}-*"):  # the stage begins anew, perhaps in its middle
            for done in sorted(path.glob("*.done"))[draw.randrange(2) :]:
                done.unlink()
    assert curations.run(output) == 0
    assert files(output) == files(curations.whole)
    assert not list(output.rglob("*.tmp"))
    assert verify(output).compared > 45
    shutil.rmtree(output)
