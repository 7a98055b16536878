"""A run with stages on two processes, killed in each stage and near each border, and going on as one process."""

import pytest
from job import TWO, Job, files, kill, losses, wait_for

from pretrain.training.callbacks.ledger import read_lines

pytestmark = pytest.mark.long
STAGES = [
    "model=modernbert_nano",
    "optimizer=adamw",
    "tokenizer=bpe",
    "tokenizer.vocab_size=270",
    "trainer.max_steps=60",
    "batch_size=8",
    "batch_warmup_rows=4",
    "batch_warmup_tokens=4096",
    "logging.ledger=true",
    "stages.short.until_steps=20",
    "stages.long.until_steps=40",
    "stages.long.model.context_length=128",
    "stages.long.model.rope_base=1e6",
    "stages.decay.model.context_length=128",
    "stages.decay.model.rope_base=1e6",
    "stages.decay.objective.mask_probability=0.15",
    "stages.decay.schedule.kind=linear",
]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_killed_on_two_processes_it_ends_as_one_that_was_not(job: Job, strategy: str) -> None:
    words = [*STAGES, f"trainer={strategy}", *TWO]
    whole = job.run("whole", *words)
    for step in (8, 20, 30, 40, 50):
        process = job.start("killed", *words, "resume=auto")
        wait_for(process, step)
        kill(process)
    killed = job.run("killed", *words, "resume=auto")
    assert files(whole) == files(killed)


def test_another_number_of_processes_reads_the_same_rows_in_every_stage(job: Job) -> None:
    one = job.run("one", *STAGES)
    process = job.start("elastic", *STAGES, "trainer=ddp", *TWO, "resume=auto")
    wait_for(process, 25)
    kill(process)
    elastic = job.run("elastic", *STAGES, "trainer.strategy=single", "trainer.devices=1", "resume=auto")
    read, again = read_lines(one / "ledger.jsonl"), read_lines(elastic / "ledger.jsonl")
    assert [line["samples"] for line in read] == [line["samples"] for line in again]
    assert {len(line["samples"]) for line in read} == {4, 8}
    assert losses(elastic)[-1] == pytest.approx(losses(one)[-1], abs=1e-3)
