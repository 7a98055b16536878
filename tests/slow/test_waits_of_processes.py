"""A step of one of several processes waits for no device: Lightning's signals, sums and norms included."""

import os
from pathlib import Path

import pytest
from job import TWO, Job


@pytest.mark.long
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_warm_step_of_two_processes_waits_nowhere(job: Job, strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tests, before = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [tests, before])))
    found = job.folder / "waits.txt"
    job.run(
        "run", f"trainer={strategy}", *TWO, "optimizer=adamw", "micro_batch_size=2", "batch_size=8",
        "trainer.log_every_n_steps=100", "logging.ledger=true", "data.prefetch=1",
        "callbacks.waits.class_path=waits.Waits", f"callbacks.waits.init_args={{file: {found}, step: 2}}",
    )  # fmt: skip
    assert sorted(found.read_text().splitlines()) == ["0 done", "1 done"]
