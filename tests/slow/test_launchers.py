"""The same command alone, by torchrun on one or two machines, and by srun: one folder, the same result."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from job import ROOT, TWO, Job, files, losses

from pretrain.checkpoint.read import open_checkpoint

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SLURM = Path(__file__).parent / "fake_slurm"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def torchrun(job: Job, *words: str, logs: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *words, *job.command("trainer=fsdp")[1:]]
    command += ["trainer.accelerator=cpu", f"paths.logs_dir={job.folder / logs}"]
    return subprocess.Popen(
        command, cwd=job.folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def the_folder(job: Job, logs: str, *processes: subprocess.Popen[str]) -> Path:
    """Wait for the processes of a run and return its folder, of which there must be one."""
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    (folder,) = (job.folder / logs / "gpt_nano").iterdir()
    return folder


@pytest.mark.long
def test_torchrun_on_one_and_two_machines_gives_the_same_run(job: Job):
    alone = job.run("alone", "trainer=fsdp", *TWO)
    one = the_folder(job, "one", torchrun(job, "--nproc-per-node", "2", logs="one"))
    machines = [
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        str(free_port()),
    ]
    nodes = [torchrun(job, *machines, "--node-rank", str(number), logs="two") for number in range(2)]
    two = the_folder(job, "two", *nodes)
    assert losses(one) == losses(alone)
    assert losses(two) == losses(alone)
    assert files(one) == files(two) == files(alone)
    assert open_checkpoint(two).config["trainer"]["num_nodes"] == 2


def slurm_job(job: Job, name: str, *words: str) -> subprocess.Popen[str]:
    environment = {
        **ENVIRONMENT, "PATH": f"{SLURM}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "PYTHON": sys.executable,
        "RUN_DIR": str(job.folder / name), "REQUEUED": str(job.folder / "requeued"),
    }  # fmt: skip
    command = [
        "bash",
        "configs/slurm.sh",
        *job.words,
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        *words,
    ]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.long
def test_the_slurm_script_saves_requeues_and_resumes_exactly(job: Job):
    job.words += [f"paths.cache_dir={job.folder / 'cache'}", "trainer.max_steps=60", "model.dropout=0.1"]
    first = slurm_job(job, "cut", "checkpoint.every_n_steps=1000")
    assert first.stdout is not None
    assert any(line.startswith("step 10/") for line in first.stdout), first.stderr.read()  # type: ignore[union-attr]
    (srun,) = subprocess.check_output(["pgrep", "-P", str(first.pid), "-f", "srun"], text=True).split()
    os.kill(int(srun), signal.SIGUSR1)
    _, errors = first.communicate(timeout=60)
    assert first.returncode == 143, errors
    assert "Traceback" not in errors
    assert (job.folder / "requeued").read_text() == "requeue 4711\n"
    assert 10 <= open_checkpoint(job.folder / "cut").step < 60
    again = slurm_job(job, "cut", "checkpoint.every_n_steps=1000")
    _, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    whole = job.run("whole", "trainer=ddp", *TWO, "checkpoint.every_n_steps=1000")
    assert files(job.folder / "cut") == files(whole)
    assert open_checkpoint(job.folder / "cut").config["trainer"]["num_nodes"] == 2


@pytest.mark.long
@pytest.mark.parametrize("continued", [False, True], ids=["pre-training", "continued pre-training"])
def test_the_slurm_script_goes_on_over_two_kills(job: Job, continued: bool):
    """Typed as in its own heading, three times: what `auto` came to at the first start is no change at the second."""
    words = ["trainer=fsdp", "trainer.accelerator=cpu", "parallel.replicas=2", "optimizer=muon", "model=llama_nano"]
    kept = ("trainer.log", "checkpoint", "sample", "trainer.val")
    words += [word for word in job.words if continued is False or word.startswith(kept)]
    words = [word for word in words if not word.startswith("trainer.precision")]
    if continued:
        base = job.run("base", "trainer.max_steps=2")
        (corpus,) = (word.partition("=")[2] for word in job.words if word.startswith("data.path="))
        words.remove("model=llama_nano")
        words += ["experiment=continue", f"init_from={base}", f"data.sources.domain.path={corpus}"]
        words += [f"data.sources.replay.path={corpus}"]
    words += [f"paths.cache_dir={job.folder / 'cache'}", "trainer.max_steps=40", "batch_size=8"]
    environment = {
        **ENVIRONMENT, "PATH": f"{SLURM}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "PYTHON": sys.executable,
        "REQUEUED": str(job.folder / "requeued"),
    }  # fmt: skip

    def started(name: str) -> tuple[subprocess.Popen[str], Path]:
        folder = job.folder / name
        return subprocess.Popen(
            ["bash", "configs/slurm.sh", *words], cwd=ROOT, env={**environment, "RUN_DIR": str(folder)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        ), folder  # fmt: skip

    for step in (12, 27):
        process, cut = started("my runs/é = $x 😀")
        assert process.stdout is not None
        assert any(line.startswith(f"step {step}/") for line in process.stdout), process.stderr.read()  # type: ignore[union-attr]
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert open_checkpoint(cut).step == 25
    again, _ = started("my runs/é = $x 😀")
    output, errors = again.communicate(timeout=240)
    assert again.returncode == 0, errors
    assert "at step 25" in output
    alone, whole = started("whole")
    _, errors = alone.communicate(timeout=240)
    assert alone.returncode == 0, errors
    assert files(cut) == files(whole)
