"""A run on any number of processes: the same rows, losses and checkpoints."""

import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import forked_process
import pytest
from job import TINY, TWO, Job, assert_same_weights, files, losses, validation, wait_for, workers_of

from pretrain.checkpoint.read import open_checkpoint
from pretrain.launch.run_folder import read_rows

pytestmark = pytest.mark.slow


MUON_OPTIONS = [
    "optimizer.row_beta2=0.9",
    "optimizer.newton_schulz_coefficients=polar_express",
    "optimizer.momentum_warmup_steps=8",
    "optimizer.cautious_weight_decay=true",
]
SPLIT = ["parallel.tensor_parallel=2", "parallel.sequence_parallel=true"]
WHOLE = ["parallel.tensor_parallel=1", "parallel.sequence_parallel=false", "parallel.context_parallel=1"]
SLICED = ["parallel.context_parallel=2"]
ARRANGED = {
    "ddp": ["trainer=ddp", *TWO],
    "fsdp": ["trainer=fsdp", *TWO],
    "tensor": ["trainer=fsdp", *TWO, *SPLIT],
    "context": ["trainer=fsdp", *TWO, *SLICED],
}
GOES_ON = {
    "back_to_one": ("tensor", ["trainer.strategy=single", "trainer.devices=1", *WHOLE]),
    "on_to_two": ("single", ["trainer=fsdp", *TWO, "micro_batch_size=1"]),
    "split": ("ddp", ["trainer=fsdp", *TWO, *SPLIT]),
    "sliced": ("tensor", ["trainer=ddp", *TWO, *WHOLE[:2], *SLICED]),
    "in_four_slices": (
        "context",
        [
            "trainer=fsdp",
            "trainer.accelerator=cpu",
            "trainer.devices=4",
            "parallel.context_parallel=4",
        ],
    ),
    "whole_again": ("context", ["trainer.strategy=single", "trainer.devices=1", *WHOLE]),
    "as_ddp": ("fsdp", ["trainer=ddp", *TWO]),
    "as_shards": ("ddp", ["trainer=fsdp", *TWO]),
    "on_to_copies": ("single", ["trainer=ddp", *TWO]),
}
USUAL = ["back_to_one", "on_to_two", "split", "as_ddp", "in_four_slices"]


def norms(folder: Path) -> dict[tuple[str, str], float]:
    """Return the norms of gradient and weights by step and part."""
    rows = read_rows(folder / "metrics.csv")
    return {(row["step"], row["name"]): float(row["value"]) for row in rows if row["name"].startswith("weights/")}


@pytest.mark.parametrize(
    ("family", "arranged", "goes_on"),
    [
        pytest.param(["model=gpt_nano"], [*ARRANGED], USUAL, id="gpt"),
        pytest.param(
            ["model=bert_nano", "optimizer=adamw"],
            ["ddp", "tensor", "context"],
            ["back_to_one", "whole_again"],
            id="bert",
            marks=pytest.mark.long,
        ),
        pytest.param(["model=diffusion_nano"], ["ddp", "context"], ["split"], id="diffusion", marks=pytest.mark.long),
        pytest.param(
            ["model=gpt_nano", *MUON_OPTIONS], [*ARRANGED], [*GOES_ON], id="muon_options", marks=pytest.mark.long
        ),
    ],
)
@pytest.mark.fault("F11")
def test_two_processes_train_as_one_and_their_checkpoints_go_everywhere(
    job: Job, family: list[str], arranged: list[str], goes_on: list[str]
):
    family = [*family, "logging.norms=true", "ema.decay=0.9"]
    single = job.run("single", *family)
    assert norms(single)
    for name in arranged:
        folder = job.run(name, *family, *ARRANGED[name])
        assert norms(folder) == pytest.approx(norms(single), rel=1e-4)
        assert losses(folder) == pytest.approx(losses(single), abs=1e-5)
        assert validation(folder) == pytest.approx(validation(single), abs=1e-5)
        assert_same_weights(folder, single, 1e-4)
        assert validation(folder, "val/loss_ema") == pytest.approx(validation(single, "val/loss_ema"), abs=1e-5)
        assert_same_weights(folder, single, 1e-4, "ema")
        assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["step-00000005", "step-00000010"]
    for name in goes_on:
        start, words = GOES_ON[name]
        half = job.folder / start / "checkpoints" / "step-00000005"
        target = job.folder / name / "checkpoints"
        target.mkdir(parents=True)
        shutil.copytree(half, target / half.name)
        folder = job.run(name, *family, *words, "resume=auto")
        assert losses(folder) == pytest.approx(losses(single)[5:], abs=1e-5)
        assert_same_weights(folder, single, 1e-4, "ema")


