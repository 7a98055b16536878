"""A real Slurm, where `sbatch` submits to one: `PRETRAIN_SLURM=1 python -m pytest tests/extras/test_slurm_cluster.py`.

Its machines must see the folder of temporary files (`--basetemp`), and two processors must be free.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from job import ROOT, TWO, Job, files

from pretrain.checkpoint.read import open_checkpoint
from pretrain.config.compose import compose, register_schemas
from pretrain.config.curate import CurateConfig
from pretrain.data.curation.curate import curate

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.environ.get("PRETRAIN_SLURM") != "1", reason="PRETRAIN_SLURM=1 where sbatch has a cluster"),
]


def slurm(*words: str) -> str:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def wait_for_state(job: str, *states: str) -> None:
    """Return when a job is in one of the states; a job that was queued again is let in after some seconds.

    Earlier, Slurm refuses it: the credential of its first start is still revoked.
    """
    for _ in range(600):
        shown = slurm("scontrol", "show", "job", job)
        if any(f"JobState={state} " in shown for state in states):
            return
        if "Reason=BeginTime" in shown:
            time.sleep(10)
            slurm("scontrol", "update", f"JobId={job}", "StartTime=now")
        time.sleep(1)
    pytest.fail(shown)


def test_a_job_saves_on_its_signal_is_queued_again_and_ends_as_one_without_it(job: Job) -> None:
    script = job.folder / "slurm.sh"
    script.write_text((ROOT / "configs" / "slurm.sh").read_text().replace("#SBATCH --gpus-per-node=8\n", ""))
    cut, log = job.folder / "cut", job.folder / "log.txt"
    words = [*job.words, "trainer.max_steps=60", "model.dropout=0.1", f"paths.cache_dir={job.folder / 'cache'}"]
    own = {"RUN_DIR": str(cut), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    shape = ["--nodes=1", "--ntasks-per-node=2", "--cpus-per-task=1", "--time=10", f"--output={log}"]
    command = ["sbatch", "--parsable", f"--chdir={ROOT}", *shape, str(script), *words]
    command += ["trainer=ddp", "trainer.accelerator=cpu", "checkpoint.every_n_steps=1000"]
    sent = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, check=True)
    number = sent.stdout.strip()
    try:
        for _ in range(240):
            if log.exists() and "step 10/60" in log.read_text():
                break
            time.sleep(0.5)
        slurm("scancel", "--signal=USR1", number)  # as --signal does before the time is up
        wait_for_state(number, "PENDING")
        assert 10 <= open_checkpoint(cut).step < 60, log.read_text()
        wait_for_state(number, "COMPLETED", "FAILED", "TIMEOUT")
    finally:
        subprocess.run(["scancel", number], check=False)
    assert "JobState=COMPLETED" in slurm("scontrol", "show", "job", number), log.read_text()
    assert f"resuming {cut} at step" in log.read_text()
    whole = job.run("whole", *words[len(job.words) :], "trainer=ddp", *TWO, "checkpoint.every_n_steps=1000")
    assert files(cut) == files(whole)


def test_arrays_curate_to_the_bytes_of_one_machine(tmp_path: Path) -> None:
    source = f"sources={{a: {{kind: text_files, path: {ROOT / 'docs'}, license: Apache-2.0, language: en}}}}"
    register_schemas("curate", CurateConfig)

    def corpus(name: str, *words: str) -> dict[str, bytes]:
        output = tmp_path / name
        given = [source, "rules=prose", "unit_bytes=100000", f"output={output}", *words]
        curate(compose("curate", given), report=lambda line: None)
        paths = [path for path in output.rglob("*") if path.is_file() and "work" not in path.relative_to(output).parts]
        return {str(path.relative_to(output)): path.read_bytes() for path in paths if path.name != "timings.json"}

    alone = corpus("alone", "workers=1")
    assert len(alone) > 5
    assert corpus("arrays", "engine=slurm", "engine.tasks=2") == alone
