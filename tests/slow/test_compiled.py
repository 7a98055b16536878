"""A run with compiled blocks resumes exactly."""

import shutil

import pytest
from job import Job, files, losses

from pretrain.checkpoint.read import open_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a processor"),
]


@pytest.mark.long
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
