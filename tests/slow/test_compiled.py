"""A run whose blocks torch compiles: it goes on exactly, and learns what the run without a compiler learns."""

import shutil

import pytest
from job import Job, files, losses

from pretrain.checkpoint import open_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor"),
]


def test_a_compiled_run_goes_on_exactly(job: Job) -> None:
    """With dropout, whose random numbers come from compiled code; the text written between steps is not compiled."""
    words = ["parallel.compile=true", "model.dropout=0.1", "sample.every_n_steps=5"]
    whole = job.run("whole", *words)
    cut = shutil.copytree(whole, job.folder / "cut")
    shutil.rmtree(max((cut / "checkpoints").glob("step*")))
    (cut / "report.json").unlink()
    assert open_checkpoint(cut).step == 5
    job.run("cut", *words, "resume=auto")
    assert open_checkpoint(cut).step == 10
    assert files(cut) == files(whole)
    assert losses(cut) == losses(whole)


def test_a_compiled_run_learns_what_a_plain_one_does(job: Job) -> None:
    compiled = losses(job.run("compiled", "parallel.compile=true"))
    plain = losses(job.run("plain", "parallel.compile=false"))
    assert compiled == pytest.approx(plain, rel=1e-5)
