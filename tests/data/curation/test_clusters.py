"""Curation on clusters: the same bytes as on one machine, errors as there, and jobs that end with the command."""

import importlib.util
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from curation_documents import lines, settings

from pretrain.config.curate import CurateConfig
from pretrain.data.curation.clusters import array_task, slurm
from pretrain.data.curation.clusters.config import EngineConfig
from pretrain.data.curation.curate import curate
from pretrain.data.curation.engine import Stage
from pretrain.errors import ConfigError, DataError, RankLostError

SLURM = """#!{python}
# Stands in for sbatch, squeue and scancel: runs the tasks of an array as processes of this machine.
import os, pathlib, signal, subprocess, sys
folder, name, words = pathlib.Path(__file__).parent, pathlib.Path(sys.argv[0]).name, sys.argv[1:]
with (folder / "log").open("a") as log:
    log.write(" ".join([name, *words]) + "\\n")

def processes(job):
    for pid in (folder / job).read_text().split():
        state = pathlib.Path("/proc", pid, "stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z":
            yield int(pid)

if name == "sbatch":
    if "--partition=none" in words:
        sys.exit("sbatch: error: invalid partition specified: none")
    job = str(100 + len([path for path in folder.iterdir() if path.name.isdigit()]))
    option = dict(word[2:].split("=", 1) for word in words if "=" in word)
    pids = []
    for number in range(int(option["array"].partition("-")[2]) + 1):
        output = option["output"].replace("%A", job).replace("%a", str(number))
        own = {{"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(number)}}
        with open(output, "w") as log:
            pids.append(subprocess.Popen(["sh", words[-1]], stdout=log, stderr=log, env=os.environ | own,
                                         start_new_session=True).pid)
    (folder / job).write_text(" ".join(map(str, pids)))
    print(job)
elif name == "squeue":
    job = words[-1].partition("=")[2]
    print("\\n".join(f"{{job}} R" for _ in processes(job)))
else:
    for pid in processes(words[0]):
        os.killpg(pid, signal.SIGKILL)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a stand-in for Slurm first on PATH; return its folder."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "sbatch").write_text(SLURM.format(python=sys.executable))
    (folder / "sbatch").chmod(stat.S_IRWXU)
    for name in ("squeue", "scancel"):
        (folder / name).write_bytes((folder / "sbatch").read_bytes())
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    for name, seconds in (("POLL_S", 0.05), ("QUEUE_S", 0.3), ("GRACE_S", 1.0)):
        monkeypatch.setattr(slurm, name, seconds)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "web.jsonl"
    path.write_bytes(lines(60))
    return path


def config_of(text: Path, output: Path, *more: str) -> CurateConfig:
    return settings(text, output, "unit_bytes=20000", *more)


def run(config: CurateConfig) -> dict[str, Any]:
    return curate(config, report=lambda line: None)


def tree(output: Path) -> dict[str, bytes]:
    """Return the bytes of every file of a corpus but timings and work."""
    paths = [path for path in output.rglob("*") if path.is_file() and path.relative_to(output).parts[0] != "work"]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths if path.name != "timings.json"}


@pytest.fixture(scope="module")
def local(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    output = tmp_path_factory.mktemp("local") / "corpus"
    run(config_of(text, output))
    return tree(output)


@pytest.mark.long
def test_slurm_arrays_make_the_same_corpus(text: Path, local: dict[str, bytes], stand_in: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    run(config_of(text, output, "engine=slurm", "engine.tasks=2", "engine.options=[--mem=1G]"))
    assert tree(output) == local
    log = (stand_in / "log").read_text().splitlines()
    submitted = [line for line in log if line.startswith("sbatch")]
    stages = {line.partition("--job-name=curate-")[2].partition(" ")[0] for line in submitted}
    assert {"files", "read", "measure", "decide", "exact", "bands", "near", "repeats", "write"} <= stages
    assert len(submitted) == len(stages)
    assert all("--array=0-1 " in line for line in submitted if "curate-read" in line or "curate-write" in line)
    assert all("--mem=1G" in line for line in submitted)
    assert not any(line.startswith("scancel") for line in log)
    run(config_of(text, output, "engine=slurm"))  # all is done: nothing is submitted
    assert (stand_in / "log").read_text().splitlines() == log


@pytest.mark.slow
def test_the_error_of_a_task_of_an_array_is_that_of_the_command(stand_in: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"PAR1 no parquet PAR1")
    config = settings(path, tmp_path / "corpus", "engine=slurm", kind="parquet")
    with pytest.raises(DataError, match=r"broken\.parquet"):
        run(config)
    assert "scancel" in (stand_in / "log").read_text()  # the rest of its array would work for nothing


@pytest.mark.slow
def test_an_array_that_is_killed_is_reported_and_goes_on(
    text: Path, local: dict[str, bytes], stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "corpus"
    script = slurm._script
    monkeypatch.setattr(
        slurm, "_script", lambda *stage: "#!/bin/sh\nkill -9 $$\n" if "read" in stage else script(*stage)
    )
    with pytest.raises(RankLostError, match=r"the Slurm job 101 of the stage read ended and left .* sacct -j 101"):
        run(config_of(text, output, "engine=slurm", "engine.tasks=2"))
    monkeypatch.setattr(slurm, "_script", script)
    run(config_of(text, output))  # on this machine, from what the array did
    assert tree(output) == local


@pytest.mark.slow
def test_what_slurm_refuses_is_said(
    text: Path, stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"sbatch refused .* invalid partition specified: none. Name what"):
        run(config_of(text, tmp_path / "a", "engine=slurm", "engine.options=[--partition=none]"))
    for option in ("mem=4G", "--array=0-5"):
        with pytest.raises(ConfigError, match=rf"engine.options=\[{option}\] is no option of sbatch"):
            EngineConfig(options=[option])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="engine=slurm needs the command sbatch, which is not on this machine"):
        run(config_of(text, tmp_path / "b", "engine=slurm"))


def test_a_controller_that_does_not_answer_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(
        [(1, "", "Unable to contact slurm controller"), (0, "7 R", ""), (0, "", ""), (1, "", "Invalid job id")]
    )
    monkeypatch.setattr(slurm, "_answer", lambda *words: subprocess.CompletedProcess(words, *next(answers)))
    assert [slurm._has_ended("7") for _ in range(4)] == [False, False, True, True]


def test_every_stage_has_a_name_that_a_task_of_a_cluster_knows(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"os.system is no stage of a curation. Try one of files, read"):
        array_task.task_function("os.system")
    assert isinstance(array_task.error_of({"kind": "SystemExit", "message": "no kind of ours"}), DataError)
    source = "".join(path.read_text() for path in Path(array_task.__file__).parents[1].rglob("*.py"))
    found = [part.partition('"')[0] for word in (" Stage(", " stage(") for part in source.split(f'{word}"')[1:]]
    assert len(found) >= 20
    assert all(callable(array_task.task_function(name)) for name in found)
    assert Stage("read", array_task.task_function("read"), 1, 1, {}, {}).folder.startswith("read-")


@pytest.mark.slow
def test_ray_makes_the_same_corpus(text: Path, local: dict[str, bytes], tmp_path: Path) -> None:
    pytest.importorskip("ray")
    output = tmp_path / "corpus"
    run(config_of(text, output, "engine=ray", "workers=2"))
    assert tree(output) == local
    path = tmp_path / "broken.parquet"
    path.write_bytes(b"PAR1 no parquet PAR1")
    with pytest.raises(DataError, match=r"broken\.parquet"):
        run(settings(path, tmp_path / "broken", "engine=ray", kind="parquet"))


def test_ray_is_asked_for_by_name(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"engine=ray needs the package ray, .* pip install -e '\.\[curate-cluster\]'"
    ):
        run(config_of(text, tmp_path / "corpus", "engine=ray"))