@pytest.mark.long
def test_a_mixture_on_two_processes_is_read_and_scored_as_on_one(job: Job, corpus: Path):
    numbers = job.folder / "numbers.txt"
    numbers.write_text("|".join(str(7**power) for power in range(3, 200)))
    sources = (
        f"{{words: {{kind: text_files, path: {corpus}, weight: 0.7}}, "
        f"numbers: {{kind: text_files, path: {numbers}, separator: '|', weight: 0.3}}}}"
    )
    job.words = ["data=mixture", f"data.sources={sources}", *TINY[1:]]
    single, double = job.run("single"), job.run("double", "trainer=ddp", *TWO)
    assert losses(double) == pytest.approx(losses(single), abs=1e-5)
    figures = [
        {row["name"]: float(row["value"]) for row in read_rows(folder / "metrics.csv") if row["name"][:4] == "val/"}
        for folder in (single, double)
    ]
    assert {"val/words/loss", "val/numbers/bits_per_byte"} <= figures[0].keys()
    assert figures[1] == pytest.approx(figures[0], abs=1e-3)


@pytest.mark.long
def test_activation_checkpointing_and_compilation_change_nothing(job: Job):
    plain = job.run("plain")
    checkpointed = job.run("checkpointed", "parallel.activation_checkpointing=true", "trainer=fsdp", *TWO)
    assert losses(checkpointed) == pytest.approx(losses(plain), abs=1e-5)
    assert_same_weights(checkpointed, plain, 1e-4)
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a processor, and this machine has none")
    compiled = job.run("compiled", "parallel.compile=true")
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)
    assert_same_weights(compiled, plain, 1e-4)


@pytest.mark.parametrize(
    "strategy", [pytest.param("ddp", marks=pytest.mark.long), "fsdp", pytest.param("context", marks=pytest.mark.long)]
)
@pytest.mark.fault("F06")
def test_a_signal_to_one_process_saves_all_and_resumes_exactly(job: Job, strategy: str):
    arranged = ARRANGED.get(strategy, ["trainer=fsdp", *TWO])
    words = [*arranged, "trainer.max_steps=60", "model.dropout=0.1", "checkpoint.every_n_steps=1000"]
    words.append("trainer.val_check_interval=1")  # so that it ends in a validation or before one, and goes on with it
    process = job.start("cut", *words, group=True)
    wait_for(process, 10)
    if strategy == "ddp":
        os.killpg(process.pid, signal.SIGUSR1)
    else:
        workers_of(process)[1].send_signal(signal.SIGTERM)
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert time.monotonic() - sent < 30
    assert re.fullmatch(r"Interrupted: SIG\w+ at step \d+: saved; go on with resume=auto\n", errors), errors
    cut = job.run("cut", *words, "resume=auto")
    whole = job.run("whole", *words)
    assert files(cut) == files(whole)
    assert open_checkpoint(cut).step == 60


@pytest.mark.long
@pytest.mark.fault("F06")
def test_a_signal_to_all_of_the_group_before_the_first_step_is_no_loss(job: Job):
    process = job.start("early", "trainer=fsdp", *TWO, group=True, fork=False)
    while len(workers := workers_of(process)) < 2 and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "Interrupted: SIGINT at step 0: nothing was trained yet\n")
    assert not any(worker.is_running() for worker in workers)
    assert not list((job.folder / "early" / "checkpoints").glob("*"))


@pytest.mark.fault("F07")
def test_a_lost_process_ends_the_others_and_says_so(job: Job):
    process = job.start("lost", "trainer=ddp", *TWO, "trainer.max_steps=100000")
    wait_for(process, 20)
    workers = workers_of(process)
    assert len(workers) == 2
    workers[-1].kill()
    sent = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - sent < 30
    assert process.returncode == 6, errors
    assert "was lost" in errors
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.long
def test_an_update_of_copies_and_shards_is_that_of_one_process():
    found = forked_process.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         str(Path(__file__).with_name("sharded_optimizers.py"))],
        capture_output=True, text=True, timeout=240, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    lines = [line.split() for line in found.stdout.splitlines()]
    assert [line[0] for line in lines] == ["muon", "stable_adamw", "muon"]
    assert all(float(line[2]) > 0.01 and float(line[4]) < 1e-6 for line in lines)


@pytest.mark.long
def test_processes_agree_on_when_time_is_up(job: Job):
    words = ["trainer=ddp", *TWO, "trainer.max_steps=-1", "trainer.max_time=0.1", "trainer.val_check_interval=20"]
    folder = job.run("timed", *words, "schedule=linear", "schedule.warmup_steps=2")
    saved = open_checkpoint(folder)
    assert saved.step > 10
    assert saved.progress["seconds"] == pytest.approx(6.0, abs=1.0)


@pytest.mark.long
@pytest.mark.fault("F07")
def test_a_lost_process_brings_the_job_back_by_itself(job: Job):
    """Killed between two checkpoints, started again by the launcher, bit for bit as if nothing had happened."""
    words = ["trainer=ddp", *TWO, "trainer.max_steps=60", "model.dropout=0.1", "checkpoint.every_n_steps=10"]
    process = job.start("back", *words, "trainer.max_restarts=1")
    wait_for(process, 25)
    workers_of(process)[-1].kill()
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert "a process was lost; all resume from step" in out
    assert out.count("Report") == 1
    assert files(job.folder / "back") == files(job.run("whole", *words))


@pytest.mark.long
def test_sharding_without_a_gpu_names_what_works_here(job: Job):
    found = forked_process.run(job.command("trainer=fsdp"), cwd=job.folder, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "trainer.accelerator=cpu trainer.devices=2" in found.stderr
    assert "Traceback" not in found.stderr
