"""A fault in one of several processes is reported, skipped, or followed by a restart from a checkpoint."""

import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import forked_process
import pytest
from job import ROOT, TWO, Job, kill, losses, wait_for, workers_of

from pretrain.checkpoint.read import open_checkpoint
from pretrain.training.callbacks.ledger import read_lines

pytestmark = pytest.mark.slow
ELASTIC = [
    "model=gpt_nano", "optimizer=adamw", "optimizer.learning_rate=0.001", "batch_size=8", "logging.ledger=true",
    "trainer.max_steps=44",
]  # fmt: skip
PLANTED = Path(__file__).with_name("planted_fault.py")


@pytest.mark.fault("F11")
def test_killed_on_two_it_goes_on_as_one_as_two_by_two_and_as_two_again(job: Job):
    draw, single = random.Random(0), job.run("single", *ELASTIC)
    on_one = ["trainer.strategy=single", "trainer.devices=1"]
    on_four = ["trainer.strategy=fsdp", "trainer.accelerator=cpu", "trainer.devices=4", "checkpoint.asynchronous=true",
               "parallel.tensor_parallel=2"]  # fmt: skip
    stages = [["trainer=fsdp", *TWO], on_one, on_four]
    for number, words in enumerate(stages):
        process = job.start("elastic", *ELASTIC, *words, "resume=auto")
        wait_for(process, 11 * number + draw.randint(6, 9))
        kill(process)
        found = open_checkpoint(job.folder / "elastic")
        shards = sorted(path.name for path in found.folder.glob("model*.safetensors"))
        ranks = {0: 2, 1: 1, 2: 4}[number]
        assert found.manifest["ranks"] == ranks
        assert shards == (
            ["model.safetensors"] if ranks == 1 else [f"model-rank-{rank:05d}.safetensors" for rank in range(ranks)]
        )
    elastic = job.run("elastic", *ELASTIC, "trainer.strategy=ddp", *TWO, "parallel.tensor_parallel=1", "resume=auto")
    one, other = read_lines(single / "ledger.jsonl"), read_lines(elastic / "ledger.jsonl")
    assert [line["samples"] for line in one] == [line["samples"] for line in other]
    assert len(one) == 44
    assert [float.fromhex(line["loss"]) for line in one] == pytest.approx(
        [float.fromhex(line["loss"]) for line in other], abs=1e-5
    )


@pytest.mark.fault("F08")
@pytest.mark.long
def test_a_loss_that_is_no_number_on_one_of_two_is_skipped_by_both(job: Job, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PLANTED_FAULT", "one")
    process = job.start("planted", "trainer=fsdp", *TWO, script=PLANTED)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "skipped            1 steps" in out
    saved = open_checkpoint(job.folder / "planted")
    assert saved.progress["skipped_steps"] == 1
    assert all(tensor.isfinite().all() for part in ("model", "optimizer") for tensor in saved.tensors(part).values())


@pytest.mark.long
@pytest.mark.fault("F08")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_gradient_that_overflows_on_one_of_two_lowers_the_scale_of_both(
    job: Job, strategy: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PLANTED_FAULT", "one")
    words = ["trainer.precision=fp16", "optimizer=adamw", "trainer.initial_loss_scale=1024"]
    process = job.start("planted", f"trainer={strategy}", *TWO, *words, script=PLANTED)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "step 4 is skipped, as the gradient overflowed fp16: loss scale 1,024 before, 512 from here on" in out
    saved = open_checkpoint(job.folder / "planted")
    assert saved.progress["skipped_steps"] == 1
    assert saved.progress["loss_scale"] == {"scale": 512.0, "steps_since_change": 6}
    alone = job.run("alone", *words)
    assert losses(job.folder / "planted")[:3] == pytest.approx(losses(alone)[:3], abs=2e-3)
    assert all(tensor.isfinite().all() for part in ("model", "optimizer") for tensor in saved.tensors(part).values())


@pytest.mark.fault("F08")
def test_ten_in_a_row_on_one_of_two_end_the_run_naming_the_rows(job: Job, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PLANTED_FAULT", "many")
    process = job.start("planted", "trainer=ddp", *TWO, "batch_size=4", "trainer.max_steps=50", script=PLANTED)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 5, errors
    assert "10 steps in a row were skipped, up to step 13: the gradient was not finite" in errors
    rows = errors.partition("read rows ")[2].partition(". Try")[0].split(", ")
    assert len(rows) == 4
    assert "Traceback" not in errors


@pytest.mark.fault("F07")
@pytest.mark.long
def test_a_process_that_hangs_is_given_up(job: Job):
    process = job.start("hung", "trainer=ddp", *TWO, "trainer.max_steps=100000", "trainer.timeout_s=5")
    wait_for(process, 20)
    workers = workers_of(process)
    workers[-1].send_signal(signal.SIGSTOP)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=120)
    assert time.monotonic() - sent < 90  # the limit, and what the launcher waits for a process to end by itself
    assert process.returncode == 6, errors
    assert "was lost" in errors
    assert not any(worker.is_running() for worker in workers)
    assert open_checkpoint(job.folder / "hung").step >= 15


@pytest.mark.long
@pytest.mark.fault("F16")
def test_a_process_that_never_joins_and_a_port_in_use_are_told(job: Job):
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for world, where in (("2", 0), ("1", port)):
            with socket.socket() as free:
                free.bind(("localhost", 0))
                address = where or free.getsockname()[1]
            environment = {
                **os.environ, "TORCHELASTIC_RUN_ID": "x", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": world,
                "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(address),
            }  # fmt: skip
            started = time.monotonic()
            found = forked_process.run(
                [sys.executable, str(ROOT / "src" / "train.py"), *job.words, "trainer=ddp", "trainer.accelerator=cpu",
                 "trainer.timeout_s=4"],
                cwd=job.folder, capture_output=True, text=True, timeout=60, check=False, env=environment,
            )  # fmt: skip
            assert found.returncode == 6, found.stderr
            assert time.monotonic() - started < 30
            assert f"did not find each other at localhost:{address}" in found.stderr
            assert "Traceback" not in found.stderr
