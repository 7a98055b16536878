"""A run of two processes whose copy is in an object storage: rank 0 copies what both wrote."""

import shutil

import pytest
from job import TWO, Job, files

from pretrain.checkpoint.read import open_checkpoint

pytestmark = pytest.mark.slow

SHARDED = ["trainer=fsdp", *TWO, "schedule=constant", "model.dropout=0.1", "name=a"]


@pytest.mark.long
def test_two_processes_go_from_the_storage_to_other_folders_and_back_bit_for_bit(job: Job) -> None:
    bucket = job.folder / "bucket"
    here = f"storage.url=file://{bucket}"
    expected = files(job.run("whole", *SHARDED))
    first = job.run("first", *SHARDED, here, "trainer.max_steps=3")
    assert files(bucket / "first") == files(first)
    assert len([name for name in files(first) if name.startswith("model")]) == 2  # one of each process
    shutil.rmtree(first)

    second = job.run("second", *SHARDED, f"resume=file://{bucket}/first", "trainer.max_steps=6")
    assert [open_checkpoint(folder).step for folder in (second, bucket / "first")] == [6, 6]  # it goes on copying there

    shutil.copytree(bucket / "first", job.folder / "third")  # as aws s3 sync
    shutil.rmtree(second)
    third = job.run("third", *SHARDED, here, f"resume={job.folder / 'third'}", "trainer.max_steps=10")
    assert files(third) == expected
    assert files(bucket / "third") == expected
