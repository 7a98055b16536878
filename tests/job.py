"""Runs of `src/train.py` on several processes, started from the command line."""

import subprocess
import sys
from pathlib import Path

import forked_process
import psutil
import torch

from pretrain.checkpoint.read import open_checkpoint
from pretrain.launch.run_folder import read_rows

ROOT = Path(__file__).parents[1]
TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]
TINY = [
    "data=text_files",
    "tokenizer=bytes",
    "model.n_layers=2",
    "model.d_model=32",
    "model.context_length=64",
    "trainer.precision=fp32",
    "trainer.max_steps=10",
    "trainer.log_every_n_steps=1",
    "trainer.val_check_interval=100",
    "checkpoint.every_n_steps=5",
    "checkpoint.keep=0",
    "sample.max_new_tokens=5",
    "logging.report=false",
]


class Job:
    """Runs train.py below one folder."""

    def __init__(self, folder: Path, corpus: Path) -> None:
        self.folder = folder
        self.words = [*TINY, f"data.path={corpus}"]

    def command(self, *words: str) -> list[str]:
        return [sys.executable, str(ROOT / "src" / "train.py"), *self.words, *words]

    def run(self, name: str, *words: str) -> Path:
        folder = self.folder / name
        found = forked_process.run(
            self.command(*words, f"paths.run_dir={folder}"),
            cwd=self.folder, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        assert found.stdout.count("Report") == 1
        assert "Warning" not in found.stderr, found.stderr
        return folder

    def start(
        self, name: str, *words: str, script: Path | None = None, group: bool = False, fork: bool = True
    ) -> subprocess.Popen[str]:
        """Begin a run, in a process group of its own where a signal is to reach all of that.

        Without `fork` its processes are new interpreters, as those of a user.
        """
        command = self.command(*words, f"paths.run_dir={self.folder / name}")
        if script is not None:
            command[1] = str(script)
        start = forked_process.popen if fork else subprocess.Popen
        return start(
            command, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=group
        )


def wait_for(process: subprocess.Popen[str], step: int) -> None:
    """Return when the run says that it has taken a step."""
    assert process.stdout is not None
    assert any(line.startswith(f"step {step}/") for line in process.stdout), process.stderr.read()  # type: ignore[union-attr]


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Return the processes that train for a launcher, in the order of their ranks."""
    children = psutil.Process(process.pid).children()
    return [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]


def kill(process: subprocess.Popen[str]) -> None:
    """End a run and all its processes as a loss of power would."""
    for each in [*psutil.Process(process.pid).children(recursive=True), process]:
        each.kill()
    process.communicate(timeout=30)


def files(run_folder: Path) -> dict[str, bytes]:
    """Return the bytes of every tensor file of a run's newest checkpoint."""
    return {path.name: path.read_bytes() for path in open_checkpoint(run_folder).folder.glob("*.safetensors")}


def losses(folder: Path) -> list[float]:
    rows = {int(row["step"]): row["value"] for row in read_rows(folder / "metrics.csv") if row["name"] == "train/loss"}
    return [float(rows[step]) for step in sorted(rows)]


def validation(folder: Path, name: str = "val/loss") -> float:
    return float([row["value"] for row in read_rows(folder / "metrics.csv") if row["name"] == name][-1])


def assert_same_weights(one: Path, other: Path, atol: float, part: str = "model") -> None:
    a, b = open_checkpoint(one).tensors(part), open_checkpoint(other).tensors(part)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=atol)
